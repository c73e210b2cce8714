"""Certified composition: lattice distributions of one step -> T-fold sums by a tilted FFT, with every error bounded.

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

from confide.accounting.lattice import Lattice
from confide.accounting.pairs import Floats
from confide.errors import InputError

_UNIT = 2.0**-53
#: Longest transform; 2^22 doubles with their temporaries stay below 300 MB.
MAX_LENGTH = 1 << 22
#: Share of the probability read that truncation may use (added on the safe side).
_TRUNCATION = 1e-7


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
        """Bound delta at every epsilon [n] >= 0 (losses below zero are left out)."""
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
        # Delta decreases: below the first loss it is at least what it is there.
        first = max(float(self.tail[0] - self.damped[0]) * (1 - 1e-12) - 1e-15 * self.tail[0] - self.slackness[0], 0.0)
        value = np.where(inside, value, np.where(at < self.losses[0], first + self.infinite, self.infinite))
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
            # Inside a cell delta is tail - exp(epsilon - loss) damped: solved directly, then checked.
            end = float(at[j])
            room = (delta - self.infinite - 1e-15 * self.tail[j]) / (1 + 1e-12)
            share = (float(self.tail[j]) - room) / float(self.damped[j]) if self.damped[j] > 0 else 1.0
            found = end + float(np.log(share)) if 0 < share < 1 else end
            found += 1e-12 * (1 + abs(found))
            return found if at[j - 1] < found < end and self.delta(np.array([found]))[0] <= delta else end
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
        return low


def _log_sum(mass_log: Floats, losses: Floats, s: float) -> float:
    exponent = mass_log + s * losses
    top = float(exponent.max())
    return top + float(np.log(np.exp(exponent - top).sum()))


def _power(
    spectrum: NDArray[np.complex128], steps: int, n: int, fold: float, transform: float
) -> tuple[NDArray[np.complex128], float]:
    """Return spectrum ** steps where it matters and a bound on the mean absolute error over all n frequencies.

    `fold` bounds the error of every frequency before the transform, `transform` the Euclidean norm of the errors of
    all n frequencies that the transform adds.
    """
    if steps == 1:
        return spectrum, fold + transform / np.sqrt(n)
    magnitude = np.abs(spectrum)
    doubt = fold + transform
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
    # Half of the frequencies are stored. The transform's errors are known in Euclidean norm: Cauchy and Schwarz.
    error = float(np.sum((fold + 4 * _UNIT * magnitude[matters]) * spread)) * 2 / n
    error += float(np.linalg.norm(spread)) * np.sqrt(2) * transform / n
    return out, float(steps * error) * 1.01 + 4e-31


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
    scales = [0.125, 0.25, 0.45, 0.7, 1.0, 1.3]
    while scales:
        scale = scales.pop()
        s = scale * base
        bottom = max(bottom, -(cgf(-s) + share) / s)
        up = cgf(s)
        upward.append((s, up))
        # plain tail beyond w is at most exp(log_norm - tilt w) * P_tilted(> w); tilted alias is at most exp(up - s w)
        end = max((up + share) / s, (log_norm + up - goal) / (tilt + s))
        if not scales and end < top and scale > 1e-5:
            scales.append(scale / 3)  # heavy tails (rare events): a gentler exponent still brings the end closer
        top = min(top, end)
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
            transform = relative * np.sqrt(n) * float(np.linalg.norm(folded))
            powered, wrong = _power(one, steps, n, len(tilted) / n * _UNIT, transform)
            spectrum = powered if spectrum is None else spectrum * powered
            doubt += wrong * (1 + 1e-9) + 4 * _UNIT * (len(parts) > 1)
        assert spectrum is not None
        values = fft.irfft(spectrum, n)
        doubt += relative * float(np.linalg.norm(spectrum)) / n * np.sqrt(2)
        offset = (first - low_end) % n
        values = np.concatenate([values[offset:], values[:offset]])[: last - first + 1]
    shift = sum(steps * lattice.shift for lattice, steps in parts)
    shift += (4 if upper else -4) * _UNIT * max(abs(first), abs(last)) * h
    # Epsilon is never negative: of the losses below zero only the nearest is needed.
    below = min(max(int(-shift / h) - first - 2, 0), len(values) - 1)
    values = values[below:]
    losses = h * (first + below + np.arange(len(values)))
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
