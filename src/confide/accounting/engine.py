"""Certified composition: one-step cells -> lattice distributions from above and below -> T-fold sums by a tilted FFT.

Upper bounds spread the mass of every cell to its two ends so that both P and Q mass are kept (Doroshenko et al. 2022,
"Connect the dots": a mean-preserving spread dominates). Lower bounds merge the mass of
every cell, with a little of a neighbour, into one lattice point (a post-processing, which is dominated). Both err
by order step^2 (about steps * (theta + 1) * step^2 / 12 above and half of that below), so halving the step quarters the
certified gap.

The T-fold sum is computed from the distribution tilted by ``exp(theta * loss)`` with theta at the saddle point of the
read-out, so that what is read is never a rounding remnant of something 1e12 times larger; rounding of the FFT
(Higham 2002, Theorem 24.2), aliasing and truncation (Chernoff) are bounded and added on the safe side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

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
    first: float
    step: float


def both_directions(cells: Cells, first: float, step: float, tail: float) -> tuple[Step, Step]:
    """Read cells whose edges lie at step * (first + i) as (remove, add), each cropped to what matters at `tail`."""
    n = len(cells.p) - 1
    remove = Step(cells.p, cells.q, cells.error, cells.slack, cells.only_p, first, step)
    add = Step(cells.q[::-1], cells.p[::-1], cells.error[::-1], cells.slack, cells.only_q, -(first + n - 1), step)
    return _crop(remove, tail), _crop(add, tail)


def _crop(cells: Step, tail: float) -> Step:
    """Merge outer cells in which P has at most `tail` altogether on that side into the end cells."""
    n = len(cells.p)
    low = int(np.searchsorted(np.cumsum(cells.p), tail, side="right"))
    high = n - 1 - int(np.searchsorted(np.cumsum(cells.p[::-1]), tail, side="right"))
    low, high = max(min(low - 1, n - 5), 0), min(max(high + 1, 4), n - 1)
    if high - low < 4 or (low == 0 and high == n - 1):
        return cells

    def merged(values: Floats) -> Floats:
        out = values[low : high + 1].copy()
        out[0], out[-1] = values[: low + 1].sum(), values[high:].sum()
        return out

    error = cells.error[low : high + 1].copy()
    error[0], error[-1] = cells.error[: low + 1].max(), cells.error[high:].max()
    return Step(merged(cells.p), merged(cells.q), error, cells.slack, cells.infinite, cells.first + low, cells.step)


def lower_edges(pair: Pair, low: float, high: float, step: float) -> tuple[float, Floats]:
    """Return (first, edges) of the cells for a lower bound: edges[i] = step * (first + i) except for edges[0].

    The first cell starts at the smallest loss and is widened, up to two steps, until its joint loss lies in the middle
    of its last step like that of every other cell: cut off by the smallest loss, it would otherwise lie above its
    lattice point with nothing below to balance it.
    """
    origin = pair.origin
    count = max(int(np.ceil((high - origin) / step)) + 2, 6)
    if low > origin + step or origin == 0.0:
        start = float(np.floor((low - origin) / step))
        count = max(int(np.ceil((high - origin) / step) - start) + 2, 6)
        return origin / step + start, origin + step * (start + np.arange(count))
    widths = np.linspace(1.0, 2.0, 9)
    probe = pair.cells(origin + step * np.concatenate([[0.0], widths]))
    with np.errstate(divide="ignore", invalid="ignore"):
        joint = np.log(np.cumsum(probe.p[1:-1])) - np.log(np.cumsum(probe.q[1:-1]))
    below = widths - (joint - origin) / step  # how far the joint loss lies under the cell's upper edge
    wide = float(np.interp(0.5, below, widths)) if np.all(np.isfinite(below)) else 1.0
    first = origin / step + wide - 1
    edges = step * (first + np.arange(count))
    edges[0] = origin
    return first, edges


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
    return Lattice(mass, round(cells.first), h, float(cells.infinite + p[-1]), slack)


def lower_lattice(cells: Step) -> Lattice:
    """Return a lattice distribution that the step dominates; its points are the middles of the cells, moved together.

    Every cell is merged into one output, whose loss is near its lattice point. Where it is below, a little of the
    cell above joins it; where it is above, it takes in a little of the cell below, until P = exp(point) Q exactly.
    Any such regrouping is a (randomised) post-processing. What cannot be balanced is rounded down.
    """
    h = cells.step
    p = cells.p[1:-1] * np.maximum(1 - cells.error[1:-1], 0.0)
    q = cells.q[1:-1] * (1 + cells.error[1:-1])
    n = len(p)
    low_edge = h * (cells.first + np.arange(n)) - cells.slack
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(p) - np.log(q)
    # One end cell may be up to a step wider than the others (see `lower_edges`): its loss may lie outside by that much.
    position = np.where(np.isfinite(ratio), np.clip(ratio - low_edge, -h, 2 * h), -h)
    # The points share one offset in their cells. The median position suits smooth stretches and single atoms; the end
    # cell at the smallest loss can only be balanced from above, so its own position is tried too. Any choice is valid.
    order = np.argsort(position)
    weight = np.cumsum(p[order])
    middle = order[min(np.searchsorted(weight, weight[-1] / 2), n - 1)]
    end = 0 if p[0] > p[-1] else n - 1
    best, best_mean, offset = None, -np.inf, 0.0
    points = np.arange(-3, n) * h
    for candidate in {int(middle), end}:
        tried = float(np.clip(position[candidate], 0.0, h))
        mass = _merge(p, position - tried, h)
        mean = float(mass @ (points + tried))
        if mean > best_mean:
            best, best_mean, offset = mass, mean, tried
    assert best is not None
    best[-1] += cells.p[-1] * max(1 - float(cells.error[-1]), 0.0)  # everything above: rounded down to the last point
    # Point i lies at the lower edge of its cell plus the offset; lattice indices must be whole, the rest is shift.
    whole = int(np.floor(cells.first))
    shift = (cells.first - whole) * h + offset - cells.slack
    return Lattice(best * (1 - 1e-14), whole - 3, h, float(cells.infinite), shift)


def _merge(p: Floats, over: Floats, h: float) -> Floats:
    """Return masses [n + 3] at points h * (i - 3): cell i has mass p[i] at joint loss over[i] above point i."""
    n = len(p)
    surplus = np.where(over > 0, p * -np.expm1(-np.maximum(over, 0.0)), 0.0)
    deficit = np.where(over < 0, p * np.expm1(np.maximum(-over, 0.0)), 0.0)
    # lift[i]: what all of cell i + 1 would give to point i; sink[i]: what all of cell i - 1 would take at point i.
    lift, sink = np.zeros(n), np.zeros(n)
    lift[:-1] = p[1:] * -np.expm1(-np.maximum(over[1:] + h, 0.0))
    sink[1:] = p[:-1] * np.expm1(np.maximum(h - over[:-1], 0.0))
    down, up, rest = np.zeros(n), np.zeros(n), np.ones(n)
    for _ in range(3):
        with np.errstate(divide="ignore", invalid="ignore"):
            down = np.where(lift > 0, np.minimum(deficit * rest / lift, 1.0), 0.0)
            up = np.where(sink > 0, np.minimum(surplus * rest / sink, 1.0), 0.0)
        asked = np.concatenate([[0.0], down[:-1]]) + np.concatenate([up[1:], [0.0]])
        scale = 1 / np.maximum(asked, 1.0)
        down[:-1] *= scale[1:]
        up[1:] *= scale[:-1]
        rest = np.maximum(1 - np.concatenate([[0.0], down[:-1]]) - np.concatenate([up[1:], [0.0]]), 0.0)
    has = surplus * rest + down * lift
    lacks = deficit * rest + up * sink
    with np.errstate(divide="ignore", invalid="ignore"):
        lifted = np.where(lacks > 0, np.minimum(has / lacks, 1.0) * (1 - 1e-13), 1.0)
    own, from_above = p * rest, np.zeros(n)
    from_above[:-1] = down[:-1] * p[1:]
    from_below = np.zeros(n)
    from_below[1:] = up[1:] * p[:-1]
    stays = np.where(over < 0, lifted, 1.0)
    mass = np.zeros(n + 3)  # three more points below, for what is rounded down
    mass[3:] = own * stays + from_above + from_below * lifted
    dropped = own * (1 - stays)
    mass[2:-1] += np.where(over >= -h, dropped, 0.0)
    mass[1:-2] += np.where(over < -h, dropped, 0.0)
    mass[:-3] += from_below * (1 - lifted)
    return mass


@dataclass(frozen=True)
class Sizing:
    """Where a read-out sits, from a coarse quadrature: tilt, loss, spread. Only grids depend on it, no bound does."""

    tilt: float
    loss: float
    spread: float
    curvature: float
    log_delta: float
    log_bound: float


_ORDERS = np.exp(np.linspace(np.log(1e-3), np.log(3e4), 72))


@dataclass(frozen=True)
class Saddle:
    """Cumulants of the total loss under every tilt of a fixed grid, and the delta that each reads (saddle point)."""

    orders: Floats
    log_moment: Floats
    mean: Floats
    variance: Floats
    nodes: tuple[tuple[Nodes, int], ...]
    remove: bool

    @property
    def log_delta(self) -> Floats:
        """Saddle-point estimate of log delta at epsilon = mean (the Gaussian integral under the tilt; not a bound)."""
        spread, s = np.sqrt(self.variance), self.orders
        integral = special.erfcx(s * spread / np.sqrt(2)) - special.erfcx((s + 1) * spread / np.sqrt(2))
        return np.asarray(self.log_moment - s * self.mean + np.log(np.maximum(integral / 2, 1e-300)))


def saddle(parts: Sequence[tuple[Nodes, int]], remove: bool, orders: Floats = _ORDERS) -> Saddle:
    """Sum log moments, means and variances of the loss over parts, for every tilt in `orders`."""
    sign = 1.0 if remove else -1.0
    total = np.zeros((3, len(orders)))
    for nodes, steps in parts:
        loss = sign * nodes.loss
        exponent = (nodes.log_p if remove else nodes.log_q) + np.multiply.outer(orders, loss)
        top = exponent.max(axis=1)
        weight = np.exp(exponent - top[:, None])
        norm = weight.sum(axis=1)
        mean = weight @ loss / norm
        second = weight @ (loss * loss) / norm
        total += steps * np.array([top + np.log(norm), mean, np.maximum(second - mean * mean, 0.0)])
    return Saddle(orders, total[0], total[1], total[2], tuple(parts), remove)


def lattice_step(found: Saddle, tilt: float, gap: float) -> float:
    """Return the lattice step at which upper and lower epsilon are expected to differ by `gap` (an estimate).

    Spreading a loss a above and b below two lattice points adds variance a b to it, which moves epsilon by about
    (tilt + 1) a b / 2 per step; the lower bound costs about half of that. Losses much nearer to zero than the lattice
    step (nearly nothing happened) cost only in proportion to their size, which is what allows coarse lattices for
    rare events.
    """
    sign = 1.0 if found.remove else -1.0
    steps = np.exp(np.linspace(np.log(1e-7), np.log(30.0), 80))
    cost = np.zeros(len(steps))
    for nodes, count in found.nodes:
        exponent = (nodes.log_p if found.remove else nodes.log_q) + tilt * sign * nodes.loss
        weight = np.exp(exponent - exponent.max())
        weight /= weight.sum()
        # Sorted by size, the losses below a step are a prefix: cumulative sums give every step's cost at once.
        size_ = np.abs(nodes.loss)
        order = np.argsort(size_)
        below = np.searchsorted(size_[order], steps)
        first = np.concatenate([[0.0], np.cumsum((weight * size_)[order])])[below]
        second = np.concatenate([[0.0], np.cumsum((weight * size_ * size_)[order])])[below]
        mass = np.concatenate([[0.0], np.cumsum(weight[order])])[below]
        near = np.minimum(np.maximum(first * steps - second, 0.0), mass * steps**2 / 6)
        cost += count * (near + (1 - mass) * steps**2 / 6)
    gaps = np.maximum.accumulate(0.8 * (tilt + 1) * cost)
    return float(np.exp(np.interp(np.log(gap), np.log(np.maximum(gaps, 1e-300)), np.log(steps))))


def size(found: Saddle, steps: int, *, delta: float | None = None, epsilon: float | None = None) -> Sizing:
    """Find the tilt at which epsilon(delta), or delta(epsilon), is read."""
    for zoom in (True, False):
        if epsilon is None:
            assert delta is not None
            key, value = -np.maximum.accumulate(found.log_delta[::-1])[::-1], -np.log(delta)
        else:
            key, value = np.maximum.accumulate(found.mean), epsilon
        j = int(np.clip(np.searchsorted(key, value), 1, len(key) - 1))
        if zoom:
            # The mean loss can rise steeply between two tilts (rare events): look closer there.
            between = np.exp(np.linspace(np.log(found.orders[j - 1]), np.log(found.orders[j]), 24))
            found = saddle(found.nodes, found.remove, between)
    share = float(np.clip((value - key[j - 1]) / max(key[j] - key[j - 1], 1e-300), 0.0, 1.0))

    def at(values: Floats) -> float:
        return float((1 - share) * values[j - 1] + share * values[j])

    tilt = float(np.exp(at(np.log(found.orders))))
    log_bound = at(found.log_moment - found.orders * found.mean)
    spread = max(at(found.variance), 0.0) ** 0.5
    return Sizing(tilt, at(found.mean), spread, steps * (tilt + 1), at(found.log_delta), log_bound)


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
        values = np.maximum(self.tail - self.damped, 0.0)
        if self.upper:
            values = values * (1 + 1e-12) + self.infinite + 1e-15 * self.tail
            good = values <= delta
            if not good[-1]:
                return float("inf")
            bad = np.flatnonzero(~good)
            j = int(bad[-1]) + 1 if bad.size else 0
            if j == 0:
                return float(at[0])
            low, high = float(at[j - 1]), float(at[j])
        else:
            values = np.maximum(values * (1 - 1e-12) - 1e-15 * self.tail - self.slackness, 0.0) + self.infinite
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
    # |a^T - b^T| <= T max(|a|, |b|)^(T-1) |a - b|; a complex product adds at most sqrt(5) units, T compound.
    spread = np.exp((steps - 1) * np.maximum(log_magnitude[matters], -200.0 / steps))
    error = steps * (doubt + 4 * _UNIT * magnitude[matters]) * spread
    return out, float(error.sum() / len(spectrum)) * 1.01 + 4e-31


def convolve(
    parts: Sequence[tuple[Lattice, int]], tilt: float, read: float, upper: bool, aliasing: float = 1e-8
) -> Curve:
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
    aliasing : float
        Share of the tilted mass that may fold back into the window: counted twice (upper) or taken off (lower).

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
        return sum(steps * (_log_sum(m, x, tilt + s) - n) for (_, steps), (m, x, n) in zip(parts, logs, strict=True))

    low_end = sum(steps * lattice.first for lattice, steps in parts)
    high_end = sum(steps * (lattice.first + len(lattice.mass) - 1) for lattice, steps in parts)
    share = -np.log(aliasing)
    # Below: what aliases into the window, in tilted measure. Above: what is cut off, in plain measure.
    goal = float(np.log(max(_TRUNCATION * read, 1e-290)))
    base = np.sqrt(2 * share) / spread
    bottom, top, top_tail = -np.inf, np.inf, -np.inf
    upward = []
    for scale in (0.125, 0.25, 0.45, 0.7, 1.0, 1.3):
        s = scale * base
        bottom = max(bottom, -(cgf(-s) + share) / s)
        up = cgf(s)
        upward.append((s, up))
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
        top_tail = min(0.0, min(log_norm + up - (tilt + s) * last * h for s, up in upward))
    alias = 0.0 if whole else 2 * aliasing
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
        mass = np.exp(np.minimum(np.log(values) + log_scale, 0.0))
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
    return int(np.floor(low / step)), int(np.ceil(high / step))
