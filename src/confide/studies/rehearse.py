"""A rehearsal: the whole of a study on random data made from its declared columns and pictures alone.

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

from confide.data import ColumnSpec, ImageSpec, SourceSpec
from confide.ledger import Ledger
from confide.studies.evaluation_section import Paid
from confide.studies.file import BudgetColumn, Study, load_study
from confide.studies.prepare import declared_counts
from confide.studies.targets import schema_of

PEOPLE = 200
# Pictures make a step slow and fill the disk: fewer people, and at most so many values in all their pictures together.
PEOPLE_OF_PICTURES, VALUES = 60, 50_000_000


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
    source = study.data[0]
    if source.contributor == "row":  # every row is a unit of its own
        entries = np.ones(people, dtype=np.int64)
    owner = np.repeat(np.arange(people), entries)
    columns: dict[str, Any] = {}
    for name, column in study.columns.items():
        if column.role != "ignore" and column.type != "mask":
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
    if column.role == "label" and column.classes is not None:
        assert column.classes is not None
        return [_alike(column.classes)[i] for i in rng.integers(0, len(column.classes), size=n)]
    if column.categories is not None:
        return [_alike(column.categories)[i] for i in rng.integers(0, len(column.categories), size=n)]
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


def _alike(values: Sequence[Any]) -> Sequence[Any]:
    """Values of one type for a table: 0, 0.5, 1 become text, as in a CSV file."""
    return values if len({type(value) for value in values}) == 1 else [str(value) for value in values]


def _people(study: Study) -> int:
    """How many people are made up: as many as the declared bound allows and as pictures leave room for."""
    bound = study.public.max_contributors or PEOPLE
    images = study.data[0].images
    if images is None:
        return min(PEOPLE, bound)
    room = VALUES // (int(np.prod(images.shape)) * (study.public.max_entries or 4))
    return min(PEOPLE_OF_PICTURES, bound, max(room, 12))


def _write(table: pl.DataFrame, study: Study, home: Path, rng: np.random.Generator) -> SourceSpec:
    """Write the table, with random pictures and masks of the declared size where there are any; say where it is now."""
    source = study.data[0]
    alone = {"query": None, "sha256": None, "separator": ",", "decimal": ".", "persons": None}
    if source.images is None:
        table.write_parquet(home / "table.parquet")
        return source.model_copy(update={"source": "table.parquet", **alone})
    images = source.images
    if images.mode == "mesh":
        assert images.column is not None
        _write_meshes(images, table.height, home, rng)
        named = table.with_columns(pl.Series(images.column, [f"{i}.npz" for i in range(table.height)]))
        named.write_parquet(home / "table.parquet")
        spec = images.model_copy(update={"folder": "."})
        return source.model_copy(update={"source": "table.parquet", "images": spec, **alone})
    name = "pictures"
    while name in table.columns:
        name += "_"
    axes = (*reversed(images.size), 3) if images.mode == "rgb" else tuple(reversed(images.size))
    pictures = rng.integers(0, 256, (table.height, *axes), dtype=np.uint8)
    columns = {c: np.array(table[c].to_list()) for c in table.columns}  # text as text: nothing pickled is ever read
    masks: dict[str, Any] = {}
    schema = schema_of(study)
    if schema.target == "mask":
        assert schema.label is not None
        label, column = schema.label
        name = f"{name}_" if name == label else name
        masks[label] = rng.choice(np.array(column.classes), (table.height, *reversed(images.size)))
    np.savez(home / "table.npz", **{name: pictures, **columns, **masks})
    spec = ImageSpec(array=name, mode=images.mode, size=images.size)
    return source.model_copy(update={"source": "table.npz", "images": spec, **alone})


def _write_meshes(images: ImageSpec, count: int, home: Path, rng: np.random.Generator) -> None:
    """Random surfaces of the largest declared size."""
    assert len(images.size) == 3
    assert images.bounds is not None
    coordinates, vertices, edges = images.size
    for i in range(count):
        points = rng.uniform(*images.bounds, (vertices, coordinates))
        np.savez(home / f"{i}.npz", vertices=points, edges=rng.integers(0, vertices, (edges, 2)))


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
    counts = declared_counts(study, path.parent)
    rng = np.random.default_rng()
    people = _people(study)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="confide-rehearsal-") as folder:
        home = Path(folder)
        replaced = _write(random_table(study, counts, people=people, rng=rng), study, home, rng)
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
    what = "data" if study.data[0].images is None else "pictures"
    return [
        f"Rehearsal on random {what} of {people} made-up people: plan, model, loss, engine, certificate and reports "
        f"work ({time.monotonic() - began:.1f} s).",
        f"The real run would state: {sentence}",
        "Nothing was read, reserved, or kept." + (" Paid metrics were rehearsed as well." if paid else ""),
    ]
