"""The Renyi cost of a plan with the rarest outputs set apart, for the admission rule.

A contributor with many entries could, with a probability like 1e-60, have twenty of them in one step; with little noise
one output in a billion says a great deal. Such outputs hardly matter to (epsilon, delta), but they rule every Renyi
divergence: at 13 entries and noise multiplier 1 it is useless at all orders that a ledger could declare. So the outputs
beyond a threshold are set apart: their probability (over all steps) is charged to a part of delta of its own, and the
Renyi divergence is that of the rest. `confide.ledger.filter` has the proof that a filter may do so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy import special

from confide.accounting import ApproximateBudget, Exponential, Guarantee, SampledGaussian

Floats = npt.NDArray[np.float64]

_SAFETY = 1 + 1e-9  # covers the rounding of the sums below
_NEGLIGIBLE = 1e-40  # draws rarer than this are set apart before anything else


def costs(
    guarantee: Guarantee,
    orders: tuple[float, ...],
    tails: tuple[float, ...],
    enough: tuple[float, ...] | None = None,
) -> Iterator[tuple[Floats, float]]:
    """Yield (Renyi divergence at each order, probability set apart) of a whole plan for several allowed tails.

    Parameters
    ----------
    guarantee : Guarantee
        The plan of one class.
    orders : tuple of float
        Orders above 1.
    tails : tuple of float
        The largest probability that may be set apart in each alternative; 0 sets nothing apart.
    enough : tuple of float, optional
        A divergence at each order beyond which the number does not matter: where a quick lower bound passes it, the
        divergence is given as infinite and no integral is taken.
    """
    rdp, apart = np.zeros((len(tails), len(orders))), np.zeros(len(tails))
    allowed = np.asarray(tails)
    for mechanism, steps in guarantee.parts:
        if isinstance(mechanism, ApproximateBudget):
            # its failure is set apart, where so much may be; what remains is pure
            pure, failure = Exponential(mechanism.epsilon), steps * mechanism.failure
            fits = allowed * (1 + 1e-9) >= failure
            whole = np.where(fits[:, None], steps * np.asarray(pure.rdp(np.asarray(orders))), np.inf)
            rdp, apart = rdp + whole, apart + np.where(fits, failure, 0.0)
            continue
        whole = np.full(len(orders), np.inf)
        wanted = np.ones(len(orders), dtype=bool)
        if enough is not None and type(mechanism) is SampledGaussian:
            wanted = steps * at_least(mechanism, orders) <= np.asarray(enough) * (1 + 1e-6)
        if wanted.any():
            whole[wanted] = steps * np.asarray(mechanism.rdp(np.asarray(orders)[wanted]), dtype=np.float64)
        rows, extra = np.tile(whole, (len(tails), 1)), np.zeros(len(tails))
        if type(mechanism) is SampledGaussian and 0 < mechanism.rate < 1 and mechanism.clip_norm > 0:
            cut = np.flatnonzero(allowed > 0)
            noise = mechanism.noise_multiplier / mechanism.clip_norm
            share = allowed[cut] / (steps * len(guarantee.parts))
            values, missing = clipped(noise, mechanism.rate, mechanism.entries, orders, share)
            better = np.isfinite(values).all(axis=1)
            rows[cut[better]], extra[cut[better]] = steps * values[better], steps * missing[better]
        rdp, apart = rdp + rows, apart + extra
    yield from zip(rdp, apart.tolist(), strict=True)


def at_least(mechanism: SampledGaussian, orders: tuple[float, ...]) -> Floats:
    r"""Return a lower bound of the Renyi divergence per step at each order, without an integral.

    P is at least any one of its components w_i N(i c, sigma^2), so that with s = i c / sigma::

        log E_Q[(P/Q)^a] / (a - 1) >= a / (a - 1) log w_i + a s^2 / 2 .
    """
    if mechanism.rate == 0 or mechanism.clip_norm == 0 or mechanism.entries == 0:
        return np.zeros(len(orders))
    from scipy import stats  # slow to import, and only the charge of a sampled mechanism needs it

    # about the most likely number: with many entries few draws are as unlikely as not worth a look
    first = max(0, min(int(mechanism.entries * mechanism.rate), mechanism.entries) - 500)
    drawn = np.arange(first, min(mechanism.entries, first + 1000) + 1)
    log_w = stats.binom.logpmf(drawn, mechanism.entries, mechanism.rate)
    alive = log_w > -600.0  # the accountant leaves out what is rarer
    shift = drawn[alive] * mechanism.clip_norm / mechanism.noise_multiplier
    a = np.asarray(orders)[:, None]
    found: Floats = np.max(a / (a - 1) * log_w[alive] + a * shift**2 / 2, axis=1)
    return np.maximum(found, 0.0)


def clipped(noise: float, rate: float, entries: int, orders: tuple[float, ...], tails: Floats) -> tuple[Floats, Floats]:
    r"""Return the Renyi divergence per step without the outputs beyond a threshold, and what they weigh.

    With q = N(0, noise^2), p = sum_i Binomial(i; entries, rate) N(i, noise^2) and r = p/q, which grows with x: at
    each order a the larger of log of the integral of q r^a over x <= x0, and log E_q[r^(1-a)], over a - 1, where x0
    is the smallest threshold beyond which p has at most the allowed mass. Both integrals are taken as 1 + the
    integral of q (r^b - 1 - b (r - 1)), whose integrand is never negative, so that small divergences keep their
    digits; what this leaves out is never positive.

    Returns
    -------
    tuple of ndarray
        Divergences, shape (tails, orders), and masses set apart, shape (tails,).
    """
    from scipy import stats

    rare = np.flatnonzero(stats.binom.sf(np.arange(1, min(entries, 400)), entries, rate) <= _NEGLIGIBLE)
    most = int(rare[0]) + 1 if len(rare) else entries
    weights = stats.binom.pmf(np.arange(most + 1), entries, rate)
    missing = float(stats.binom.sf(most, entries, rate))
    # The grid is fine enough for the steepest order; the last point counts fully, which outweighs the error at the cut.
    step = min(noise, noise * noise) / (20 * max(1.0, max(orders) / 4))
    x = np.arange(-14 * noise, most + 40 * noise + step, step)
    if len(x) * most > 40_000_000:
        return np.full((len(tails), len(orders)), np.inf), np.zeros(len(tails))

    ends = weights[0] * special.ndtr(-x / noise)
    for i in range(1, most + 1):
        ends = ends + weights[i] * special.ndtr((i - x) / noise)
    tail = (missing + ends) * _SAFETY
    cut = np.array([int(np.searchsorted(-tail, -limit)) for limit in tails])
    log_q = -0.5 * (x / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
    q = np.exp(log_q)
    less_one, moved = np.full(len(x), -missing), -missing * q
    log_ratio = np.full(len(x), np.log(weights[0]) if weights[0] > 0 else -np.inf)
    for i in range(1, most + 1):
        if weights[i] <= 0:
            continue
        exponent = (i * x - 0.5 * i * i) / noise**2
        less_one += weights[i] * np.expm1(np.minimum(exponent, 700.0))
        moved += weights[i] * (np.exp(exponent + log_q) - q)
        log_ratio = np.logaddexp(log_ratio, np.log(weights[i]) + exponent)
    small = np.abs(less_one) < 1e-4
    u, small_ratio = np.where(small, less_one, 0.0), np.where(small, log_ratio, 0.0)
    values = np.empty((len(tails), len(orders)))
    inside = cut < len(x)
    for k, order in enumerate(orders):
        parts = []
        for power in (order, 1.0 - order):
            # For a small r - 1 = u the bracket is at most b (b - 1) / 2 * u^2 * max(1, (1 + u)^(b - 2)).
            near = 0.5 * power * (power - 1) * u**2 * np.exp(np.maximum(0.0, (power - 2) * small_ratio)) * q
            with np.errstate(over="ignore"):
                far = np.exp(power * log_ratio + log_q) - q - power * moved
            parts.append(np.where(small, near, np.maximum(far, 0.0)) * step * _SAFETY)
        # Remove: up to the threshold. Add: everything, with the draws beyond `most` missing from p.
        removed = np.cumsum(parts[0])[np.minimum(cut, len(x) - 1)]
        added = float(np.sum(parts[1])) + (order - 1) * missing
        values[:, k] = np.log1p(np.maximum(removed, added)) / (order - 1)
    values[~inside] = np.inf
    return values, np.where(inside, tail[np.minimum(cut, len(x) - 1)], 0.0)
