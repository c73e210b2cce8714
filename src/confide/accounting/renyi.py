"""Renyi divergences of the dominating pairs and their conversion to (epsilon, delta).

The ledger and the filters add these curves; epsilon is read from loss distributions, which are tighter.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from confide.accounting.pairs import Floats, MixturePair

#: Orders at which every Renyi curve is kept: a fixed public grid, so that curves of different releases add up.
RDP_ORDERS: Floats = np.concatenate(
    [
        [1.1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20],
        [24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 1024],
    ]
)
RDP_ORDERS.setflags(write=False)


def gaussian_rdp(mu: float, orders: Floats = RDP_ORDERS) -> Floats:
    """Return order * mu^2 / 2 [orders]."""
    return np.asarray(orders, float) * (mu * mu / 2)


def laplace_rdp(loss_bound: float, orders: Floats = RDP_ORDERS) -> Floats:
    """Return the Renyi divergences [orders] of Laplace noise with pure epsilon `loss_bound` (Mironov 2017, Prop. 6)."""
    a = np.asarray(orders, float)
    first = np.log(a / (2 * a - 1)) + (a - 1) * loss_bound
    second = np.log((a - 1) / (2 * a - 1)) - a * loss_bound
    return np.asarray(np.minimum(np.logaddexp(first, second) / (a - 1), loss_bound) * (1 + 1e-12))


def mixture_rdp(sigma: float, sensitivities: Floats, probabilities: Floats, orders: Floats = RDP_ORDERS) -> Floats:
    """Return Renyi divergences [orders] of a mixture pair, the larger direction, never below the true value.

    Trapezoidal quadrature of E_Q exp(order * loss) on a range that holds all but 1e-15 of the integral. The integrand
    is analytic with features no narrower than the noise, so the rule converges exponentially; 1e-9 is added.
    Orders whose range would need too many points give infinity.
    """
    orders = np.asarray(orders, float)
    keep = probabilities > 1e-290
    s, w = sensitivities[keep] / sigma, probabilities[keep]
    pair = MixturePair(1.0, s, w)
    top = float(s.max())
    spacing = min(0.2, 0.35 / max(top, 1e-3) if top > 1 else 0.2)
    out = np.full(orders.shape, np.inf)
    for i, a in enumerate(orders):
        low, high = -14.0 - top, a * top + 14.0
        points = int((high - low) / spacing)
        if points * len(s) > 4_000_000:
            continue
        x = low + spacing * np.arange(points + 1)
        loss, _ = pair.loss(x)
        base = -0.5 * x * x + np.log(spacing) - 0.5 * np.log(2 * np.pi)
        remove = float(special.logsumexp(base + a * loss)) / (a - 1)
        # Add: Q^a P^(1-a); mass moves left by at most (a - 1) times the largest shift.
        if probabilities[sensitivities == 0].sum() > 0:
            add = float(special.logsumexp(base + (1 - a) * loss)) / (a - 1)
        else:
            left = -14.0 - (a - 1) * top
            y = left + spacing * np.arange(int((14.0 - left) / spacing) + 1)
            other, _ = pair.loss(y)
            add = float(special.logsumexp(-0.5 * y * y + np.log(spacing) - 0.5 * np.log(2 * np.pi) + (1 - a) * other))
            add /= a - 1
        out[i] = max(remove, add, 0.0) * (1 + 1e-9) + 1e-13 / (a - 1)
    # A Renyi divergence grows with its order: an order that was too dear is bounded by nothing smaller, so infinity.
    return out


def rdp_epsilon(rdp: Floats, delta: float, orders: Floats = RDP_ORDERS) -> float:
    """Return epsilon(delta) of a Renyi curve (Canonne, Kamath and Steinke 2020, Proposition 12)."""
    a = np.asarray(orders, float)
    value = np.asarray(rdp) + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1)
    value = value[np.isfinite(value)]
    return max(float(value.min()), 0.0) if value.size else float("inf")


def atoms_rdp(log_p: Floats, log_q: Floats, orders: Floats = RDP_ORDERS) -> Floats:
    """Return Renyi divergences [orders] of finitely many outputs, the larger direction; infinite where Q misses one."""
    a = np.asarray(orders, float)[:, None]
    out = np.zeros(a.shape[0])
    for first, second in ((log_p, log_q), (log_q, log_p)):
        alive = first > -np.inf
        if np.any(second[alive] == -np.inf):
            return np.full(a.shape[0], np.inf)
        value = special.logsumexp(a * first[alive] + (1 - a) * second[alive], axis=1) / (a[:, 0] - 1)
        out = np.maximum(out, value)
    return np.asarray(out * (1 + 1e-12) + 1e-15)


def rdp_delta(rdp: Floats, epsilon: float, orders: Floats = RDP_ORDERS) -> float:
    """Return delta(epsilon) of a Renyi curve, by the same bound as `rdp_epsilon`."""
    a = np.asarray(orders, float)
    with np.errstate(over="ignore"):
        value = (a - 1) * (np.asarray(rdp) - epsilon + np.log1p(-1 / a)) - np.log(a)
    value = value[np.isfinite(value)]
    return float(np.exp(min(value.min(), 0.0))) if value.size else 1.0
