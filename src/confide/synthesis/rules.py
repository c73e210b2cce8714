"""The public rules of the default method: what to measure, how heavily to clip, how to split the budget.

Every rule here is a function of public constants and of figures that were already released with noise. None looks at
the data, and none has a parameter to tune per table: the constants below were set once, on the tables of the benchmark
and on random ones, and are part of the method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from confide.synthesis.domain import Floats, Ints

# Mean |N(0,1)| / 2: total variation of a cell's noise in units of its standard deviation.
HALF_MEAN_ABSOLUTE = 0.4
# How far (in total variation) the visits of patients whose part is cut off lie from everybody's.
CUT_COST = 0.12
CAP_COST = 0.06
# The prior takes about a quarter off the error of a noisy one-way table.
POSTERIOR_GAIN = 0.75
# Share of a typical patient's contribution that all visits have in common.
COHERENCE = 0.7
# Usual correlation of what a patient has with the number of the patient's visits.
WEIGHT_CORRELATION = 0.2
CLIP_GRID = (
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1.0,
    1.15,
    1.3,
    1.5,
    1.75,
    2.0,
    2.5,
    3.0,
    4.0,
    6.0,
    9.0,
    14.0,
    20.0,
)


@dataclass(frozen=True)
class CountLaw:
    """The (noisy) distribution of the number of visits.

    Attributes
    ----------
    patients : float
        Released number of patients.
    values, p : float arrays
        Typical number of visits of each public bin, and its share of patients.
    """

    patients: float
    values: Floats
    p: Floats

    @property
    def mean(self) -> float:
        """Visits per patient."""
        return float(self.p @ self.values)


def count_values(starts: Sequence[int], max_visits: int, p: Floats) -> list[tuple[Ints, Floats]]:
    """Return, for every bin of the number of visits, the values in it with their probabilities.

    Within a bin the logarithm of the probability per value runs on a line between the bins beside it, so that wide bins
    do not put too much weight on their upper end.
    """
    first = np.asarray(starts, dtype=np.int64)
    last = np.append(first[1:] - 1, max(max_visits, int(first[-1])))
    density = np.log(np.maximum(p, 1e-6) / (last - first + 1))
    centre = (first + last) / 2
    result = []
    for low, high in zip(first, last, strict=True):
        values = np.arange(low, high + 1, dtype=np.int64)
        height = np.interp(values, centre, density)
        weight = np.exp(height - height.max())
        result.append((values, weight / weight.sum()))
    return result


@dataclass(frozen=True)
class Weighting:
    """Row weights min(1, cap / k), one clip for a patient's whole batch, and the expected sum of row weights."""

    cap: float
    clip: float
    mass: float


def visit_weighting(
    law: CountLaw,
    typical: float,
    noise: float,
    cells: float,
    *,
    caps: Sequence[float] | None = None,
    centre_error: float = 0.0,
) -> Weighting:
    """Choose cap and clip of a batch at visit level.

    Parameters
    ----------
    law : CountLaw
    typical : float
        Norm of one row's centred contribution, from released centres.
    noise : float
        Noise multiplier of the batch.
    cells : float
        Mean number of cells of its blocks.
    caps : sequence of float, optional
        The caps to choose from; with a single 1 every patient counts the same. Default: the bins of the law.
    centre_error : float
        Predicted error (total variation) of the centres.
    """
    k = np.maximum(law.values, 0.0)
    if caps is None:
        caps = sorted({max(1.0, float(v)) for v in k[k > 0]}) or [1.0]
    best, best_cost = Weighting(1.0, typical, law.patients), math.inf
    for cap in caps:
        weight = np.minimum(1.0, cap / np.maximum(k, 1.0))
        mass = law.patients * max(float(law.p @ (weight * k)), 0.05)
        norms = typical * weight * np.sqrt(COHERENCE * k**2 + (1 - COHERENCE) * k)
        # where noise says that nobody has visits, one visit a patient is the least that is prepared for
        mean_norm = max(float(law.p @ norms), typical * min(1.0, cap))
        capped = 0.0 if len(caps) == 1 else 1 - float(law.p @ (weight * k)) / max(law.mean, 1e-9)
        for factor in CLIP_GRID:
            clip = factor * mean_norm
            cut = float(law.p @ np.maximum(norms - clip, 0.0)) / max(mean_norm, 1e-12)
            error = HALF_MEAN_ABSOLUTE * cells * noise * clip / max(mass, 1e-9)
            # what is cut off stays at the centre: at its own error, and at the heavy patients' distance from everybody
            cost = POSTERIOR_GAIN * error + (CUT_COST + centre_error) * cut + CAP_COST * capped
            if cost < best_cost - 1e-12:
                best, best_cost = Weighting(cap, clip, mass), cost
    return best


