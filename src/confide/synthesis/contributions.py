"""What one patient adds to a table of counts, centred, under one weight per patient and batch.

A block is a one-way or two-way table over the rows of a patient. Its contribution of a patient is the sum over the
patient's rows of (indicator - centre), for two columns of (indicator - centre) x (indicator - centre), where the centre
is a distribution that was released before. A batch is several blocks side by side; its contribution vector g_u is
scaled by the patient's row weight and then clipped as a whole:

    y = sum_u min(1, C / ||w_u g_u||) w_u g_u,        so that removing one patient moves y by at most C (L2).

Centring is what makes clipping cheap: a patient whose visits are spread like the population's adds little, however many
visits there are, so the bound C sits near the typical norm rather than at the worst case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from confide.synthesis.domain import Domain, Floats, Ints, Panel

CHUNK_BYTES = 48 << 20


@dataclass(frozen=True, order=True)
class Var:
    """A column as seen from a row: a static one, the number of visits, a visit's own, or what came before.

    Attributes
    ----------
    kind : "count", "static", "visit", "lag" (the visit before) or "past" (all visits before; scores only) or "gap"
        (whether the bin of the visit before is the same; for times)
    position : int
        Position among the static or the visit columns; 0 for "count".
    """

    kind: str
    position: int = 0


@dataclass(frozen=True)
class Block:
    """A one-way (`left` is None) or two-way table.

    Attributes
    ----------
    level : "patient" or "visit"
        Whether a patient's rows are the one static row or the visits.
    """

    level: str
    right: Var
    left: Var | None = None


def cells_of(domain: Domain, var: Var) -> int:
    """Return how many values a variable takes."""
    if var.kind == "count":
        return len(domain.count_starts)
    return (domain.static if var.kind == "static" else domain.visit)[var.position].cells


def name_of(domain: Domain, var: Var) -> str:
    """Return a readable name of a variable."""
    if var.kind == "count":
        return "number of visits"
    if var.kind == "static":
        return domain.static[var.position].name
    return ("previous " if var.kind == "lag" else "") + domain.visit[var.position].name


def codes_of(panel: Panel, var: Var, level: str) -> Ints:
    """Return the codes of a variable, one for each row of the level; -1 where a visit has no previous one."""
    if var.kind == "count":
        codes = panel.count_codes()
    elif var.kind == "static":
        codes = panel.static[:, var.position]
    elif var.kind == "visit":
        return panel.visit[:, var.position]
    else:
        lagged = np.full(len(panel.visit), -1, dtype=np.int64)
        lagged[1:] = panel.visit[:-1, var.position]
        lagged[panel.starts[:-1][panel.counts > 0]] = -1
        return lagged
    return codes if level == "patient" else codes[panel.of_visit]


Centres = Mapping[Var, Floats]


def centre_of(centres: Centres, var: Var) -> Floats:
    """Return the centre of a variable; the previous visit's value has the centre of the value itself."""
    return centres[Var("visit", var.position)] if var.kind == "lag" else centres[var]


def block_size(domain: Domain, block: Block) -> int:
    """Return the number of cells of a block."""
    return cells_of(domain, block.right) * (cells_of(domain, block.left) if block.left is not None else 1)


def _block_rows(panel: Panel, block: Block, centres: Centres) -> Floats:
    """Return the centred contribution of every patient to one block, shape (patients, cells)."""
    n, right = panel.patients, codes_of(panel, block.right, block.level)
    owner = np.arange(n, dtype=np.int64) if block.level == "patient" else panel.of_visit
    b = cells_of(panel.domain, block.right)
    p_right = centre_of(centres, block.right)
    if block.left is None:
        total = np.bincount(owner * b + right, minlength=n * b).reshape(n, b).astype(np.float64)
        return np.asarray(total - total.sum(1, keepdims=True) * p_right, dtype=np.float64)
    left = codes_of(panel, block.left, block.level)
    a = cells_of(panel.domain, block.left)
    p_left = centre_of(centres, block.left)
    keep = left >= 0
    if not keep.all():
        owner, left, right = owner[keep], left[keep], right[keep]
    table = np.bincount((owner * a + left) * b + right, minlength=n * a * b).reshape(n, a, b).astype(np.float64)
    # sum over rows of (e_left - p)(e_right - q)' without a loop over rows
    table -= table.sum(2)[:, :, None] * p_right
    table -= p_left[:, None] * table.sum(1)[:, None, :]
    return table.reshape(n, a * b)


RowWeight = Callable[[Ints], Floats]


def batch_rows(
    panel: Panel,
    blocks: Sequence[Block],
    centres: Centres,
    *,
    clip: float,
    weight: RowWeight,
    scale: Floats | None = None,
) -> Floats:
    """Return the clipped contribution of every patient to a batch, shape (patients, cells of all blocks).

    Every row has Euclidean norm at most `clip` (times the patient's `scale`, at most 1).
    """
    rows = np.concatenate([_block_rows(panel, block, centres) for block in blocks], axis=1)
    rows *= np.asarray(weight(panel.counts), dtype=np.float64)[:, None]
    norms = np.linalg.norm(rows, axis=1)
    rows *= (np.minimum(1.0, clip / np.maximum(norms, 1e-300)) * (1.0 if scale is None else scale))[:, None]
    return rows


class Patients(Protocol):
    """Patients with their visits, in memory or on disk (`Panel`, `confide.synthesis.stream.StreamedPanel`)."""

    @property
    def domain(self) -> Domain:
        """Public domain."""

    @property
    def patients(self) -> int:
        """Number of patients (private)."""

    def blocks(self, size: int) -> Iterator[tuple[int, Panel]]:
        """Return (number of the first patient, panel of at most `size` patients), one after the other."""
        ...


def block_patients(cells: int) -> int:
    """Return how many patients' contributions of so many cells are held in memory at a time."""
    return max(1, CHUNK_BYTES // (8 * 3 * max(1, cells)))


def batch_sum(
    panel: Patients,
    blocks: Sequence[Block],
    centres: Centres,
    *,
    clip: float,
    weight: RowWeight,
    scale: Floats | None = None,
) -> Floats:
    """Return the sum over patients of `batch_rows`, in chunks of patients so that memory does not grow with them."""
    cells = sum(block_size(panel.domain, block) for block in blocks)
    total = np.zeros(cells)
    for start, piece in panel.blocks(block_patients(cells)):
        part = None if scale is None else scale[start : start + piece.patients]
        total += batch_rows(piece, blocks, centres, clip=clip, weight=weight, scale=part).sum(0)
    return total


def split(domain: Domain, blocks: Sequence[Block], vector: Floats) -> list[Floats]:
    """Cut a batch vector into one array per block."""
    edges = np.cumsum([block_size(domain, block) for block in blocks])[:-1]
    return list(np.split(vector, edges))
