"""Dependence in few numbers: scores of columns, their noisy correlations, and what is left of them without the noise.

A two-way table of 6 x 6 cells costs 36 noisy numbers; most of what a medical table has in it is one: how the scores of
two ordered columns move together. Each column gets one score if it is ordered (normal scores of its released shares,
a gap counting as 0, and one more for "missing"), cells - 1 if it is not. Products of scores of all pairs are released
together, so that the whole correlation matrix costs about as much as a few tables. Noise is then taken off it twice:
by its spectrum (few directions stand out of a random symmetric matrix; Donoho, Gavish and Johnstone, "Optimal shrinkage
of eigenvalues in the spiked covariance model", AoS 2018, for a Wigner noise matrix), and entry by entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from confide.synthesis.contributions import Var
from confide.synthesis.domain import Column, Floats

# Shares are mixed with this much of the uniform distribution before scores are scaled, so that a cell that is rare (or
# drowned in noise) gets no huge score.
SMOOTHING = 0.1
SPECTRAL_ROUNDS = 30


def score_basis(p: Floats, column: Column) -> Floats:
    """Return the scores of a column's cells, shape (cells, scores): centred and orthonormal under `p` (smoothed).

    Parameters
    ----------
    p : float array, shape (cells,)
        Released shares.
    column : Column
    """
    n = len(p)
    if n == 1:
        return np.zeros((1, 0))
    q = (1 - SMOOTHING) * p + SMOOTHING / n
    raw: list[Floats] = []
    if column.ordinal and n - column.missing >= 2:
        ordered = n - int(column.missing)
        inside = q[:ordered] / q[:ordered].sum()
        middle = np.cumsum(inside) - inside / 2
        score = np.zeros(n)
        score[:ordered] = special.ndtri(middle)
        score[:ordered] -= inside @ score[:ordered]
        raw.append(score)
        if column.missing:
            raw.append(np.eye(n)[-1])
    else:
        largest = int(np.argmax(q))
        raw = [np.eye(n)[cell] for cell in range(n) if cell != largest]
    basis: list[Floats] = []
    for vector in raw:
        left = vector - q @ vector
        for other in basis:
            left = left - (q * other) @ left * other
        basis.append(left / math.sqrt(max(float(q @ left**2), 1e-12)))
    return np.column_stack(basis)


def score_scale(p: Floats, basis: Floats) -> Floats:
    """Return the mean absolute value of each score: a correlation times two of them is about the total variation."""
    q = (1 - SMOOTHING) * p + SMOOTHING / len(p)
    return np.asarray(q @ np.abs(basis), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scaled scores of every variable.

    Attributes
    ----------
    basis : mapping Var -> float array, shape (cells, scores)
        Orthonormal scores times their scale (and the weight of the target).
    scale : mapping Var -> float array, shape (scores,)
    """

    basis: Mapping[Var, Floats]
    scale: Mapping[Var, Floats]

    @classmethod
    def of(cls, shares: Mapping[Var, Floats], columns: Mapping[Var, Column], weight: Mapping[Var, float]) -> Scores:
        """Build from released shares."""
        basis, scale = {}, {}
        for var, p in shares.items():
            plain = score_basis(p, columns[var])
            scale[var] = score_scale(p, plain) * weight.get(var, 1.0)
            basis[var] = plain * scale[var]
        return cls(basis, scale)

    def unscaled(self, var: Var) -> Floats:
        """Return orthonormal scores, shape (cells, scores)."""
        var = Var("visit", var.position) if var.kind == "lag" else var
        return np.asarray(self.basis[var] / np.maximum(self.scale[var], 1e-12), dtype=np.float64)


def shrink_eigenvalues(matrix: Floats, deviation: float) -> Floats:
    """Return a symmetric matrix with its eigenvalues shrunk optimally for noise of `deviation` in every entry."""
    values, vectors = np.linalg.eigh(matrix)
    edge = 4 * len(matrix) * deviation**2
    kept = np.sign(values) * np.sqrt(np.maximum(values**2 - edge, 0.0))
    return np.asarray((vectors * kept) @ vectors.T, dtype=np.float64)


def denoise(noisy: Floats, known: Floats, deviation: float) -> Floats:
    """Return the posterior guess of a symmetric matrix whose `known` entries were seen with noise.

    Parameters
    ----------
    noisy : float array, shape (F, F)
    known : bool array, shape (F, F)
        False for entries that were not measured (scores of one column among themselves).
    deviation : float
    """
    if not known.any():
        return np.zeros_like(noisy)
    spectral = np.zeros_like(noisy)
    filled = np.where(known, noisy, 0.0)
    for _ in range(SPECTRAL_ROUNDS):
        spectral = shrink_eigenvalues(filled, deviation)
        filled = np.where(known, noisy, spectral)
    rest = np.where(known, noisy - spectral, 0.0)
    # what the spectrum left out is believed as far as it is larger than noise
    variance = max(float((rest[known] ** 2).mean()) - deviation**2, 0.0)
    return np.asarray(spectral + rest * variance / (variance + deviation**2), dtype=np.float64)


def pull_together(values: Floats, deviations: Floats) -> Floats:
    """Return noisy numbers of one kind shrunk towards their common mean (empirical Bayes)."""
    if not len(values):
        return values
    precision = 1 / deviations**2
    mean = float(precision @ values / precision.sum())
    spread = max(float((precision * ((values - mean) ** 2 - deviations**2)).sum() / precision.sum()), 0.0)
    trust = spread / (spread + deviations**2)
    return np.asarray(mean + trust * (values - mean), dtype=np.float64)


def offsets(scores: Scores, variables: Sequence[Var]) -> dict[Var, slice]:
    """Return where each variable's scores stand in the matrix."""
    found, at = {}, 0
    for var in variables:
        width = scores.basis[var].shape[1]
        found[var] = slice(at, at + width)
        at += width
    return found
