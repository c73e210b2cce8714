"""The second pass of the default method: how the scores of all pairs of columns move together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from confide.synthesis.chain_fit import Linked
from confide.synthesis.contributions import Block, Patients, Var, batch_rows, block_size
from confide.synthesis.domain import Domain, Floats, Panel
from confide.synthesis.first import column_of, ones, per_patient
from confide.synthesis.history import OWN_PAST, lagged, past_mean, same_as_before, visits_before
from confide.synthesis.scores import Scores, denoise, offsets, pull_together

CHUNK_BYTES = 48 << 20
# Where the share of visits in the bin of the visit before is counted from.
HALF = 0.5
# A patient's own past and the regularity of visits are few numbers and decide how a whole history looks.
OWN_WEIGHT, GAP_WEIGHT = 2.0, 4.0


@dataclass(frozen=True, eq=False)
class Products:
    """Products of scores of the two columns of every block, side by side in one vector."""

    domain: Domain
    blocks: tuple[Block, ...]
    scores: Scores

    def basis(self, var: Var) -> Floats:
        """Return the scaled scores of a variable."""
        return self.scores.basis[Var("visit", var.position) if var.kind in OWN_PAST else var]

    def shape(self, block: Block) -> tuple[int, ...]:
        """Return the shape of a block's products: all pairs of scores, or each score with its own past."""
        assert block.left is not None
        if block.left.kind == "gap":
            return (1,)
        wide = self.basis(block.right).shape[1]
        return (wide,) if block.left.kind in OWN_PAST else (self.basis(block.left).shape[1], wide)

    def rows(self, panel: Panel, block: Block, centres: Mapping[Var, Floats]) -> Floats:
        """Return every patient's products of one block, shape (patients, products)."""
        assert block.left is not None
        if block.left.kind not in (*OWN_PAST, "gap"):
            weight = ones if block.level == "patient" else per_patient
            both = np.kron(self.basis(block.left), self.basis(block.right))
            return batch_rows(panel, [block], centres, clip=math.inf, weight=weight) @ both
        if block.left.kind == "gap":
            same = same_as_before(panel, block.right.position) - HALF * (visits_before(panel) > 0)
            regular = np.bincount(panel.of_visit, same, panel.patients).astype(np.float64)
            return GAP_WEIGHT * (regular * per_patient(panel.counts))[:, None]
        score = self.basis(block.right) - centres[block.right] @ self.basis(block.right)
        now = score[panel.visit[:, block.right.position]]
        before = lagged(panel, now) if block.left.kind == "lag" else past_mean(panel, now)
        total = np.zeros((panel.patients, now.shape[1]))
        np.add.at(total, panel.of_visit, now * before)
        return OWN_WEIGHT * total * per_patient(panel.counts)[:, None]

    @property
    def typical(self) -> float:
        """Root mean squared norm of one row's products if columns were independent: the clip."""
        total = 0.0
        for block in self.blocks:
            assert block.left is not None
            if block.left.kind == "gap":
                total += (GAP_WEIGHT * HALF) ** 2
                continue
            if block.left.kind in OWN_PAST:
                total += OWN_WEIGHT**2 * float((self.scores.scale[block.right] ** 4).sum())
                continue
            left, right = self.scores.scale[block.left], self.scores.scale[block.right]
            total += float((left**2).sum() * (right**2).sum())
        return math.sqrt(total) or 1.0

    def total(self, panel: Patients, centres: Mapping[Var, Floats], *, clip: float, scale: Floats | None) -> Floats:
        """Return the clipped sum over patients: patient rows and visits (weight 1/k) side by side."""
        width = sum(math.prod(self.shape(block)) for block in self.blocks)
        cells = max(block_size(self.domain, block) for block in self.blocks)
        size = max(1, CHUNK_BYTES // (8 * (width + 3 * cells)))
        total = np.zeros(width)
        for start, part in panel.blocks(size):
            rows = np.concatenate([self.rows(part, block, centres) for block in self.blocks], axis=1)
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
        parts[block] = noisy[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
        assert block.left is not None
        if block.left.kind not in (*OWN_PAST, "gap"):
            mass = patients if block.level == "patient" else with_visits
            matrix[place[block.left], place[block.right]] = parts[block] / mass
            matrix[place[block.right], place[block.left]] = (parts[block] / mass).T
            known[place[block.left], place[block.right]] = known[place[block.right], place[block.left]] = True
    clean = denoise(matrix, known, deviation / patients)
    basis = {var: products.scores.unscaled(var) for var in variables}
    covariance, variance = {}, {}
    for block in products.blocks:
        assert block.left is not None
        if block.left.kind in (*OWN_PAST, "gap"):
            continue
        units = np.outer(scale[block.left], scale[block.right])
        covariance[block] = clean[place[block.left], place[block.right]] / units
        variance[block] = (deviation / patients / units) ** 2
    same: tuple[float, float] | None = None
    if with_lag > 0.02 * patients:
        for block, (own, error) in _own_past(products, parts, deviation, with_lag).items():
            covariance[block], variance[block] = np.diag(own), np.diag(error**2)
        for block in (b for b in products.blocks if b.left is not None and b.left.kind == "gap"):
            same = (float(parts[block][0]) / GAP_WEIGHT / with_lag + HALF, deviation / GAP_WEIGHT / with_lag)
    return Linked(basis, covariance, variance, same)


def _own_past(
    products: Products, parts: Mapping[Block, Floats], deviation: float, mass: float
) -> dict[Block, tuple[Floats, Floats]]:
    """Return correlations of every score with its value at the visit before, and with its mean over all visits before.

    Columns are pulled to their common mean. What a patient keeps for good shows in both, so that the second is at most
    the first.
    """
    found: dict[Block, tuple[Floats, Floats]] = {}
    for kind in OWN_PAST:
        blocks = [b for b in products.blocks if b.left is not None and b.left.kind == kind]
        if not blocks:
            continue
        squares = [OWN_WEIGHT * np.maximum(products.scores.scale[b.right] ** 2, 1e-12) for b in blocks]
        own = np.concatenate([parts[b] / q / mass for b, q in zip(blocks, squares, strict=True)])
        errors = np.concatenate([deviation / q / mass for q in squares])
        edges = np.cumsum([len(q) for q in squares])[:-1]
        for block, value, error in zip(
            blocks, np.split(pull_together(own, errors), edges), np.split(errors, edges), strict=True
        ):
            low, high = -0.97, np.full(len(value), 0.97)
            if kind == "past":
                before = found.get(Block("visit", block.right, Var("lag", block.right.position)))
                low, high = 0.0, np.clip(before[0], 0.0, 0.97) if before is not None else high
            found[block] = np.clip(value, low, high), error
    return found
