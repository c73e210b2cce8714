"""Patients as one wide row: static columns, then the first K visits side by side ("slots"), each with a cell for none.

This is how a tool for flat tables is given several visits per patient. Visits after the K-th are left out, which is
truncation: it costs no privacy and loses data. A patient is one row, so every table moves by at most 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confide.synthesis.domain import Domain, Floats, Ints, Panel


@dataclass(frozen=True)
class Slots:
    """The wide form of a domain.

    Attributes
    ----------
    domain : Domain
    visits : int
        K, public.
    """

    domain: Domain
    visits: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Cells of every wide column."""
        slot = [column.cells + 1 for column in self.domain.visit]
        return tuple([column.cells for column in self.domain.static] + slot * self.visits)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every wide column."""
        static = [column.name for column in self.domain.static]
        moving = [f"{column.name} at visit {k + 1}" for k in range(self.visits) for column in self.domain.visit]
        return tuple(static + moving)

    def rows(self, panel: Panel) -> Ints:
        """Return one wide row for each patient."""
        none = np.array([column.cells for column in self.domain.visit], dtype=np.int64)
        wide = np.broadcast_to(none, (panel.patients, self.visits, len(none))).copy()
        place = np.arange(len(panel.visit)) - panel.starts[panel.of_visit]
        kept = place < self.visits
        wide[panel.of_visit[kept], place[kept]] = panel.visit[kept]
        return np.concatenate([panel.static, wide.reshape(panel.patients, -1)], axis=1)

    def panel(self, rows: Ints, rng: np.random.Generator) -> Panel:
        """Return patients of wide rows.

        A model may draw "none" in some columns of a slot only. The slot is a visit if fewer than half of its columns
        say none, and what is missing then is drawn from the column's other values in the same slot of all rows.
        """
        n, d = len(rows), len(self.domain.static)
        wide = rows[:, d:].reshape(n, self.visits, len(self.domain.visit)).copy()
        there = np.zeros((n, self.visits), dtype=bool)
        if wide.shape[2]:
            none = np.array([column.cells for column in self.domain.visit], dtype=np.int64)
            there = (wide >= none).sum(axis=2) * 2 < len(none)
            for k in range(self.visits):
                for c, cells in enumerate(none):
                    values = wide[:, k, c]
                    gap = there[:, k] & (values >= cells)
                    known = values[values < cells]
                    pool = known if len(known) else np.arange(cells)
                    values[gap] = rng.choice(pool, int(gap.sum()))
        return Panel(self.domain, rows[:, :d].copy(), wide[there], there.sum(1).astype(np.int64))


def one_hot_gram(rows: Ints, sizes: tuple[int, ...], *, weights: Floats | None = None, block: int = 20_000) -> Floats:
    """Return all two-way tables at once, shape (all cells, all cells): the Gram matrix of the indicators."""
    edges = np.concatenate([[0], np.cumsum(sizes)])
    total = np.zeros((edges[-1], edges[-1]))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        # counts of a block are whole, so exact in float32; sums of weights are not, and would tell who else is there
        hot = np.zeros((len(part), edges[-1]), dtype=np.float32 if weights is None else np.float64)
        hot[np.arange(len(part))[:, None], part + edges[:-1]] = 1.0
        left = hot if weights is None else hot * weights[start : start + block, None]
        total += left.T @ hot
    return total
