"""One temperature for the logits, chosen privately on validation contributors: calibration for a small price.

>>> import numpy as np
>>> from confide.mechanisms import SeededNoise
>>> rng = np.random.default_rng(0)
>>> y = rng.integers(0, 2, 2000)
>>> logits = 8.0 * (2 * np.where(rng.random(2000) < 0.85, y, 1 - y) - 1)           # right in 85 %, sure of 99.97 %
>>> found = fit_temperature(logits, y, np.arange(2000), epsilon=1.0, noise=SeededNoise(1))
>>> 3.5 < found.value < 6.5                                                        # 8 / log(0.85 / 0.15) = 4.6
True

The temperature is chosen from a public grid by the exponential mechanism with the Brier score, in which every
contributor weighs 1 (the mean over their entries, between 0 and 1). The Brier score is proper, so its best
temperature is a calibrated one, and it is bounded by itself: nothing is clipped, hence nothing biased, and the size
of the grid costs nothing. Adding a person lowers all utilities, so the mechanism is monotone and exp(epsilon u) is
enough. The cost is that of a Laplace mechanism with scale 1 / epsilon (bounded range), charged to the validation
contributors, who take no part in training. Dividing all logits by one number changes no ranking and no most likely
class.

References
----------
Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks. ICML 2017. Zhang, Li, Sen, Hashimoto: A closer
look at the calibration of differentially private learners. ICLR 2023 (there by DP gradient descent on the log-loss).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.mechanisms import NoiseSource, Released, private_selection

GRID = tuple(float(v) for v in np.round(np.geomspace(0.25, 16.0, 73), 6))


def brier(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the Brier score of each entry, between 0 and 1 (half the squared distance for several classes).

    Parameters
    ----------
    logits : float64 array, shape (entries,) or (entries, classes)
    labels : int64 array, shape (entries,)
    """
    z = np.nan_to_num(np.asarray(logits, dtype=np.float64))
    if z.ndim == 1:
        truth = np.clip(labels, 0, 1)  # whatever a label says, one entry's score stays between 0 and 1
        return np.asarray((1 / (1 + np.exp(-np.clip(z, -700, 700))) - truth) ** 2)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(labels)), np.clip(labels, 0, z.shape[1] - 1)] -= 1.0
    return np.asarray((p**2).sum(axis=1) / 2)


def utilities(
    logits: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    grid: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return minus the Brier score at each temperature, summed over contributors, each the mean over their entries."""
    _, who = np.unique(owners, return_inverse=True)
    each = 1.0 / np.bincount(who)[who] if len(who) else np.empty(0)
    return np.array([-float(np.sum(each * brier(logits / t, labels))) for t in grid])


def fit_temperature(
    logits: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    *,
    epsilon: float,
    noise: NoiseSource,
    grid: tuple[float, ...] = GRID,
) -> Released[float]:
    """Choose a temperature privately.

    Parameters
    ----------
    logits : float64 array, shape (entries,) or (entries, classes)
        Of the validation contributors; a value that is not finite counts as 0 (or the largest number).
    labels : int64 array, shape (entries,)
    owners : int64 array, shape (entries,)
        Contributor of each entry. With nobody there the choice is uniform over the grid.
    epsilon : float
        Price for every validation contributor.
    noise : NoiseSource
    grid : tuple of float
        Public temperatures to choose from.

    Returns
    -------
    Released
        The temperature, and what it cost.

    Raises
    ------
    InputError
        A grid with a temperature that is not above 0.
    """
    values = np.asarray(grid, dtype=np.float64)
    if len(values) == 0 or not (np.isfinite(values) & (values > 0)).all():
        raise InputError("the grid of temperatures is not positive", where="temperature", expected="numbers above 0")
    found = private_selection(utilities(logits, labels, owners, values), epsilon=epsilon, noise=noise, monotone=True)
    return Released(float(values[found.value]), found.mechanism)
