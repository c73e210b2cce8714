"""Read-outs of a composition with certified intervals: chooses tilt and grid, measures the gap, refines.

>>> import numpy as np
>>> from confide.accounting.pairs import MixturePair
>>> pair = MixturePair(1.0, np.array([0.0, 1.0]), np.array([0.99, 0.01]))
>>> low, high = Composition(((pair, 1000),)).epsilon_bounds(1e-5)
>>> 1.8275 < low < 1.8283 < high < 1.8295
True
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from confide.accounting.engine import Curve, convolve
from confide.accounting.lattice import Step, both_directions, lattice_span, lower_edges, lower_lattice, upper_lattice
from confide.accounting.pairs import Floats, Pair
from confide.accounting.sizing import Saddle, Sizing, lattice_step, saddle, size
from confide.errors import InputError

#: Share of the probability read that truncating one step may use.
_SHARE = 1e-7
#: Most cells of one step.
MAX_CELLS = 1 << 20


@dataclass(frozen=True)
class Place:
    """Where one direction is read: tilt, expected loss, lattice step, aliasing. Bounds are valid for any choice."""

    remove: bool
    tilt: float
    loss: float
    step: float
    aliasing: float


@dataclass
class Composition:
    """Pairs with their step counts; caches what its read-outs share. The pairs and counts never change."""

    parts: tuple[tuple[Pair, int], ...]
    _saddles: dict[tuple[bool, float], Saddle] = field(default_factory=dict, repr=False)
    _curves: dict[tuple[bool, int], Curve] = field(default_factory=dict, repr=False)
    _lines: dict[tuple[bool, int], tuple[Floats, Floats, Floats]] = field(default_factory=dict, repr=False)
    _steps: dict[tuple[float, float, bool], list[tuple[Step, Step]]] = field(default_factory=dict, repr=False)

    @cached_property
    def total(self) -> int:
        """Number of steps."""
        return sum(steps for _, steps in self.parts)

    def _cells(self, step: float, read: float, upper: bool) -> list[tuple[Step, Step]]:
        """Cells of every part in both directions; for lower bounds on edges of their own."""
        read = 10.0 ** np.floor(np.log10(max(read, 1e-280)))
        key = (step, read, upper)
        if key not in self._steps:
            tail = _SHARE * read / self.total
            found = []
            for whole, _ in self.parts:
                pair, lost = whole.trimmed(tail, upper)
                first, last = lattice_span(pair, tail, step)
                if last - first > MAX_CELLS:
                    raise InputError(
                        f"one step needs {last - first} cells at loss resolution {step:.3g}",
                        expected=f"at most {MAX_CELLS}",
                        remedy="ask for a wider certified interval",
                    )
                if upper:
                    start, edges = float(first), step * np.arange(first, max(last, first + 5) + 1)
                else:
                    start, edges = lower_edges(pair, first * step, last * step, step)
                cells = pair.cells(edges)
                cells = replace(cells, only_p=cells.only_p + lost)
                found.append(both_directions(cells, start, step, tail))
            while len(self._steps) > 3:
                self._steps.pop(next(iter(self._steps)))
            self._steps[key] = found
        return self._steps[key]

    def _saddle(self, remove: bool, read: float) -> Saddle:
        read = 10.0 ** np.floor(np.log10(max(read, 1e-280)))
        if (remove, read) not in self._saddles:
            tail = _SHARE * read / self.total
            nodes = [(pair.trimmed(tail, True)[0].nodes(tail), steps) for pair, steps in self.parts]
            for direction in (True, False):
                self._saddles[direction, read] = saddle(nodes, direction)
        return self._saddles[remove, read]

    def sizing(self, remove: bool, *, delta: float | None = None, epsilon: float | None = None) -> Sizing:
        """Find where a read-out sits (not a bound)."""
        read = delta if delta is not None else 1e-14
        return size(self._saddle(remove, read), self.total, delta=delta, epsilon=epsilon)

    def curve(
        self, remove: bool, upper: bool, *, step: float, tilt: float, read: float, aliasing: float = 1e-8
    ) -> Curve:
        """Compose on the lattice `step` at `tilt`; `read` is the rough size of delta to be read."""
        make = upper_lattice if upper else lower_lattice
        cells = self._cells(step, read, upper)
        lattices = [(make(pair[0 if remove else 1]), steps) for pair, (_, steps) in zip(cells, self.parts, strict=True)]
        return convolve(lattices, tilt, read, upper, aliasing)

    def coarsest(self, read: float, step: float) -> float:
        """Return the smallest allowed step >= `step`: one step's cells must fit."""
        tail = _SHARE * read / self.total
        width = max(high - low for low, high in (pair.span(tail) for pair, _ in self.parts))
        return max(step, width / (MAX_CELLS - 8))

    def _epsilon(self, remove: bool, delta: float, rtol: float, atol: float, skip_below: float) -> tuple[float, float]:
        at = self.sizing(remove, delta=delta)
        target = max(rtol * max(at.loss, 0.0), atol)
        # A direction that is clearly the smaller one needs only to be shown to be so.
        aim = max(0.8 * target, 0.3 * (skip_below - at.loss))
        step = self.coarsest(delta, lattice_step(self._saddle(remove, delta), at.tilt, aim))
        low, high, last_gap = -np.inf, np.inf, np.inf
        for turn in range(6):
            # What aliases is taken off the lower bound at the height of the Chernoff bound exp(log_bound): keep it
            # below a twentieth of what delta changes over the target.
            height = float(np.exp(min(np.log(delta) - at.log_bound, 0.0)))
            aliasing = min(max(0.03 * min(at.tilt * target, 1.0) * height * 0.1**turn, 1e-30), 1e-6)
            try:
                top = self.curve(remove, True, step=step, tilt=at.tilt, read=delta, aliasing=aliasing).epsilon(delta)
            except InputError:
                step *= 3
                continue
            high = min(high, top)
            if high <= skip_below:
                break
            try:
                bottom = self.curve(remove, False, step=step, tilt=at.tilt, read=delta, aliasing=aliasing)
                low = max(low, bottom.epsilon(delta))
            except InputError:
                step *= 3
                continue
            gap = high - max(low, 0.0)
            at = self.sizing(remove, epsilon=high) if np.isfinite(high) and high > 0 else at
            target = max(rtol * max(high, 0.0), atol)
            if gap <= target or not np.isfinite(high) or gap > 0.9 * last_gap:
                break  # reached, hopeless, or rounding weighs more than the lattice
            last_gap = gap
            step *= min(0.5, max(0.1, 0.85 * np.sqrt(target / gap)))
            if step < self.coarsest(delta, step):
                break
        return low, high

    @property
    def pure(self) -> float:
        """Epsilon that holds with delta 0, where every loss is bounded."""
        return sum(steps * pair.bound for pair, steps in self.parts)

    @cached_property
    def _most_added(self) -> float:
        """Largest loss of the add direction, a pure epsilon for it; infinity if there is none."""
        return -sum(steps * pair.least for pair, steps in self.parts)

    def places(self, delta: float, *, rtol: float = 3e-4, found: float | None = None) -> tuple[Place, ...]:
        """Return where both directions are read for an upper bound about `rtol` above epsilon, the larger one first.

        `found` is epsilon where it is known already: it says better than the estimate where to read.
        """
        sizes = sorted(
            ((remove, self.sizing(remove, delta=delta)) for remove in (True, False)), key=lambda s: -s[1].loss
        )
        first = sizes[0][1].loss
        if found is not None and found > 0:
            remove, first = sizes[0][0], found
            sizes[0] = remove, replace(self.sizing(remove, epsilon=found), loss=found)
        # A direction that is clearly the smaller one needs only to be shown to be so.
        return tuple(self._place(remove, at, delta, rtol, 0.3 * (first - at.loss)) for remove, at in sizes)

    def _place(self, remove: bool, at: Sizing, delta: float, rtol: float, spare: float = 0.0) -> Place:
        aim = max(1.5 * rtol * at.loss, 1e-6, spare)
        step = self.coarsest(delta, lattice_step(self._saddle(remove, delta), at.tilt, aim))
        height = float(np.exp(min(np.log(delta) - at.log_bound, 0.0)))
        aliasing = min(max(0.1 * rtol * min(at.tilt * at.loss, 1.0) * height, 1e-30), 1e-5)
        return Place(remove, at.tilt, at.loss, step, aliasing)

    def epsilon_upper(self, delta: float, *, rtol: float = 3e-4, places: tuple[Place, ...] = ()) -> float:
        """Return an upper bound on epsilon, about `rtol` above it: one composition a direction, no lower bound.

        `places` may come from a similar composition, which saves looking for them; any give a valid bound.
        """
        if not self.parts:
            return 0.0
        if -np.expm1(-self._most_added) * (1 + 1e-12) <= delta:
            return 0.0  # even having taken part at all is rarer than delta
        best, used = 0.0, 0.0
        for place in places or self.places(delta, rtol=rtol):
            if not place.remove and self._most_added <= best:
                continue
            at, high, turn = place, np.inf, 0
            # The cells of the first direction serve the second one too.
            step = used if 0 < used <= 1.1 * at.step else at.step
            while turn < 8:
                turn += 1
                try:
                    curve = self.curve(at.remove, True, step=step, tilt=at.tilt, read=delta, aliasing=at.aliasing)
                except InputError:
                    step *= 2
                    continue
                used = used or step
                high = min(high, curve.epsilon(delta))
                if turn > 2 or high <= best or not np.isfinite(high) or abs(high - at.loss) < 0.2 * high:
                    break
                if places:
                    return self.epsilon_upper(delta, rtol=rtol)
                # The estimate was off (rare events): read again at the tilt that belongs to what was found.
                at = self._place(at.remove, self.sizing(at.remove, epsilon=high), delta, rtol)
                step = at.step
            best = max(best, high)
        return min(best, self.pure)

    def epsilon_bounds(self, delta: float, *, rtol: float = 1e-3, atol: float = 1e-5) -> tuple[float, float]:
        """Return (low, high) around the smallest epsilon >= 0 at `delta`, both directions considered."""
        if not self.parts:
            return 0.0, 0.0
        order = sorted((True, False), key=lambda remove: -self.sizing(remove, delta=delta).loss)
        low, high = self._epsilon(order[0], delta, rtol, atol, 0.0)
        if order[0] and self._most_added <= max(low, 0.0):
            other_low, other_high = 0.0, self._most_added
        else:
            other_low, other_high = self._epsilon(order[1], delta, rtol, atol, max(low, 0.0))
        high = min(max(high, other_high, 0.0), self.pure)
        return min(max(low, other_low, 0.0), high), high

    def delta_bounds(self, epsilon: float, remove: bool, *, rtol: float = 1e-3) -> tuple[float, float]:
        """Return (low, high) around delta at `epsilon` >= 0 in one direction."""
        if not self.parts:
            return 0.0, 0.0
        at = self.sizing(remove, epsilon=epsilon)
        rough = float(np.exp(min(at.log_delta, 0.0))) * 0.3
        low, high = 0.0, 1.0
        gap = 0.8 * rtol / max(at.tilt, 0.3)
        step = self.coarsest(rough, lattice_step(self._saddle(remove, 1e-14), at.tilt, gap))
        for turn in range(6):
            height = float(np.exp(min(at.log_delta - at.log_bound, 0.0)))
            aliasing = min(max(0.03 * rtol * height * 0.1**turn, 1e-30), 1e-6)
            try:
                top = self.curve(remove, True, step=step, tilt=at.tilt, read=rough, aliasing=aliasing)
            except InputError:
                step *= 3
                continue
            high = min(high, float(top.delta(np.array([epsilon]))[0]))
            try:
                bottom = self.curve(remove, False, step=step, tilt=at.tilt, read=rough, aliasing=aliasing)
            except InputError:
                step *= 3
                continue
            low = max(low, float(bottom.delta(np.array([epsilon]))[0]))
            gap = high - low
            if gap <= rtol * high or high < 1e-250:
                break
            step *= min(0.5, max(0.1, 0.85 * np.sqrt(rtol * high / gap)))
            if step < self.coarsest(rough, step):
                break
        return low, high

    def advantage_upper(self) -> float:
        """Return an upper bound on delta(0), the same in both directions, from the curve that `success_bound` uses."""
        if not self.parts:
            return 0.0
        return float(self._read_curve(True, 0).delta(np.zeros(1))[0])

    def delta_profile(self, epsilon: Floats) -> Floats:
        """Return upper bounds on delta at every `epsilon` [n] >= 0, from a few shared curves."""
        epsilon = np.asarray(epsilon, float)
        if not self.parts:
            return np.zeros(epsilon.shape)
        worst = np.zeros(epsilon.shape)
        for remove in (True, False):
            best = np.ones(epsilon.shape)
            for decade in (0, 1, 2, 4, 6, 9, 12):
                best = np.minimum(best, self._read_curve(remove, decade).delta(epsilon))
            worst = np.maximum(worst, best)
        return worst

    def success_bound(self, prior: Floats) -> Floats:
        """Return an upper bound on gamma(prior) = inf over epsilon of delta_remove + exp(epsilon) prior, for all [n].

        Every epsilon gives a valid bound, so only tightness depends on which tilts and lattices are tried. Negative
        epsilon is read in the other direction: H_e(P, Q) = 1 - e + e H_{1/e}(Q, P).
        """
        if not self.parts:
            return np.asarray(prior, float)
        best = np.ones(len(prior))
        smallest = float(np.min(prior[prior > 0], initial=1.0))
        # Windows around these sizes of delta cover probabilities from 1 down to the smallest prior.
        decades = range(1, int(np.ceil(-np.log10(max(smallest, 1e-300)))) + 1) if smallest < 0.05 else ()
        for remove, decade in ((True, 0), (False, 0), *((True, d) for d in decades)):
            value, scale, slope = self._support(remove, decade)
            j = np.searchsorted(slope, -prior)
            for offset in (-1, 0, 1):
                k = np.clip(j + offset, 0, len(scale) - 1)
                best = np.minimum(best, value[k] + scale[k] * prior)
        if np.any(prior <= 0):
            best = np.where(prior <= 0, self._mass_only_with, best)
        return np.asarray(np.clip(best, prior, 1.0))

    def _support(self, remove: bool, decade: int) -> tuple[Floats, Floats, Floats]:
        """Return lines value + scale * prior that bound gamma, scales increasing, and the slopes between them."""
        if (remove, decade) not in self._lines:
            curve = self._read_curve(remove, decade)
            at = curve.losses + curve.shift
            at = at[at >= 0] if at.size and at[-1] >= 0 else np.array([0.0])
            delta = curve.delta(at)
            # delta + exp(e) prior is convex in exp(e): its minimum over the lattice by the slope of delta.
            if remove:
                near = at < 700.0
                at, delta = (at[near], delta[near]) if near.any() else (at[:1], delta[:1])
                value, scale = delta, np.exp(np.minimum(at, 700.0))
            else:
                near = at < 40.0  # beyond, exp(-loss) no longer tells the lines apart
                at, delta = (at[near], delta[near]) if near.any() else (at[:1], delta[:1])
                value, scale = (-np.expm1(-at) + np.exp(-at) * delta)[::-1], np.exp(-at)[::-1]
            slope = np.zeros(0)
            if len(scale) > 1:
                slope = np.maximum.accumulate(np.diff(value) / np.maximum(np.diff(scale), 1e-300))
            self._lines[remove, decade] = (value, scale, slope)
        return self._lines[remove, decade]

    @cached_property
    def _mass_only_with(self) -> float:
        """Bound what an attack that never errs can find: the mass at infinite loss, as the upper lattice has it."""
        read = 1e-14
        step = self.coarsest(read, 0.1)
        lost = 0.0
        for (cells, _), (_, steps) in zip(self._cells(step, read, True), self.parts, strict=True):
            lost += steps * float(np.log1p(-min(upper_lattice(cells).infinite, 1 - 1e-16)))
        return float(min(1.0, -np.expm1(lost) * (1 + 1e-12)))

    def _read_curve(self, remove: bool, decade: int) -> Curve:
        """Return an upper curve for reading deltas near 10^-decade, its error about 0.05% of delta."""
        if (remove, decade) not in self._curves:
            if decade == 0:
                found = self._saddle(remove, 1e-3)
                spread, mean = float(found.variance[0]) ** 0.5, float(found.mean[0])
                # The bulk: how far an error in loss moves delta depends on how wide the losses lie.
                # Below 1, variance added to the losses counts against theirs: it smooths the kink at zero.
                tilt, gap = 1e-3, 5e-4 * (spread * min(spread, 1.0) if spread < 3 or mean > spread else 3.0)
                read, aliasing = 1e-3, 1e-9
            else:
                read = 10.0**-decade
                at = self.sizing(remove, delta=read)
                found, tilt = self._saddle(remove, read), at.tilt
                gap = 5e-4 / max(tilt, min(0.3, 1 / max(at.spread, 1e-9)))
                aliasing = min(max(1e-5 * float(np.exp(min(np.log(read) - at.log_bound, 0.0))), 1e-30), 1e-6)
            step = self.coarsest(read, lattice_step(found, tilt, gap))
            while True:
                try:
                    curve = self.curve(remove, True, step=step, tilt=tilt, read=read, aliasing=aliasing)
                    break
                except InputError:
                    step *= 3
            self._curves[remove, decade] = curve
        return self._curves[remove, decade]
