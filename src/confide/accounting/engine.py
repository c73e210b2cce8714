"""Certified composition: one-step cells -> lattice distributions from above and below -> T-fold sums by a tilted FFT.

Upper bounds spread the mass of every cell to its two ends so that both P and Q mass are kept (Doroshenko et al. 2022,
"Connect the dots": a mean-preserving spread dominates). Lower bounds merge masses from both sides of every lattice
point until their joint loss is that point (a post-processing, which is dominated) and round the rest down. Both err
by order step^2, so halving the step quarters the certified gap.

The T-fold sum is computed from the distribution tilted by ``exp(theta * loss)`` with theta at the saddle point of the
read-out, so that what is read is never a rounding remnant of something 1e12 times larger; rounding of the FFT
(Higham 2002, Theorem 24.2), aliasing and truncation (Chernoff) are bounded and added on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from confide.accounting.pairs import Cells, Floats, Nodes, Pair
from confide.errors import InputError

_UNIT = 2.0**-53
#: Longest transform; 2^22 doubles with their temporaries stay below 300 MB.
MAX_LENGTH = 1 << 22
#: Most cells of one step.
MAX_CELLS = 1 << 20
#: Share of the probability read that truncation may use (added on the safe side).
_TRUNCATION = 1e-7


@dataclass(frozen=True)
class Lattice:
    """Masses [n] at privacy losses step * (first + i) + shift, and the mass at infinite loss."""

    mass: Floats
    first: int
    step: float
    infinite: float
    shift: float

    @property
    def losses(self) -> Floats:
        """Losses of the lattice points, without the shift."""
        return self.step * (self.first + np.arange(len(self.mass)))


@dataclass(frozen=True)
class Step:
    """Cells of one step in one direction: P is the first distribution of the hockey-stick divergence."""

    p: Floats
    q: Floats
    error: Floats
    slack: float
    infinite: float
    first: int
    step: float


def both_directions(cells: Cells, first: int, step: float) -> tuple[Step, Step]:
    """Read cells on the lattice step * (first + i) as (remove, add)."""
    n = len(cells.p) - 1
    remove = Step(cells.p, cells.q, cells.error, cells.slack, cells.only_p, first, step)
    add = Step(
        cells.q[::-1], cells.p[::-1], cells.error[::-1], cells.slack, cells.only_q, -(first + n - 1), step
    )
    return remove, add


def crop(cells: Step, tail: float) -> tuple[int, int]:
    """Lattice points [low, high) outside which P has at most `tail` on either side."""
    above = np.cumsum(cells.p[::-1])[::-1]
    n = len(cells.p) - 1
    high = int(np.searchsorted(-above[1:], -tail))
    low = int(np.searchsorted(np.cumsum(cells.p)[:-1], tail))
    return max(0, min(low, n - 2)), max(min(high + 1, n), 2)


def upper_lattice(cells: Step) -> Lattice:
    """Return a lattice distribution that dominates the step."""
    h, slack = cells.step, cells.slack
    p, q = cells.p * (1 + cells.error), cells.q * np.maximum(1 - cells.error, 0.0)
    n = len(p) - 1
    edges = h * (cells.first + np.arange(n))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(p[1:-1]) - np.log(q[1:-1])
    # Where Q underflows the mass goes to the upper end: an upper bound, for the loss lies below that end.
    above = np.where(np.isfinite(ratio), ratio - edges[:-1] + slack, h + 2 * slack)
    above = np.clip(above, 0.0, h + 2 * slack)
    upward = p[1:-1] * (np.expm1(-above) / np.expm1(-(h + 2 * slack)))
    mass = np.zeros(n)
    mass[1:] += upward
    mass[:-1] += np.maximum(p[1:-1] - upward, 0.0)
    mass[0] += p[0]
    return Lattice(mass, cells.first, h, float(cells.infinite + p[-1]), slack)


def lower_lattice(cells: Step) -> Lattice:
    """Return a lattice distribution that the step dominates."""
    h = cells.step
    p, q = cells.p * np.maximum(1 - cells.error, 0.0), cells.q * (1 + cells.error)
    n = len(p) - 1
    edges = h * (cells.first + np.arange(n)) - cells.slack
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(p[1:-1]) - np.log(q[1:-1])
    ratio = np.where(np.isfinite(ratio), ratio, edges[:-1])
    # Position of the cell's joint loss in its cell; the share 1/2 - 4/3.. of mass that goes down balances both sides.
    position = np.clip((ratio - edges[:-1]) / h, 0.0, 1.0)
    down = np.clip(0.5 - 4.0 * (position - 0.5), 0.0, 1.0)
    going_down, going_up = p[1:-1] * down, p[1:-1] * (1 - down)
    excess = np.zeros(n)  # at lattice point i: what the piece from above has over the point
    deficit = np.zeros(n)  # what the piece from below lacks
    excess[:-1] = going_down * -np.expm1(-np.maximum(ratio - edges[:-1], 0.0))
    deficit[1:] = going_up * np.expm1(np.maximum(edges[1:] - ratio, 0.0))
    # The last point also has everything above the lattice; its loss is at least the last edge.
    with np.errstate(divide="ignore", invalid="ignore"):
        lifted = np.where(deficit > 0, np.minimum(excess / deficit, 1.0), 1.0)
    lifted *= 1 - 1e-13
    mass = np.zeros(n)
    mass[:-1] += going_down
    mass[1:] += lifted[1:] * going_up
    mass[:-1] += (1 - lifted[1:]) * going_up
    mass[-1] += p[-1]
    return Lattice(mass * (1 - 1e-15), cells.first, h, float(cells.infinite), -cells.slack)


@dataclass(frozen=True)
class Sizing:
    """Where a read-out sits, from a coarse quadrature: tilt, loss, spread. Only grids depend on it, no bound does."""

    tilt: float
    loss: float
    spread: float
    curvature: float


def log_moments(nodes: Nodes, remove: bool, orders: Floats) -> Floats:
    """Return log E_P exp(s * loss) for every s in `orders` [m], from the coarse quadrature (not a bound)."""
    sign = 1.0 if remove else -1.0
    log_p = nodes.log_p if remove else nodes.log_q
    exponent = log_p + np.multiply.outer(orders, sign * nodes.loss)
    top = exponent.max(axis=1)
    return np.asarray(top + np.log(np.exp(exponent - top[:, None]).sum(axis=1)))


_ORDERS = np.exp(np.linspace(np.log(1e-3), np.log(3e3), 64))
_ENTROPY = _ORDERS * np.log(_ORDERS) - (_ORDERS + 1) * np.log1p(_ORDERS)


def size(
    parts: Sequence[tuple[Nodes, int]], remove: bool, *, delta: float | None = None, epsilon: float | None = None
) -> Sizing:
    """Find the tilt at which epsilon(delta), or delta(epsilon), is read (Chernoff with the constant of Canonne 2020)."""
    total = np.zeros_like(_ORDERS)
    for nodes, steps in parts:
        total += steps * log_moments(nodes, remove, _ORDERS)
    if epsilon is None:
        assert delta is not None
        best = int(np.argmin((total + _ENTROPY - np.log(delta)) / _ORDERS))
    else:
        best = int(np.argmin(total + _ENTROPY - _ORDERS * epsilon))
    tilt = float(_ORDERS[best])
    mean = variance = 0.0
    sign = 1.0 if remove else -1.0
    for nodes, steps in parts:
        exponent = (nodes.log_p if remove else nodes.log_q) + tilt * sign * nodes.loss
        weight = np.exp(exponent - exponent.max())
        weight /= weight.sum()
        average = float(weight @ nodes.loss)
        mean += steps * sign * average
        variance += steps * float(weight @ (nodes.loss - average) ** 2)
    loss = mean if epsilon is not None else float((total[best] + _ENTROPY[best] - np.log(delta)) / tilt)
    return Sizing(tilt, loss, float(np.sqrt(variance)), sum(steps for _, steps in parts) * (tilt + 1))


@dataclass(frozen=True)
class Curve:
    """A bound on delta(epsilon) of a composition, valid for every epsilon, tight near the tilt it was made for."""

    upper: bool
    losses: Floats
    tail: Floats
    damped: Floats
    slackness: Floats
    infinite: float
    shift: float

    # tail[j] = mass at losses >= losses[j]; damped[j] = sum of mass[i] exp(losses[j] - losses[i]) over i >= j.

    def delta(self, epsilon: Floats) -> Floats:
        """Bound delta at every epsilon [n] >= 0."""
        epsilon = np.asarray(epsilon, float)
        at = epsilon - self.shift
        j = np.searchsorted(self.losses, at, side="left")
        inside = (j < len(self.losses)) & (at >= self.losses[0])
        k = np.minimum(j, len(self.losses) - 1)
        value = self.tail[k] - np.exp(np.minimum(at - self.losses[k], 0.0)) * self.damped[k]
        value = np.where(j < len(self.losses), np.maximum(value, 0.0), 0.0)
        if self.upper:
            value = np.minimum(value * (1 + 1e-12) + self.infinite + 1e-15 * self.tail[k] * (j < len(self.losses)), 1.0)
            return np.where((at < self.losses[0]), 1.0, value)
        slack = self.slackness[np.maximum(k - 1, 0)]
        value = np.maximum(value * (1 - 1e-12) - 1e-15 * self.tail[k] - slack, 0.0) + self.infinite
        value = np.where(inside, value, np.where(at < self.losses[0], 0.0, self.infinite))
        return np.maximum(value, -np.expm1(np.minimum(epsilon, 0.0)))

    def epsilon(self, delta: float) -> float:
        """Bound epsilon at `delta`; infinite where the mass at infinite loss is too large."""
        # delta() is decreasing in epsilon between and at lattice points: bracket on the lattice, then bisect the cell.
        at = self.losses + self.shift
        values = self.delta(at)
        if self.upper:
            good = values <= delta
            if not good[-1]:
                return float("inf")
            bad = np.flatnonzero(~good)
            j = int(bad[-1]) + 1 if bad.size else 0
            if j == 0:
                return float(at[0])
            low, high = float(at[j - 1]), float(at[j])
        else:
            over = np.flatnonzero(values > delta)
            if not over.size:
                return float("-inf")
            j = int(over[-1])
            if j == len(at) - 1:
                return float(at[j])
            low, high = float(at[j]), float(at[j + 1])
        for _ in range(4):
            points = np.linspace(low, high, 34)
            above = self.delta(points) > delta
            last = int(np.flatnonzero(above)[-1]) if above.any() else 0
            low, high = float(points[last]), float(points[min(last + 1, 33)])
        return high if self.upper else low


def _log_sum(mass_log: Floats, losses: Floats, s: float) -> float:
    exponent = mass_log + s * losses
    top = float(exponent.max())
    return top + float(np.log(np.exp(exponent - top).sum()))


def _power(spectrum: NDArray[np.complex128], steps: int, doubt: float) -> tuple[NDArray[np.complex128], float]:
    """Return spectrum ** steps where it matters and a bound on the mean absolute error over all frequencies."""
    magnitude = np.abs(spectrum)
    if steps == 1:
        return spectrum, doubt
    with np.errstate(divide="ignore"):
        log_magnitude = np.log(np.minimum(magnitude + doubt, 1.0 + doubt))
    matters = steps * log_magnitude > -70.0
    out = np.zeros_like(spectrum)
    base = spectrum[matters]
    exponent, result = steps, None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        if exponent:
            base = base * base
    assert result is not None
    out[matters] = result
    # |a^T - b^T| <= T max(|a|, |b|)^(T-1) |a - b|; every complex product adds at most sqrt(5) units, T of them compound.
    spread = np.exp((steps - 1) * np.maximum(log_magnitude[matters], -200.0 / steps))
    error = steps * (doubt + 4 * _UNIT * magnitude[matters]) * spread
    return out, float(error.sum() / len(spectrum)) * 1.01 + 4e-31


def convolve(parts: Sequence[tuple[Lattice, int]], tilt: float, read: float, upper: bool) -> Curve:
    """Compose lattice distributions: part i `steps_i` times, all on the same step.

    Parameters
    ----------
    parts : sequence of (Lattice, steps)
        Independent (adaptively composed) steps; directions must agree.
    tilt : float
        theta >= 0, where the read-out sits. Any value gives a valid bound, a good one a tight bound.
    read : float
        Rough size of the delta to be read: the window's truncation is a small share of it.
    upper : bool
        Whether the lattices dominate (result is an upper bound) or are dominated (lower bound).

    Raises
    ------
    InputError
        If the window would need more memory than allowed.
    """
    h = parts[0][0].step
    logs, normal, doubtful = [], [], 0.0
    centre = variance = 0.0
    for lattice, steps in parts:
        with np.errstate(divide="ignore"):
            log_mass = np.log(lattice.mass)
        losses = lattice.losses
        norm = _log_sum(log_mass, losses, tilt)
        tilted = np.exp(log_mass + tilt * losses - norm)
        mean = float(tilted @ losses)
        centre += steps * mean
        variance += steps * float(tilted @ (losses - mean) ** 2)
        logs.append((log_mass, losses, norm))
        normal.append(tilted)
        # Rounding of exponents and logs: relative per step, so it multiplies the result by at most exp(doubtful).
        doubtful += steps * (4 * (np.abs(tilt * losses).max() + np.abs(norm) + 40) + 8) * _UNIT
    log_norm = sum(steps * norm for (_, steps), (_, _, norm) in zip(parts, logs, strict=True))
    spread = max(np.sqrt(variance), h)

    def cgf(s: float) -> float:
        return sum(
            steps * (_log_sum(m, x, tilt + s) - n) for (_, steps), (m, x, n) in zip(parts, logs, strict=True)
        )

    low_end = sum(steps * lattice.first for lattice, steps in parts)
    high_end = sum(steps * (lattice.first + len(lattice.mass) - 1) for lattice, steps in parts)
    share = -np.log(1e-13)
    # Below: what aliases into the window, in tilted measure. Above: what is cut off, in plain measure.
    goal = float(np.log(max(_TRUNCATION * read, 1e-290)))
    base = np.sqrt(2 * share) / spread
    bottom, top = -np.inf, np.inf
    top_tail = -np.inf
    for scale in (0.125, 0.25, 0.4, 0.6, 0.8, 1.0, 1.3):
        s = scale * base
        bottom = max(bottom, -(cgf(-s) + share) / s)
        up = cgf(s)
        # plain tail beyond w is at most exp(log_norm - tilt w) * P_tilted(> w); tilted alias is at most exp(up - s w)
        top = min(top, max((up + share) / s, (log_norm + up - goal) / (tilt + s)))
    first = max(int(np.floor(bottom / h)), low_end)
    last = min(int(np.ceil(top / h)), high_end)
    if last < first:
        first, last = min(first, high_end), min(first, high_end)
    whole = first == low_end and last == high_end
    n = fft.next_fast_len(last - first + 1, real=True)
    if n > MAX_LENGTH:
        raise InputError(
            f"this composition needs a grid of {n} points",
            expected=f"at most {MAX_LENGTH}",
            remedy="ask for a wider certified interval, or split the composition",
        )
    if last < high_end:
        above = min(log_norm + cgf(s * base) - (tilt + s * base) * last * h for s in (0.125, 0.25, 0.4, 0.6, 0.8, 1.0, 1.3))
        top_tail = float(min(above, 0.0))
    alias = 0.0 if whole else 2e-13
    if len(parts) == 1 and parts[0][1] == 1:
        values = normal[0][first - low_end : last - low_end + 1]
        doubt, alias = 0.0, 0.0
    else:
        relative = 8 * max(np.log2(n), 1.0) * _UNIT
        spectrum, doubt = None, 0.0
        for (_, steps), tilted in zip(parts, normal, strict=True):
            folded = tilted
            if len(tilted) > n:
                folded = np.concatenate([tilted, np.zeros(-len(tilted) % n)]).reshape(-1, n).sum(axis=0)
            one = fft.rfft(folded, n)
            doubt_one = relative * np.sqrt(n) * float(np.linalg.norm(folded)) + len(tilted) / n * _UNIT
            powered, wrong = _power(one, steps, doubt_one)
            spectrum = powered if spectrum is None else spectrum * powered
            doubt += wrong * (1 + 1e-9) + 4 * _UNIT * (len(parts) > 1)
        assert spectrum is not None
        values = fft.irfft(spectrum, n)
        doubt += relative * float(np.linalg.norm(spectrum)) / n * np.sqrt(2)
        offset = (first - low_end) % n
        values = np.concatenate([values[offset:], values[:offset]])[: last - first + 1]
    losses = h * (first + np.arange(len(values)))
    values = np.maximum(values, 0.0) + doubt if upper else np.maximum(values - doubt, 0.0)
    log_scale = log_norm - tilt * losses + (doubtful if upper else -doubtful)
    with np.errstate(divide="ignore"):
        mass = np.exp(np.minimum(np.log(values) + log_scale, 0.0 if upper else 0.0))
    slackness = np.exp(np.minimum(log_scale, 50.0)) * alias
    tail = np.cumsum(mass[::-1])[::-1]
    damped = _damped(mass, h)
    infinite = -np.expm1(sum(steps * np.log1p(-min(lattice.infinite, 1 - 1e-16)) for lattice, steps in parts))
    if upper:
        infinite += np.exp(top_tail) if top_tail > -np.inf else 0.0
    else:
        infinite *= 1 - 1e-9
    shift = sum(steps * lattice.shift for lattice, steps in parts)
    shift += (4 if upper else -4) * _UNIT * max(abs(first), abs(last)) * h
    return Curve(upper, losses, tail, damped, slackness, float(infinite), float(shift))


def _damped(mass: Floats, h: float) -> Floats:
    """Return sum over i >= j of mass[i] exp(-(i - j) h) for every j, in blocks so that no exponent overflows."""
    n = len(mass)
    out = np.empty(n)
    block = max(1, int(300.0 / h))
    carry = 0.0
    for end in range(n, 0, -block):
        start = max(0, end - block)
        decay = np.exp(-h * np.arange(end - start))
        inner = np.cumsum((mass[start:end] * decay)[::-1])[::-1]
        out[start:end] = (inner + carry * decay[-1] * np.exp(-h)) / decay
        carry = float(out[start])
    return out


def lattice_span(pair: Pair, tail: float, step: float) -> tuple[int, int]:
    """Return the first and last lattice index that one step needs at truncation `tail`."""
    low, high = pair.span(tail)
    return int(np.floor(low / step)) - 1, int(np.ceil(high / step)) + 1
