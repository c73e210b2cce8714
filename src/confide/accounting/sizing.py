"""Where a read-out sits: tilt, loss and lattice step from a coarse quadrature. No bound depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from confide.accounting.pairs import Floats, Nodes


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
    return float(np.exp(np.interp(np.log(max(gap, 1e-12)), np.log(np.maximum(gaps, 1e-300)), np.log(steps))))


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
    with np.errstate(over="ignore"):
        share = float(np.clip((value - key[j - 1]) / max(key[j] - key[j - 1], 1e-300), 0.0, 1.0))

    def at(values: Floats) -> float:
        return float((1 - share) * values[j - 1] + share * values[j])

    tilt = float(np.exp(at(np.log(found.orders))))
    log_bound = at(found.log_moment - found.orders * found.mean)
    spread = max(at(found.variance), 0.0) ** 0.5
    return Sizing(tilt, at(found.mean), spread, steps * (tilt + 1), at(found.log_delta), log_bound)
