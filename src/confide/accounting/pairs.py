"""Ordered pairs of distributions that dominate a mechanism, seen as masses in cells of privacy loss.

A pair (P, Q) stands for the output with (P) and without (Q) one contributor. Everything the accountant needs to know
is how much of P and of Q has privacy loss ``log(dP/dQ)`` between any two numbers; both directions (remove: P against
Q, add: Q against P) read the same cells.

>>> import numpy as np
>>> pair = MixturePair(sigma=1.0, sensitivities=np.array([0.0, 1.0]), probabilities=np.array([0.99, 0.01]))
>>> cells = pair.cells(np.array([-0.005, 0.0, 0.005]))
>>> bool(abs(cells.p.sum() - 1) < 1e-12 and abs(cells.q.sum() - 1) < 1e-12)
True
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from confide.errors import InputError

# Floating arrays; numpy's own stubs lose the exact width in most operations.
Floats = NDArray[Any]

_UNIT = 2.0**-52


@dataclass(frozen=True)
class Cells:
    """Masses of P and Q by privacy loss: below edges[0], between neighbouring edges, above edges[-1].

    Attributes
    ----------
    p, q : float64 array [edges + 1]
        Mass of P and of Q in every cell.
    error : float64 array [edges + 1]
        Bound on the relative rounding error of `p` and `q`.
    slack : float
        Bound on how far (in loss) an edge actually used lies from the edge asked for.
    only_p, only_q : float
        Mass of P where Q has none (infinite loss), and of Q where P has none.
    """

    p: Floats
    q: Floats
    error: Floats
    slack: float = 0.0
    only_p: float = 0.0
    only_q: float = 0.0


@dataclass(frozen=True)
class Nodes:
    """A coarse picture of a pair for sizing grids: losses with the log masses of P and Q near them. Not a bound."""

    loss: Floats
    log_p: Floats
    log_q: Floats


class Pair(Protocol):
    """What the composition needs to know about one step of a mechanism."""

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""

    def nodes(self, tail: float) -> Nodes:
        """Return a coarse quadrature of the pair, exact enough to choose grids with."""

    def trimmed(self, tail: float, upper: bool) -> tuple[Pair, float]:
        """Return a cheaper pair that dominates (upper) or is dominated, and the P mass it left out (upper only)."""

    @property
    def origin(self) -> float:
        """A loss at which a cell edge should lie, such as the smallest loss there is."""

    @property
    def bound(self) -> float:
        """Largest absolute loss: the pure epsilon of one step, infinite if there is none."""

    @property
    def least(self) -> float:
        """A number that no loss is below, minus infinity if there is none."""


class _Whole:
    """Pairs that are cheap as they are and have no preferred edge."""

    def trimmed(self, tail: float, upper: bool) -> tuple[Pair, float]:
        """Return the pair itself: nothing is left out."""
        return self, 0.0  # type: ignore[return-value]

    @property
    def origin(self) -> float:
        """Zero: no edge is better than another."""
        return 0.0

    @property
    def bound(self) -> float:
        """No bound on the loss."""
        return float("inf")

    @property
    def least(self) -> float:
        """What the largest absolute loss allows."""
        return -self.bound


def gaussian_mass(low: Floats, high: Floats) -> Floats:
    """Return the standard normal mass between `low` and `high`, with small relative error in both tails."""
    # On the right half the mirrored difference keeps relative accuracy where ndtr is close to 1.
    mirrored = low > 0
    a, b = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    return np.asarray(special.ndtr(b) - special.ndtr(a))


def gaussian_masses(edges: Floats) -> Floats:
    """Return the standard normal mass [n] between neighbours of increasing `edges` [n + 1], right in both tails."""
    # One tail per edge: each difference is taken on the side where both values are small.
    tail = special.ndtr(-np.abs(edges))
    low, high, right = tail[:-1], tail[1:], edges > 0
    return np.asarray(np.where(right[:-1], low - high, np.where(right[1:], 1.0 - low - high, high - low)))


_BLOCK, _MOST = 1 << 24, 1 << 31  # numbers held at once (128 MB), and numbers computed at all (half a minute)


def _log_sums(log_weights: Floats, slopes: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return log sum_i exp(log_weights[i] + slopes[i] x) at every x [n] and its derivative [n]."""
    wanted = slopes.size * x.size
    if wanted > _MOST:
        raise InputError(
            f"this mechanism mixes {slopes.size:,} shifts on a grid of {x.size:,} losses: too much to certify",
            expected=f"fewer entries, a smaller rate, or more noise: at most {_MOST:,} products, this needs {wanted:,}",
        )
    if wanted > _BLOCK and x.size > 1:
        blocks = np.array_split(x, -(-wanted // _BLOCK))
        values, rises = zip(*(_log_sums(log_weights, slopes, block) for block in blocks), strict=True)
        return np.concatenate(values), np.concatenate(rises)
    # Shifts along the first axis: sums over a short last axis are slow.
    exponent = slopes[:, None] * x + log_weights[:, None]
    top = exponent.max(axis=0)
    exponent -= top
    weight = np.exp(exponent, out=exponent)
    total = weight.sum(axis=0)
    return top + np.log(total), (slopes @ weight) / total


@dataclass(frozen=True)
class MixturePair:
    """P = sum_i w_i N(s_i, sigma^2) against Q = N(0, sigma^2), ascending s_i >= 0: the pair of a sampled Gaussian.

    It dominates every vector-valued step whose shift has norm at most s_i with probability w_i (Choquette-Choo et al.
    2023, "Privacy amplification for matrix mechanisms", Corollary 4.7). The loss increases with the output.
    """

    sigma: float
    sensitivities: Floats
    probabilities: Floats

    @cached_property
    def _log_weights(self) -> Floats:
        return np.asarray(np.log(self.probabilities) - 0.5 * (self.sensitivities / self.sigma) ** 2)

    def loss(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the loss at outputs `x` [n] (in units of sigma) and its derivative [n]."""
        return _log_sums(self._log_weights, self.sensitivities / self.sigma, x)

    def trimmed(self, tail: float, upper: bool) -> tuple[Pair, float]:
        """Leave out the largest shifts of total weight at most `tail` (upper), or give that weight to the largest kept.

        A mixture with weight moved to larger shifts dominates (Choquette-Choo et al. 2023): rounding a shift down is
        dominated, and counting its weight as lost (infinite loss) dominates. Shifts are in ascending order.
        """
        above = np.cumsum(self.probabilities[::-1])[::-1]
        kept = max(int(np.searchsorted(-above, -tail, side="left")), 1)
        if kept >= len(above):
            return self, 0.0
        lost = float(above[kept])
        weights = self.probabilities[:kept].copy()
        if not upper:
            weights[-1] += lost
        return MixturePair(self.sigma, self.sensitivities[:kept], weights), lost if upper else 0.0

    @property
    def origin(self) -> float:
        """The smallest loss there is, reached as the output goes to minus infinity; zero if there is none."""
        zero = float(self.probabilities[self.sensitivities == 0].sum())
        return float(np.log(zero)) if zero > 0 else 0.0

    @property
    def bound(self) -> float:
        """Gaussian losses have no bound."""
        return float("inf")

    @property
    def least(self) -> float:
        """The log of the mass at shift zero: the density with the contributor is at least that share of the other."""
        zero = float(self.probabilities[self.sensitivities == 0].sum())
        return float(np.log(zero)) * (1 + 1e-12) - 1e-15 if zero > 0 else float("-inf")

    def _reach(self, tail: float) -> tuple[float, float]:
        """Outputs (in units of sigma) that Q is below, and P above, with probability at most `tail`."""
        z = -float(special.ndtri(min(tail, 0.4)))
        # P(x > reach) <= sum of w_i P(N > reach - s_i): shifts of weight below the share cost at most their weight,
        # the others need the quantile of share / w_i.
        share = tail / (2 * len(self.probabilities))
        heavy = self.probabilities > share
        quantile = -special.ndtri(np.minimum(share / self.probabilities[heavy], 0.999))
        return -z, float(np.max(self.sensitivities[heavy] / self.sigma + quantile))

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""
        low, high = self._reach(tail)
        loss, _ = self.loss(np.array([low, high]))
        return float(loss[0]), float(loss[1])

    def nodes(self, tail: float) -> Nodes:
        """Return a coarse quadrature of the pair, exact enough to choose grids with."""
        low, high = self._reach(tail)
        x = np.linspace(low, high, int(min(4000, max(257, (high - low) * 24))))
        loss, _ = self.loss(x)
        log_q = -0.5 * x * x - 0.5 * np.log(2 * np.pi) + np.log(x[1] - x[0])
        return Nodes(loss, log_q + loss, log_q)

    def outputs(self, edges: Floats) -> tuple[Floats, float]:
        """Return outputs [n] (in units of sigma) at which the loss equals `edges`, and a bound on the miss in loss."""
        positive = self.sensitivities > 0
        slope = self.sensitivities[positive] / self.sigma
        log_weight = self._log_weights[positive]
        zero = self.probabilities[~positive].sum()
        floor = np.log(zero) if zero > 0 else -np.inf
        x = np.full(edges.shape, -np.inf)
        inside = edges > floor + 1e-300
        if not positive.any():
            # Nothing but the zero shift is left: the loss is the same everywhere.
            x[inside] = np.inf
            return x, 0.0
        if not inside.any():
            return x, 0.0
        target = edges[inside]
        # Newton on log(excess over the floor): with zero-shift mass the loss flattens to the left, its excess does not.
        excess = target if zero == 0 else target + np.log(-np.expm1(floor - target))
        # Start: invert a table by cubic interpolation, which is nearly exact wherever the table reaches.
        high = float(np.min((target[-1] - log_weight) / slope))
        low = min(-12.0, high - 1.0)
        table_x = np.linspace(low, high, int(min(6000, max(200, (high - low) * 24))))
        table, rise = _log_sums(log_weight, slope, table_x)
        j = np.clip(np.searchsorted(table, excess) - 1, 0, len(table_x) - 2)
        width = np.maximum(table[j + 1] - table[j], 1e-300)
        t = np.clip((excess - table[j]) / width, 0.0, 1.0)
        gap = table_x[1] - table_x[0]
        left, right = width / (gap * rise[j]) - 1, width / (gap * rise[j + 1]) - 1
        start = table_x[j] + gap * np.clip(t + t * (1 - t) * ((1 - t) * left - t * right), 0.0, 1.0)
        # Below the table the excess is nearly one exponential: start right of the root.
        below = excess <= table[0]
        if below.any():
            start[below] = np.min((excess[below] - log_weight[:, None]) / slope[:, None], axis=0)
        miss = np.inf
        for _ in range(40):
            value, derivative = _log_sums(log_weight, slope, start)
            change = (value - excess) / derivative
            start = start - change
            # value is convex in x with curvature at most slope_max^2 / 4: the error after the step is second order.
            miss = float(np.max(0.5 * change * change)) * float(slope.max()) ** 2 / 4
            if miss < 1e-14:
                break
        x[inside] = start
        return x, miss + 8 * _UNIT * float(np.max(np.abs(edges), initial=1.0))

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""
        x, miss = self.outputs(edges)
        ends = np.concatenate([[-np.inf], x, [np.inf]])
        q = gaussian_masses(ends)
        p = np.zeros_like(q)
        for s, w in zip(self.sensitivities / self.sigma, self.probabilities, strict=True):
            p += w * (gaussian_masses(ends - s) if s else q)
        with np.errstate(invalid="ignore"):
            width = np.where(np.isfinite(ends[:-1]) & np.isfinite(ends[1:]), ends[1:] - ends[:-1], 1.0)
        with np.errstate(divide="ignore"):
            error = 4 * _UNIT * (1 + 1 / np.minimum(width, 1.0)) + 2e-13
        error[width <= 0] = 0.0
        return Cells(p, q, error, miss)


@dataclass(frozen=True)
class AtomPair(_Whole):
    """A pair with finitely many outputs: `log_p` and `log_q` of each (minus infinity where an output cannot happen)."""

    log_p: Floats
    log_q: Floats
    error: float = 1e-14
    _sorted: tuple[Floats, Floats, Floats] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        alive = (self.log_p > -np.inf) | (self.log_q > -np.inf)
        log_p, log_q = self.log_p[alive], self.log_q[alive]
        loss = log_p - log_q
        order = np.argsort(loss, kind="stable")
        object.__setattr__(self, "_sorted", (loss[order], np.exp(log_p[order]), np.exp(log_q[order])))

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""
        loss, p, q = self._sorted
        finite = np.isfinite(loss)
        index = np.searchsorted(edges, loss[finite], side="left")
        n = len(edges) + 1
        return Cells(
            np.bincount(index, p[finite], n),
            np.bincount(index, q[finite], n),
            np.full(n, self.error + 4 * len(p) * _UNIT),
            8 * _UNIT * float(np.max(np.abs(edges), initial=1.0)),
            float(p[loss == np.inf].sum()),
            float(q[loss == -np.inf].sum()),
        )

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""
        loss, p, q = self._sorted
        finite = np.isfinite(loss)
        if not finite.any():
            return 0.0, 0.0
        above = np.cumsum(p[::-1])[::-1]
        below = np.cumsum(q)
        high = loss[finite & (above > tail)]
        low = loss[finite & (below > tail)]
        return float(low.min() if low.size else 0.0), float(high.max() if high.size else 0.0)

    def nodes(self, tail: float) -> Nodes:
        """Return the atoms of finite loss."""
        loss, p, q = self._sorted
        finite = np.isfinite(loss)
        alive = finite & (p > 1e-290) & (q > 1e-290)
        if not alive.any():
            return Nodes(np.zeros(1), np.zeros(1), np.zeros(1))
        return Nodes(loss[alive], np.log(p[alive]), np.log(q[alive]))

    @property
    def bound(self) -> float:
        """Largest absolute loss: a pure epsilon; infinite if some output is impossible for one of the two."""
        return float(np.abs(self._sorted[0]).max()) * (1 + 1e-12)


@dataclass(frozen=True)
class LaplacePair(_Whole):
    """P = Laplace(s, b) against Q = Laplace(0, b), ratio s / b = `loss_bound`: a pure epsilon."""

    loss_bound: float

    @property
    def bound(self) -> float:
        """The ratio of shift to scale."""
        return self.loss_bound * (1 + 1e-15)

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""
        e = self.loss_bound
        # The loss is clip(2x - e, -e, e) for x in units of b: atoms of mass at both ends, a smooth middle.
        x = np.clip((edges + e) / 2, 0.0, e)

        left, right = np.concatenate([[0.0], x]), np.concatenate([x, [e]])
        middle = -np.expm1(left - right)
        q = 0.5 * np.exp(-left) * middle
        p = 0.5 * np.exp(right - e) * middle
        bottom, top = np.searchsorted(edges, [-e, e], side="left")
        q[bottom] += 0.5
        p[bottom] += 0.5 * np.exp(-e)
        p[top] += 0.5
        q[top] += 0.5 * np.exp(-e)
        with np.errstate(divide="ignore"):
            error = 8 * _UNIT * (1 + (1 + e) / np.where(right > left, right - left, 1.0))
        return Cells(p, q, error, 8 * _UNIT * float(np.max(np.abs(edges), initial=1.0)))

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""
        return -self.loss_bound, self.loss_bound

    def nodes(self, tail: float) -> Nodes:
        """Return a coarse quadrature of the pair, exact enough to choose grids with."""
        edges = np.linspace(-self.loss_bound, self.loss_bound, 402)
        cells = self.cells(edges[1:-1])
        with np.errstate(divide="ignore"):
            log_p, log_q = np.log(cells.p), np.log(cells.q)
        loss = np.concatenate([[-self.loss_bound], (edges[1:-2] + edges[2:-1]) / 2, [self.loss_bound]])
        return Nodes(loss, log_p, log_q)


@dataclass(frozen=True)
class DoubleMixturePair(_Whole):
    """P = sum_j v_j N(b_j, 1) against Q = sum_i w_i N(-a_i, 1): something removed and something inserted at once.

    Both ratios of the mixtures to N(0, 1) are monotone in opposite senses, so the loss increases with the output.
    Shifts are in units of the noise.
    """

    right: Floats
    right_weights: Floats
    left: Floats
    left_weights: Floats

    def loss(self, x: Floats) -> tuple[Floats, Floats]:
        """Return the loss at outputs `x` [n] and its derivative [n]."""
        up, up_slope = MixturePair(1.0, self.right, self.right_weights).loss(x)
        down, down_slope = MixturePair(1.0, self.left, self.left_weights).loss(-x)
        return up - down, up_slope + down_slope

    def _reach(self, tail: float) -> tuple[float, float]:
        low = MixturePair(1.0, self.left, self.left_weights)._reach(tail)[1]
        high = MixturePair(1.0, self.right, self.right_weights)._reach(tail)[1]
        return -low, high

    def span(self, tail: float) -> tuple[float, float]:
        """Return losses (low, high) with Q(loss < low) <= tail and P(loss > high) <= tail."""
        loss, _ = self.loss(np.array(self._reach(tail)))
        return float(loss[0]), float(loss[1])

    def _log_densities(self, x: Floats) -> tuple[Floats, Floats]:
        base = -0.5 * x * x - 0.5 * np.log(2 * np.pi)
        up, _ = MixturePair(1.0, self.right, self.right_weights).loss(x)
        down, _ = MixturePair(1.0, self.left, self.left_weights).loss(-x)
        return base + up, base + down

    def nodes(self, tail: float) -> Nodes:
        """Return a coarse quadrature of the pair, exact enough to choose grids with."""
        low, high = self._reach(tail)
        x = np.linspace(low, high, int(min(4000, max(257, (high - low) * 24))))
        log_p, log_q = self._log_densities(x)
        width = np.log(x[1] - x[0])
        return Nodes(log_p - log_q, log_p + width, log_q + width)

    def cells(self, edges: Floats) -> Cells:
        """Return the masses of P and Q between increasing privacy losses `edges`."""
        low = np.full(edges.shape, -60.0 - float(self.left.max() + self.right.max()))
        high = -low
        # The loss increases strictly: bisect all edges at once, then take the residual as slack.
        for _ in range(64):
            middle = (low + high) / 2
            under = self.loss(middle)[0] < edges
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        x = (low + high) / 2
        found, _ = self.loss(x)
        reached = (x > low.min() + 1e-6) & (x < high.max() - 1e-6)
        miss = float(np.max(np.abs(found - edges)[reached], initial=0.0))
        x = np.maximum.accumulate(
            np.where(edges < found - miss - 1e-9, -np.inf, np.where(edges > found + miss + 1e-9, np.inf, x))
        )
        ends = np.concatenate([[-np.inf], x, [np.inf]])
        lower, upper = ends[:-1], ends[1:]
        p, q = np.zeros(len(lower)), np.zeros(len(lower))
        for s, w in zip(self.right, self.right_weights, strict=True):
            p += w * gaussian_masses(ends - s)
        for s, w in zip(self.left, self.left_weights, strict=True):
            q += w * gaussian_masses(ends + s)
        with np.errstate(invalid="ignore", divide="ignore"):
            width = np.where(np.isfinite(lower) & np.isfinite(upper), upper - lower, 1.0)
            error = 4 * _UNIT * (1 + 1 / np.minimum(width, 1.0)) + 2e-13
        error[width <= 0] = 0.0
        return Cells(p, q, error, miss + 8 * _UNIT * float(np.max(np.abs(edges), initial=1.0)))
