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


def _pair(truth: ArrayLike, found: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    a, b = np.asarray(truth).astype(bool), np.asarray(found).astype(bool)
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise InputError(
            f"the masks have shapes {a.shape} and {b.shape}", expected="the same shape, two or three dimensions"
        )
    return a, b
