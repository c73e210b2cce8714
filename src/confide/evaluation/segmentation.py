"""Overlap and distance of two segmentations, in two or three dimensions.

>>> import numpy as np
>>> truth, found = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
>>> truth[2:6, 2:6], found[3:7, 2:6] = True, True
>>> dice(truth, found), hd95(truth, found)
(0.75, 1.0)

References
----------
Dice, "Measures of the amount of ecologic association between species", 1945. Maier-Hein et al., "Metrics reloaded",
Nature Methods 2024 (Hausdorff distance at the 95th percentile of surface distances).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError
from confide.evaluation.bootstrap import Estimate, check_interval


def dice(truth: ArrayLike, found: ArrayLike) -> float:
    """Return twice the overlap over the sum of both volumes; 1 where both are empty.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    a, b = _pair(truth, found)
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2.0 * int((a & b).sum()) / total


def hd95(truth: ArrayLike, found: ArrayLike, *, spacing: Sequence[float] | float = 1.0) -> float:
    """Return the larger of the two 95th percentiles of distances from one surface to the other.

    Parameters
    ----------
    truth, found : boolean array, shape (height, width) or (depth, height, width)
    spacing : float or sequence of float
        Size of a voxel along each axis, for example in millimetres; the result has the same unit.

    Returns
    -------
    float
        0 where both are empty, infinity where one is.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    a, b = _pair(truth, found)
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return float("inf")
    edge_a, edge_b = a & ~binary_erosion(a), b & ~binary_erosion(b)
    to_b = distance_transform_edt(~edge_b, sampling=spacing)[edge_a]
    to_a = distance_transform_edt(~edge_a, sampling=spacing)[edge_b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def evaluate_masks(
    truth: Sequence[ArrayLike],
    found: Sequence[ArrayLike],
    contributors: ArrayLike,
    *,
    spacing: Sequence[float] | float = 1.0,
    replicates: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> dict[str, Estimate]:
    """Measure segmentations on held-out people, every person counting once. The result is internal: nothing is noised.

    Parameters
    ----------
    truth, found : sequence of boolean arrays, one for each entry
        Shapes (height, width) or (depth, height, width), which may differ from entry to entry.
    contributors : array, shape (n entries,)
        Whose entry each is.
    spacing : float or sequence of float
        As for `hd95`.
    replicates, level, rng
        Bootstrap over contributors; `rng` defaults to one seeded by the operating system.

    Returns
    -------
    dict of str to Estimate
        "dice" and "hd95", each the mean over people of the mean over their entries. Where one of two masks is empty the
        distance counts as the diagonal of the picture, which no distance exceeds.

    Raises
    ------
    InputError
        Numbers of masks and contributors differ or are 0, or two masks have different shapes.
    """
    owner = np.asarray(contributors)
    if owner.ndim != 1 or not len(truth) == len(found) == owner.size > 0:
        raise InputError(
            f"{len(truth)} true masks, {len(found)} found ones and {owner.size} contributors",
            expected="the same number of each, at least 1",
        )
    check_interval(level, replicates)
    each = []
    for a, b in zip(truth, found, strict=True):
        shape = np.asarray(a).shape
        diagonal = float(np.linalg.norm(np.broadcast_to(spacing, (len(shape),)) * np.array(shape)))
        each.append((dice(a, b), min(hd95(a, b, spacing=spacing), diagonal)))
    _, of_entry = np.unique(owner, return_inverse=True)
    counts = np.bincount(of_entry)
    generator = np.random.default_rng() if rng is None else rng
    times = generator.multinomial(counts.size, np.full(counts.size, 1.0 / counts.size), size=replicates) / counts.size
    tail = (1.0 - level) / 2.0
    out = {}
    for name, values in zip(("dice", "hd95"), np.array(each).T, strict=True):
        people = np.bincount(of_entry, weights=values) / counts
        means = np.clip(times @ people, people.min(), people.max())  # a mean of ones may round above one
        low, high = np.quantile(means, [tail, 1.0 - tail])
        out[name] = Estimate(float(people.mean()), float(low), float(high), level, counts.size, owner.size)
    return out


def _pair(truth: ArrayLike, found: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    a, b = np.asarray(truth).astype(bool), np.asarray(found).astype(bool)
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise InputError(
            f"the masks have shapes {a.shape} and {b.shape}", expected="the same shape, two or three dimensions"
        )
    return a, b
