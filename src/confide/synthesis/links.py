"""The second pass of the default method: how the scores of all pairs of columns move together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from confide.synthesis.chain import Linked
from confide.synthesis.contributions import Block, Patients, Var, batch_rows, block_size
from confide.synthesis.domain import Domain, Floats
from confide.synthesis.first import column_of, ones, per_patient
from confide.synthesis.scores import Scores, denoise, offsets, pull_together

CHUNK_BYTES = 48 << 20


@dataclass(frozen=True, eq=False)
class Products:
    """Products of scores of the two columns of every block, side by side in one vector."""

    domain: Domain
    blocks: tuple[Block, ...]
    scores: Scores

    def basis(self, var: Var) -> Floats:
        """Return the scaled scores of a variable."""
        return self.scores.basis[Var("visit", var.position) if var.kind == "lag" else var]

    def shape(self, block: Block) -> tuple[int, int]:
        """Return how many products a block has."""
        assert block.left is not None
        return self.basis(block.left).shape[1], self.basis(block.right).shape[1]

    @property
    def typical(self) -> float:
        """Root mean squared norm of one row's products if columns were independent: the clip."""
        total = 0.0
        for block in self.blocks:
            assert block.left is not None
            left, right = (
                self.scores.scale[Var("visit", v.position) if v.kind == "lag" else v] for v in (block.left, block.right)
            )
            total += float((left**2).sum() * (right**2).sum())
        return math.sqrt(total) or 1.0

    def total(self, panel: Patients, centres: Mapping[Var, Floats], *, clip: float, scale: Floats | None) -> Floats:
        """Return the clipped sum over patients: patient rows and visits (weight 1/k) side by side."""
        maps = []
        for block in self.blocks:
            assert block.left is not None
            maps.append(np.kron(self.basis(block.left), self.basis(block.right)))
        width = sum(m.shape[1] for m in maps)
        cells = max(block_size(self.domain, block) for block in self.blocks)
        size = max(1, CHUNK_BYTES // (8 * (width + 3 * cells)))
        total = np.zeros(width)
        for start, part in panel.blocks(size):
            rows = np.concatenate(
                [
                    batch_rows(part, [b], centres, clip=math.inf, weight=ones if b.level == "patient" else per_patient)
                    @ m
                    for b, m in zip(self.blocks, maps, strict=True)
                ],
                axis=1,
            )
            factor = np.minimum(1.0, clip / np.maximum(np.linalg.norm(rows, axis=1), 1e-300))
            if scale is not None:
                factor = factor * scale[start : start + part.patients]
            total += factor @ rows
        return total


def products_of(
    domain: Domain, blocks: Sequence[Block], shares: Mapping[Var, Floats], target_weight: float
) -> Products:
    """Return the products to release, with the target's scores weighted up."""
    columns = {var: column_of(domain, var) for var in shares}
    weight = {var: target_weight for var, column in columns.items() if column.name == domain.target}
    return Products(domain, tuple(blocks), Scores.of(shares, columns, weight))


def read_links(
    products: Products, noisy: Floats, deviation: float, *, patients: float, with_visits: float, with_lag: float
) -> Linked:
    """Return the covariances of scores that a noisy vector of products speaks for.

    Parameters
    ----------
    noisy : float array
        Released vector.
    deviation : float
        Of its noise.
    patients, with_visits, with_lag : float
        Mass of patient rows, of visits, and of visits with a previous one (at weight 1/k).
    """
    variables = list(products.scores.basis)
    scale = products.scores.scale
    place = offsets(products.scores, variables)
    size = sum(basis.shape[1] for basis in products.scores.basis.values())
    matrix, known = np.zeros((size, size)), np.zeros((size, size), dtype=bool)
    parts: dict[Block, Floats] = {}
    at = 0
    for block in products.blocks:
        shape = products.shape(block)
        parts[block] = noisy[at : at + shape[0] * shape[1]].reshape(shape)
        at += shape[0] * shape[1]
        assert block.left is not None
        if block.left.kind != "lag":
            mass = patients if block.level == "patient" else with_visits
            matrix[place[block.left], place[block.right]] = parts[block] / mass
            matrix[place[block.right], place[block.left]] = (parts[block] / mass).T
            known[place[block.left], place[block.right]] = known[place[block.right], place[block.left]] = True
    clean = denoise(matrix, known, deviation / patients)
    basis = {var: products.scores.unscaled(var) for var in variables}
    covariance, variance = {}, {}
    lags = [block for block in products.blocks if block.left is not None and block.left.kind == "lag"]
    for block in products.blocks:
        assert block.left is not None
        if block.left.kind == "lag":
            continue
        units = np.outer(scale[block.left], scale[block.right])
        covariance[block] = clean[place[block.left], place[block.right]] / units
        variance[block] = (deviation / patients / units) ** 2
    if lags and with_lag > 0.02 * patients:
        squares = {b: np.outer(scale[b.right], scale[b.right]) for b in lags}
        own = np.concatenate([(parts[b] / squares[b]).diagonal() / with_lag for b in lags])
        errors = np.concatenate([deviation / squares[b].diagonal() / with_lag for b in lags])
        pulled = np.split(pull_together(own, errors), np.cumsum([len(squares[b]) for b in lags])[:-1])
        for block, diagonal in zip(lags, pulled, strict=True):
            covariance[block] = np.diag(np.clip(diagonal, -0.97, 0.97))
            variance[block] = (deviation / with_lag / squares[block]) ** 2
    return Linked(basis, covariance, variance)
