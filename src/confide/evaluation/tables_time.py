"""Tables over time: numbers of visits, gaps, courses, and how much a patient's visits belong together. Internal.

>>> import numpy as np
>>> owner = np.array([0, 0, 1, 1])
>>> round(intraclass_correlation(np.array([1.0, 1.0, 5.0, 5.0]), owner), 2)
1.0
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from confide.evaluation.tables import CodedTable, Floats, Ints, total_variation

Values = npt.NDArray[np.float64]


def gaps(time: Values, patient: Ints) -> Values:
    """Return the time between neighbouring visits of a patient; rows are in order within a patient."""
    same = patient[1:] == patient[:-1]
    return np.asarray(np.diff(time)[same], dtype=np.float64)


def gap_edges(low: float, high: float, bins: int = 10) -> Floats:
    """Return public bin edges of gaps for a declared range of times: zero, then growing to the whole range."""
    return np.concatenate([[-np.inf, 1e-9], np.geomspace((high - low) / 500, high - low, bins)[:-1], [np.inf]])


def histogram_shares(values: Values, edges: Floats) -> Floats:
    """Return the share of values in each bin (zeros if there are none)."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    return np.asarray(counts / max(counts.sum(), 1.0), dtype=np.float64)


def count_shares(counts: Ints, starts: tuple[int, ...]) -> Floats:
    """Return the share of patients in each public bin of the number of visits; bins begin at `starts`."""
    place = np.clip(np.searchsorted(np.asarray(starts), counts, side="right") - 1, 0, None)
    found = np.bincount(place, minlength=len(starts)).astype(np.float64)
    return np.asarray(found / max(found.sum(), 1.0), dtype=np.float64)


def intraclass_correlation(values: Values, patient: Ints) -> float:
    """Return how much of the variance of a number lies between patients (one-way ICC; nan if undefined).

    Notes
    -----
    ANOVA estimate for unequal numbers of visits: (MSB - MSW) / (MSB + (n0 - 1) MSW), with n0 the adjusted mean number
    (Shrout and Fleiss 1979; Donner 1986). Missing values are left out.
    """
    keep = np.isfinite(values)
    y = values[keep]
    _, owner = np.unique(patient[keep], return_inverse=True)
    owner = owner.reshape(-1)
    k = np.bincount(owner).astype(np.float64)
    n, total = len(k), float(k.sum())
    if n < 2 or total <= n:
        return float("nan")
    means = np.bincount(owner, weights=y) / k
    between = float((k * (means - y.mean()) ** 2).sum()) / (n - 1)
    within = float(((y - means[owner]) ** 2).sum()) / (total - n)
    typical = (total - float((k**2).sum()) / total) / (n - 1)
    scale = between + (typical - 1) * within
    return (between - within) / scale if scale > 0 else float("nan")


def lag_correlation(values: Values, patient: Ints) -> float:
    """Return the correlation of a number with its value at the patient's next visit (nan if undefined)."""
    same = (patient[1:] == patient[:-1]) & np.isfinite(values[1:]) & np.isfinite(values[:-1])
    a, b = values[:-1][same], values[1:][same]
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def course(time: Values, values: Values, edges: Floats) -> Values:
    """Return the mean of a number in each bin of time, nan where a bin holds fewer than five values."""
    keep = np.isfinite(values) & np.isfinite(time)
    place = np.clip(np.searchsorted(edges, time[keep], side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(place, minlength=len(edges) - 1)
    total = np.bincount(place, weights=values[keep], minlength=len(edges) - 1)
    return np.where(count >= 5, total / np.maximum(count, 1), np.nan)


def missing_patterns(table: CodedTable, gap_cells: dict[str, int]) -> Floats:
    """Return the shares of patterns of missing values over the first ten columns that can be missing.

    Parameters
    ----------
    gap_cells : mapping of column to the code that means "missing"
    """
    names = [name for name in table.columns if name in gap_cells][:10]
    code = np.zeros(len(table.patient), dtype=np.int64)
    for name in names:
        code = 2 * code + (table.columns[name] == gap_cells[name])
    counts = np.bincount(code, minlength=2 ** len(names)).astype(np.float64)
    return np.asarray(counts / max(counts.sum(), 1.0), dtype=np.float64)


def pattern_distance(a: CodedTable, b: CodedTable, gap_cells: dict[str, int]) -> float:
    """Return the total variation between patterns of missing values."""
    return total_variation(missing_patterns(a, gap_cells), missing_patterns(b, gap_cells))