def uneven_weights(law: CountLaw, cap: float) -> float:
    """Return how far shares of visits are expected to lie from shares of patients, for a share of standard deviation 1.

    The difference is the covariance of a patient's weight (over its mean) with the value: the coefficient of variation
    of the weights times a correlation, whose usual size is `WEIGHT_CORRELATION`. With the same number of visits
    everywhere it is 0, and both are one question.
    """
    weight = np.minimum(law.values, cap)
    mean = max(float(law.p @ weight), 1e-9)
    return WEIGHT_CORRELATION * math.sqrt(max(float(law.p @ (weight - mean) ** 2), 0.0)) / mean


def patient_clip(typical: float) -> float:
    """Return the clip of a batch at patient level: a little above the typical norm, since all patients have one row."""
    return 1.15 * typical


@dataclass(frozen=True)
class Candidate:
    """A two-way table that could be measured: its cells, released strength (total variation) and level."""

    cells: int
    strength: float
    level: str
    typical: float


@dataclass(frozen=True)
class Allocation:
    """Shares of the remaining budget and how many of the ordered candidates are measured."""

    patient_one_way: float
    visit_one_way: float
    patient_pairs: float
    visit_pairs: float
    chosen: int


def allocate(
    law: CountLaw,
    mu: float,
    *,
    patient_cells: Sequence[int],
    patient_typical: float,
    visit_cells: Sequence[int],
    visit_typical: float,
    candidates: Sequence[Candidate],
    per_patient: bool,
    pairs: int,
) -> Allocation:
    """Split what is left of the budget and decide how much structure to measure.

    Parameters
    ----------
    mu : float
        Gaussian budget that is left.
    candidates : sequence of Candidate
        Ordered, strongest first; the first so many are taken.
    pairs : int
        Number of two-way tables of the whole domain.

    Returns
    -------
    Allocation
        That with the smallest predicted mean error of two-way tables, over a fixed grid.
    """
    rows = law.patients * (1.0 if per_patient else law.mean)
    spread = 1.0 if per_patient else law.mean

    def noise_tv(cells: float, typical: float, share: float, mass: float, scale: float) -> float:
        error = HALF_MEAN_ABSOLUTE * cells * typical * scale / (mu * math.sqrt(share) * max(mass, 1e-9))
        return error / math.sqrt(1 + error**2 / 0.09)

    best, best_cost = Allocation(0.5, 0.5, 0.0, 0.0, 0), math.inf
    sizes = sorted({0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, len(candidates)})
    total_strength = sum(c.strength for c in candidates)
    for chosen in (s for s in sizes if s <= len(candidates)):
        picked = candidates[:chosen]
        static = [c for c in picked if c.level == "patient"]
        moving = [c for c in picked if c.level == "visit"]
        static_norm = math.sqrt(sum(c.typical**2 for c in static))
        moving_norm = math.sqrt(sum(c.typical**2 for c in moving))
        unmeasured = total_strength - sum(c.strength for c in picked)
        for for_pairs in (0.0,) if not picked else (0.15, 0.3, 0.45, 0.6, 0.75):
            for for_patients in (0.05, 0.1, 0.2, 0.35, 0.5) if visit_cells else (1.0,):
                one_way = 1 - for_pairs
                a, b = one_way * for_patients, one_way * (1 - for_patients)
                if static and moving:
                    c = for_pairs * static_norm / (static_norm + moving_norm * 1.0)
                else:
                    c = for_pairs if static else 0.0
                e = for_pairs - c
                cost = (0.6 if per_patient else 0.1) * noise_tv(
                    float(np.mean(patient_cells)), patient_typical, a, law.patients, 1.15
                )
                if visit_cells:
                    cost += 1.2 * noise_tv(float(np.mean(visit_cells)), visit_typical, b, rows, 1.3 * spread)
                left = unmeasured
                for group, norm, share, mass, scale in (
                    (static, static_norm, c, law.patients, 1.15),
                    (moving, moving_norm, e, rows, 1.3 * spread),
                ):
                    for candidate in group:
                        noisy = noise_tv(candidate.cells, norm, max(share, 1e-6), mass, scale)
                        left += min(candidate.strength, noisy)
                cost += left / max(pairs, 1)
                if cost < best_cost - 1e-12:
                    best, best_cost = Allocation(a, b, c, e, chosen), cost
    return best
