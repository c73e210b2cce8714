"""What stays with a patient: the visit before, and what is the patient's own over all visits.

The value at the visit before alone makes a patient forget: after a few visits nothing is left of what was there. Most
of what medical tables repeat from visit to visit belongs to the patient, a random effect. Its size shows in one number
a score: the correlation of a visit's score with the mean of the patient's visits before, which under a random effect is
the intraclass correlation whatever the number of visits. The generator draws the effect once a patient (standard
normal) and lets all visits look at it; nothing feeds back along a patient's visits, so that histories do not drift.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from confide.synthesis.domain import Floats, Ints, Panel

OWN_PAST = ("lag", "past")


def visits_before(panel: Panel) -> Ints:
    """Return how many visits of the same patient come before each visit."""
    return np.arange(len(panel.visit), dtype=np.int64) - np.repeat(panel.starts[:-1], panel.counts)


def lagged(panel: Panel, values: Floats) -> Floats:
    """Return every row's values at the patient's visit before, 0 at the first; values have one row a visit."""
    before = np.zeros_like(values)
    before[1:] = values[:-1]
    before[panel.starts[:-1][panel.counts > 0]] = 0.0
    return before


def same_as_before(panel: Panel, position: int) -> Floats:
    """Return 1 for visits whose value is that of the visit before, else 0 (and 0 for first visits)."""
    values = panel.visit[:, position]
    same = np.zeros(len(values))
    same[1:] = values[1:] == values[:-1]
    same[panel.starts[:-1][panel.counts > 0]] = 0.0
    return same


def share_of_same(panel: Panel, position: int) -> float:
    """Return the share of visits with the value of the visit before, every patient weighted the same."""
    weight = (visits_before(panel) > 0) / np.repeat(np.maximum(panel.counts, 1), panel.counts)
    return float(weight @ same_as_before(panel, position) / max(float(weight.sum()), 1e-12))


def past_mean(panel: Panel, values: Floats) -> Floats:
    """Return the mean of the patient's values over all visits before, 0 at the first."""
    total = np.cumsum(values, axis=0)
    first = panel.starts[:-1][panel.counts > 0]
    offset = np.zeros((len(first), values.shape[1]))
    offset[first > 0] = total[first[first > 0] - 1]
    before = total - values - np.repeat(offset, panel.counts[panel.counts > 0], axis=0)
    return np.asarray(before / np.maximum(visits_before(panel), 1)[:, None], dtype=np.float64)


def past_correlation(panel: Panel, score: Floats, position: int) -> Floats:
    """Return the mean product of each score with its mean over the visits before, every patient weighted the same.

    Parameters
    ----------
    score : float array, shape (cells, scores)
        Centred and orthonormal.
    """
    now = score[panel.visit[:, position]]
    weight = (visits_before(panel) > 0) / np.repeat(np.maximum(panel.counts, 1), panel.counts)
    return np.asarray(weight @ (now * past_mean(panel, now)) / max(float(weight.sum()), 1e-12), dtype=np.float64)


def effects(counts: Ints, scores: int, rng: np.random.Generator) -> Floats:
    """Draw random effects, shape (patients, scores): standard normal numbers, evenly spread over patients alike.

    The few patients with very many visits carry much of a table of visits; independent draws would leave it to chance
    what their effects are. Neighbours in the order of the number of visits get neighbours in a randomly shifted
    sequence of multiples of an irrational number, another one for each score.
    """
    place = np.empty(len(counts))
    place[np.lexsort((rng.random(len(counts)), counts))] = np.arange(len(counts))
    steps = np.sqrt(_primes(scores))[rng.permutation(scores)]
    spread = np.mod(place[:, None] * steps + rng.random(scores), 1.0)
    return np.asarray(special.ndtri(np.clip(spread, 1e-9, 1 - 1e-9)), dtype=np.float64)


def _primes(count: int) -> Floats:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return np.array(found, dtype=np.float64)
