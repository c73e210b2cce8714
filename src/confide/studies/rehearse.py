"""A rehearsal: the whole of a study on random data made from its declared columns alone.

Neither data nor ledger are touched, so it can be run as often as one likes, by anybody who has the study file: it finds
a model that does not fit, a plan that no budget can meet, a step that is too slow.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from confide.data import ColumnSpec
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies.file import BudgetColumn, Paid, Study, load_study
from confide.studies.prepare import declared_counts

PEOPLE = 200


def random_table(
    study: Study, counts: dict[int, float] | None, *, people: int, rng: np.random.Generator
) -> pl.DataFrame:
    """Make a random table from the declared columns: uniform over bounds, categories and classes.

    Parameters
    ----------
    study : Study
    counts : {entries: contributors} or None
        Declared entry counts to draw the number of entries from; None: uniform up to the declared largest number.
    people : int
    rng : numpy Generator
    """
    if counts:
        ks = np.array(sorted(counts))
        share = np.array([counts[k] for k in sorted(counts)], dtype=float)
        entries = rng.choice(ks, size=people, p=share / share.sum())
    else:
        entries = rng.integers(1, (study.public.max_entries or 4) + 1, size=people)
    owner = np.repeat(np.arange(people), entries)
    source = study.data[0]
    columns: dict[str, Any] = {}
    for name, column in study.columns.items():
        if column.role != "ignore":
            columns[name] = _random_column(name, column, study, owner, people, rng)
    if source.contributor != "row":
        columns[source.contributor] = [f"rehearsal-{i:05d}" for i in owner]
    if source.entry is not None and source.entry not in columns:
        within = np.concatenate([np.arange(k) for k in entries]) if len(entries) else np.empty(0, dtype=np.int64)
        columns[source.entry] = within
    return pl.DataFrame(columns)


def _random_column(
    name: str, column: ColumnSpec, study: Study, owner: Any, people: int, rng: np.random.Generator
) -> Sequence[Any]:
    n = len(owner)
    budget = study.privacy.budget
    if isinstance(budget, BudgetColumn) and budget.column == name:
        levels = list(budget.levels)
        mine = rng.integers(0, len(levels), size=people)
        return [levels[i] for i in mine[owner]]
    if column.role == "label":
        assert column.classes is not None
        return [column.classes[i] for i in rng.integers(0, len(column.classes), size=n)]
    if column.categories is not None:
        return [column.categories[i] for i in rng.integers(0, len(column.categories), size=n)]
    if column.bounds is None:
        return [""] * n
    low, high = column.low_high
    if column.type == "real":
        return list(rng.uniform(low, high, size=n))
    whole = rng.integers(int(np.ceil(low)), int(np.floor(high)) + 1, size=n)
    if column.type == "date":
        start = datetime.date(1970, 1, 1)
        return [(start + datetime.timedelta(days=int(d))).isoformat() for d in whole]
    return [int(v) for v in whole]


def rehearse_study(path: str | Path, *, watcher: Any = None, device: str | None = None) -> list[str]:
    """Run a study file on random data in a temporary folder with a ledger of its own.

    Returns
    -------
    list of str
        What was tried and how long it took.
    """
    from confide.studies.run import run_study
    from confide.studies.watch import Quiet

    path = Path(path)
    study = load_study(path)
    if any(source.images is not None for source in study.data):
        raise InputError(
            "a study of images cannot be rehearsed from its columns alone",
            where="[[data]] images",
            remedy="train on a folder of public images with the same study file",
        )
    counts = declared_counts(study, path.parent)
    rng = np.random.default_rng()
    people = min(PEOPLE, study.public.max_contributors or PEOPLE)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="confide-rehearsal-") as folder:
        home = Path(folder)
        random_table(study, counts, people=people, rng=rng).write_parquet(home / "table.parquet")
        first = study.data[0]
        replaced = first.model_copy(
            update={"source": "table.parquet", "query": None, "sha256": None, "separator": ",", "decimal": "."}
        )
        Ledger.create(f"sqlite:///{home}/ledger.sqlite", cap_epsilon=1000.0, cap_delta=0.1).close()
        text = path.read_text(encoding="utf-8")
        outcome = run_study(
            path,
            watcher=watcher or Quiet(),
            ledger_url=f"sqlite:///{home}/ledger.sqlite",
            device=device,
            output=home / "releases",
            _replace=(study.model_copy(update={"data": (replaced,)}), text, home, path.parent),
        )
        sentence = outcome.sentence
    paid = isinstance(study.evaluation.metrics, Paid)
    return [
        f"Rehearsal on random data of {people} made-up people: plan, model, loss, engine, certificate and reports work "
        f"({time.monotonic() - began:.1f} s).",
        f"The real run would state: {sentence}",
        "Nothing was read, reserved, or kept." + (" Paid metrics were rehearsed as well." if paid else ""),
    ]
