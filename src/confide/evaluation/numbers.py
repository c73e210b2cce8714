"""How far predicted numbers are from the true ones, every person counting once.

>>> found = evaluate_numbers([1.0, 2.0, 4.0], [1.0, 3.0, 4.0], ["ada", "ada", "ben"])
>>> round(found["mean absolute error"].value, 3)
0.25
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.errors import InputError
from confide.evaluation.bootstrap import Estimate, check_interval

F64 = NDArray[np.float64]


def evaluate_numbers(
    truth: ArrayLike,
    found: ArrayLike,
    contributors: ArrayLike,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    rng: np.random.Generator | None = None,
) -> dict[str, Estimate]:
    """Measure predicted numbers on held-out people. The result is internal: nothing is noised.

    Parameters
    ----------
    truth, found : array, shape (n entries,)
    contributors : array, shape (n entries,)
        Whose entry each is.
    replicates, level, rng
        Bootstrap over contributors; `rng` defaults to one seeded by the operating system.

    Returns
    -------
    dict of str to Estimate
        "mean absolute error", "root mean squared error" and "R2" (1 - error / variance of the truth, at most 1, below 0
        where the mean would have been nearer). Every entry of a person with k entries weighs 1 / k. Where all people of
        a replicate have one true value, R2 is undefined and the replicate is left out and counted.

    Raises
    ------
    InputError
        Lengths that differ or are 0, a number that is not finite.
    """
    y, z, owner = np.asarray(truth, dtype=np.float64), np.asarray(found, dtype=np.float64), np.asarray(contributors)
    if y.ndim != 1 or y.shape != z.shape or y.shape != owner.shape or y.size == 0:
        raise InputError(
            f"true numbers, found ones and contributors have shapes {y.shape}, {z.shape} and {owner.shape}",
            expected="three arrays of one and the same length, at least 1",
        )
    if not (np.isfinite(y).all() and np.isfinite(z).all()):
        raise InputError("a true or predicted number is not finite", expected="finite numbers")
    check_interval(level, replicates)
    _, of_entry = np.unique(owner, return_inverse=True)
    counts = np.bincount(of_entry)
    columns = (np.abs(y - z), (y - z) ** 2, y, y**2)
    people = np.stack([np.bincount(of_entry, weights=one) / counts for one in columns], axis=1)
    generator = np.random.default_rng() if rng is None else rng
    times = generator.multinomial(counts.size, np.full(counts.size, 1.0 / counts.size), size=replicates) / counts.size
    drawn, whole = _figures(times @ people), _figures(people.mean(0)[None])
    tail = (1.0 - level) / 2.0
    out = {}
    for name, values in drawn.items():
        usable = values[np.isfinite(values)]
        low, high = np.quantile(usable, [tail, 1.0 - tail]) if usable.size else (np.nan, np.nan)
        undefined = int(values.size - usable.size)
        out[name] = Estimate(float(whole[name][0]), float(low), float(high), level, counts.size, owner.size, undefined)
    return out


def _figures(means: F64) -> dict[str, F64]:
    """Figures of each row of (mean absolute error, mean squared error, mean, mean square)."""
    absolute, squared, first, second = means.T
    spread = second - first**2
    # a spread that is rounding of a single value is none
    there = spread > 1e-12 * np.maximum(second, 1e-300)
    share = np.where(there, 1.0 - squared / np.where(there, spread, 1.0), np.nan)
    return {"mean absolute error": absolute, "root mean squared error": np.sqrt(squared), "R2": share}
