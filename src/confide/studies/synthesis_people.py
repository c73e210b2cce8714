"""Who takes part in a synthesis, in memory or on disk: everybody in the tables but those set aside by public rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from confide.evaluation import split_contributors
from confide.ledger import Cohort, Ledger
from confide.synthesis.coding import Bools, Coded, read_coded
from confide.synthesis.domain import Ints
from confide.synthesis.spool import StreamedCoded, read_streamed, streams
from confide.synthesis.study import SynthesisStudy

IDS_AT_ONCE = 100_000


@dataclass(frozen=True, repr=False, eq=False)
class People:
    """Private: those who take part, how many do not, and (for paid figures) those whom the public coin set aside."""

    coded: Coded | StreamedCoded
    aside: int
    held_out: Coded | None = None

    def classes(self, levels: list[str]) -> Ints:
        """Return the class of everybody: the number of their consent level."""
        found = self.coded.level_numbers(levels)
        return np.zeros(self.coded.panel.patients, dtype=np.int64) if found is None else found

    def members(self, ledger: Ledger) -> list[str] | Cohort:
        """Return whom the ledger charges; millions are registered from their file, a set at a time."""
        if isinstance(self.coded, Coded):
            ids: list[str] = self.coded.ids.tolist()
            return ids
        return ledger.register_parquet(self.coded.ids_file, "id")

    def digest(self, class_of: Ints) -> str:
        """Return a fingerprint of who was charged what."""
        found = hashlib.sha256(class_of.tobytes())
        if isinstance(self.coded, Coded):
            found.update("".join(f"\n{one}" for one in self.coded.ids.tolist()).encode())
            return found.hexdigest()
        ids = pl.scan_parquet(self.coded.ids_file)
        for start in range(0, len(class_of), IDS_AT_ONCE):
            some = ids.slice(start, IDS_AT_ONCE).collect()["id"].to_list()
            found.update("".join(f"\n{one}" for one in some).encode())
        return found.hexdigest()


def gather(
    study: SynthesisStudy, *, base: Path, spool: Path, progress: Callable[[str], None] = lambda what: None
) -> People:
    """Read and check the tables, and leave out who is set aside.

    Parameters
    ----------
    spool : Path
        Empty private folder, for tables that are read a part at a time.
    progress : function, optional
        Told what is being done.

    Raises
    ------
    InputError
        The data do not fit the study; nothing was spent.
    """
    if streams(study, base=base):
        streamed = read_streamed(
            study, base=base, folder=spool, set_aside=lambda coded: set_aside(study, coded), progress=progress
        )
        return People(streamed, streamed.aside)
    everybody = read_coded(study, base=base)
    out = set_aside(study, everybody)
    held_out = everybody.subset(by_coin(study, everybody) & ~after_cut(study, everybody))
    return People(everybody.subset(~out), int(np.count_nonzero(out)), held_out)


def set_aside(study: SynthesisStudy, coded: Coded) -> Bools:
    """Mark the patients who take no part: the public coin, and those after the cut of a prediction over time.

    Everybody's side depends on their own id and their own date alone.
    """
    return by_coin(study, coded) | after_cut(study, coded)


def by_coin(study: SynthesisStudy, coded: Coded) -> Bools:
    """Mark the patients whom the public coin sets aside."""
    section = study.evaluation
    key = hashlib.blake2b((section.split or study.name).encode(), digest_size=32, person=b"confide tables").digest()
    return split_contributors(coded.ids.tolist(), holdout=section.holdout, key=key)


def after_cut(study: SynthesisStudy, coded: Coded) -> Bools:
    """Mark the patients at or after the cut in time; without such a date a patient counts as early."""
    later = study.evaluation.over_time
    if later is None:
        return np.zeros(len(coded.ids), dtype=bool)
    series = coded.cells["patients"][later.column]
    column = study.patients.columns[later.column]
    numbers = (series.cast(int) if column.type == "date" else series).cast(float)
    return np.asarray(numbers.fill_null(-np.inf).to_numpy() >= column.number(later.cut), dtype=bool)
