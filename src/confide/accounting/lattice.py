"""One step on a lattice of losses, from above and from below.

Upper bounds spread the mass of every cell to its two ends so that both P and Q mass are kept (Doroshenko et al. 2022,
"Connect the dots": a mean-preserving spread dominates). Lower bounds merge the mass of every cell, with a little of a
neighbour, into one lattice point (a post-processing, which is dominated). Both err by order step^2: the upper bound on
epsilon by about steps * (theta + 1) * step^2 / 12, the lower by half of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confide.accounting.pairs import Cells, Floats, Pair


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


def lattice_span(pair: Pair, tail: float, step: float) -> tuple[int, int]:
    """Return the first and last lattice index that one step needs at truncation `tail`."""
    low, high = pair.span(tail)
    return int(np.floor(low / step)), int(np.ceil(high / step))
