"""Event tables beside the main ones: each is generated from the patient's row, and joined to synthetic patients.

The engine models patients and visits jointly. A further event table (relapses, treatments) gets a model of its own: the
patient's columns it depends on, and its events. To link it, a pool of synthetic patients is drawn from that model, and
every patient of the main table takes the events of a pool patient with the same values in those columns; where the pool
has none, columns are dropped from the end of the list until one is found. All of this happens on released figures and
costs nothing. Where the study says that an event table stands beside others, the number of rows a patient has there is
one more column. What it cannot carry over is a dependence between events and visits that neither explains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from confide.synthesis.base import NoisyModel
from confide.synthesis.domain import Ints, Panel

POOL = 3
SMALLEST_POOL = 2_000


def events_for(patients: Ints, model: NoisyModel, rng: np.random.Generator) -> Panel:
    """Return the event panel of given synthetic patients.

    Parameters
    ----------
    patients : int64 array, shape (patients, columns given to the event model)
        Codes of the main table's synthetic patients.
    model : NoisyModel
        Of the event table.
    """
    pool = model.sample(max(POOL * len(patients), SMALLEST_POOL), rng=rng)
    donor = _donors(patients, pool.static, rng)
    counts = pool.counts[donor]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(pool.starts[donor], counts) + offsets
    return Panel(model.domain, patients, pool.visit[rows], counts)


def _donors(wanted: Ints, pool: Ints, rng: np.random.Generator) -> Ints:
    donor = np.full(len(wanted), -1, dtype=np.int64)
    for columns in range(wanted.shape[1], -1, -1):
        open_ = np.flatnonzero(donor < 0)
        if not len(open_):
            break
        keys = np.unique(
            np.concatenate([wanted[open_, :columns], pool[:, :columns]]) if columns else np.zeros(
                (len(open_) + len(pool), 1), dtype=np.int64
            ),
            axis=0,
            return_inverse=True,
        )[1].reshape(-1)  # fmt: skip
        mine, theirs = keys[: len(open_)], keys[len(open_) :]
        donor[open_] = _matched(mine, theirs, rng)
    return donor


def _matched(mine: Ints, theirs: Ints, rng: np.random.Generator) -> Ints:
    """Give every key a random pool row with the same key, -1 where there is none; rows are used as evenly as can be."""
    order = np.lexsort((rng.random(len(theirs)), theirs))
    keys, first, number = np.unique(theirs[order], return_index=True, return_counts=True)
    at = np.clip(np.searchsorted(keys, mine), 0, len(keys) - 1)
    found = keys[at] == mine
    mixed = np.lexsort((rng.random(len(mine)), mine))
    rank = np.empty(len(mine), dtype=np.int64)
    sorted_keys = mine[mixed]
    rank[mixed] = np.arange(len(mine)) - np.searchsorted(sorted_keys, sorted_keys, side="left")
    return np.where(found, order[first[at] + rank % number[at]], -1).astype(np.int64)


def bins_of(counts: Ints, starts: Sequence[int]) -> Ints:
    """Return the public bin of each number of rows."""
    place = np.searchsorted(np.asarray(starts, dtype=np.int64), counts, side="right") - 1
    return np.clip(place, 0, None).astype(np.int64)


def linked_patients(panel: Panel, names: Sequence[str]) -> Ints:
    """Return the codes of some patient columns by name."""
    have = [column.name for column in panel.domain.static]
    return panel.static[:, [have.index(name) for name in names]]
