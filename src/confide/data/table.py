"""From declared sources to one table: entries, whose they are, features and labels.

>>> table = read_sources([SourceSpec(source="named:pbcseq", contributor="id", entry="day")], Schema.from_dict(
...     {"bili": {"type": "real", "bounds": [0.1, 60], "scale": "log"},
...      "status": {"role": "label", "classes": [0, 1, 2], "positive": [2]}}))
>>> table.features.shape, table.index.n_contributors
((1945, 1), 312)

A `Table` is private data; its `repr` shows nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.contributors import ContributorIndex
from confide.data.arrays import file_of, read_array
from confide.data.convert import Column, Counts, Origin, convert, convert_label, convert_number, more, text_of
from confide.data.ids import check_columns, linked_ids
from confide.data.image_spec import ImageSpec
from confide.data.images import image_paths, named_files, read_images
from confide.data.masks import read_mask_array, read_mask_files
from confide.data.meshes import read_meshes
from confide.data.readers import find_file, read_source
from confide.data.spec import Schema, SourceSpec
from confide.errors import InputError, nearest

F32 = npt.NDArray[np.float32]
# Classes as int64, masks as uint8, numbers as float32.
Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class SourceReport:
    """What happened to one source; counts depend on the data, so this is internal.

    Attributes
    ----------
    source : str
    rows, contributors : int
    filled, clipped : dict of column to number of cells
    unused : columns of the source that are not declared
    """

    source: str
    rows: int
    contributors: int
    filled: dict[str, int]
    clipped: dict[str, int]
    unused: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """All entries of a study; private.

    Attributes
    ----------
    frame : polars.DataFrame
        The declared columns, cells as declared (category spelling, numbers within bounds, null where missing).
    index : ContributorIndex
        Who is behind each entry.
    entry_ids : tuple of str or None
        The entry keys, where an entry column or image files are declared.
    features : float32 array
        Shape (entries, features), within -1 to 1; for images (entries, channels, height, width).
    feature_names : tuple of str
    labels : array or None
        int64, shape (entries,), for classes; float32 of that shape, within -1 to 1, for a number; for masks uint8,
        shape (entries, height, width) or (entries, depth, height, width), positions in the declared classes.
    report : tuple of SourceReport
        Internal.
    """

    frame: pl.DataFrame
    index: ContributorIndex
    entry_ids: tuple[str, ...] | None
    features: F32
    feature_names: tuple[str, ...]
    labels: Labels | None
    report: tuple[SourceReport, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one entry's features."""
        return self.features.shape[1:]

    def values(self, column: str) -> npt.NDArray[Any]:
        """Return a declared column as text per entry ("" where missing), for example to group by."""
        return self._column(column).cast(pl.String).fill_null("").to_numpy()

    def contributor_values(self, column: str) -> npt.NDArray[Any]:
        """Return a declared column as text per contributor.

        Raises
        ------
        InputError
            The column is not declared, or differs between entries of one contributor.
        """
        values = self.values(column)
        first = values[self.index.order[self.index.starts[:-1]]]
        wrong = np.flatnonzero(values != first[self.index.of_entry])
        if len(wrong):
            raise InputError(
                f"column {column!r} differs between entries of one contributor",
                where=f"entry {int(wrong[0]) + 1} of the table" + more(wrong),
                expected="one value a contributor",
                remedy="correct it at the source",
            )
        return first

    def contributor_levels(self, column: str, levels: Mapping[str, float] | None = None) -> npt.NDArray[np.float64]:
        """Return each contributor's own budget from a column of consent levels, shape (contributors,).

        Parameters
        ----------
        column : str
            A declared column (role ``"attribute"``).
        levels : dict of str to float, optional
            Epsilon for each value of the column; without it the column holds the numbers themselves.

        Raises
        ------
        InputError
            A missing or undeclared level, or one that differs within a contributor.
        """
        texts = self.contributor_values(column)
        known = {_number_text(name): float(value) for name, value in (levels or {}).items()}
        out = np.empty(len(texts))
        for place, text in enumerate(texts):
            value = known.get(_number_text(text)) if levels is not None else _positive(text)
            if value is None:
                first = int(self.index.entries_of(place)[0])
                raise InputError(
                    f"column {column!r} holds no declared level ({text!r})"
                    if text
                    else f"column {column!r} is missing",
                    where=f"entry {first + 1} of the table",
                    expected="one of " + ", ".join(levels) if levels is not None else "a positive number",
                    remedy="correct the cell, or declare its level under [privacy] budget",
                )
            out[place] = value
        return out

    def fingerprint(self, key: bytes) -> str:
        """Return a keyed hash of everything a run would read, to notice changed data on resume.

        Without the key it says nothing about the data, and with it only whether they are the same.
        """
        digest = hmac.new(key, b"confide/table/1\x00", hashlib.sha256)
        parts: list[bytes] = [repr((self.feature_names, self.features.shape)).encode(), self.features.tobytes()]
        parts += [b"" if self.labels is None else self.labels.tobytes()]
        parts += ["\x00".join(self.index.ids.tolist()).encode(), self.index.of_entry.tobytes()]
        parts += [self.index.ordinals.tobytes(), "\x00".join(self.entry_ids or ()).encode()]
        parts += [self.frame.write_csv().encode()]
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.hexdigest()

    def _column(self, name: str) -> pl.Series:
        if name not in self.frame.columns:
            close = nearest(name, self.frame.columns)
            raise InputError(
                f"column {name!r} is not declared",
                expected="one of " + ", ".join(self.frame.columns),
                remedy=f"did you mean {close!r}?" if close else f'declare [columns.{name}] with role = "attribute"',
            )
        return self.frame[name]

    def __len__(self) -> int:
        return self.index.n_entries

    def __repr__(self) -> str:
        return "Table(private)"


def _number_text(text: str) -> str:
    """Write numbers one way, so that the level "1.0" matches the cell "1"."""
    try:
        return repr(float(text))
    except ValueError:
        return text


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def encode(
    frame: pl.DataFrame, schema: Schema, origin: Origin, *, with_label: bool = True
) -> tuple[pl.DataFrame, F32, Labels | None, Counts]:
    """Convert the declared columns of one source; returns cells, features, labels and internal counts."""
    used = {name: column for name, column in schema.columns.items() if column.role != "ignore"}
    if not with_label:
        used = {name: column for name, column in used.items() if column.role == "feature"}
    # masks are files or arrays of their own, not cells
    used = {name: column for name, column in used.items() if column.type != "mask"}
    check_columns(frame, used, origin)
    cells: list[pl.Series] = []
    blocks: list[F32] = [np.empty((frame.height, 0), dtype=np.float32)]
    labels: Labels | None = None
    counts = Counts()
    for name, column in used.items():
        if column.role == "label" and column.classes is None:
            numbers, labels = convert_number(frame[name], name, column, origin, counts)
            cells.append(numbers)
            continue
        if column.role == "label":
            spelled, labels = convert_label(frame[name], name, column, origin)
            cells.append(spelled)
            continue
        done: Column = convert(frame[name], name, column, origin, counts)
        cells.append(done.cells)
        if done.features is not None:
            blocks.append(done.features)
    return pl.DataFrame(cells), np.concatenate(blocks, axis=1), labels, counts


def read_features(
    table: pl.DataFrame | str | Path | SourceSpec,
    schema: Schema,
    *,
    base: Path = Path("."),
    images: ImageSpec | None = None,
) -> F32:
    """Read new entries for a released model: the same rules as in training, no labels or contributors needed.

    Parameters
    ----------
    table : polars.DataFrame, path or SourceSpec
    schema : Schema
        The declared columns of the study that made the model.
    base : Path
        Where relative paths start.
    images : ImageSpec, optional
        Where the model reads pictures.

    Returns
    -------
    float32 array
        As `Table.features`.

    Raises
    ------
    InputError
        As `read_sources`.
    """
    if isinstance(table, pl.DataFrame):
        frame, origin = table, Origin("the table")
        if frame.height == 0:
            raise InputError("the table has no rows", expected="at least one entry")
    else:
        spec = table if isinstance(table, SourceSpec) else SourceSpec(source=str(table), contributor="row")
        images = images or spec.images
        frame, origin = read_source(spec, base=base)
    if images is not None:
        if images.array is not None:
            if isinstance(table, pl.DataFrame):
                raise InputError(
                    "this model reads pictures from an array", expected="the path of a .npz file, not a table"
                )
            return read_array(find_file(file_of(spec), base=base), spec, images)
        return _read_files(image_paths(frame, images, origin, base=base), images)
    return encode(frame, schema, origin, with_label=False)[1]


def _read_files(paths: list[Path], images: ImageSpec) -> F32:
    return read_meshes(paths, images) if images.mode == "mesh" else read_images(paths, images)


def read_sources(specs: Sequence[SourceSpec], schema: Schema, *, base: Path = Path(".")) -> Table:
    """Read all sources of a study, append their rows and find out whose they are.

    Parameters
    ----------
    specs : sequence of SourceSpec
        Rows are appended in this order; the same contributor id in two sources is the same person.
    schema : Schema
    base : Path
        Folder that relative paths start from (that of the study file).

    Returns
    -------
    Table

    Raises
    ------
    InputError
        Unknown column, missing id, repeated (contributor, entry) pair, an entry of two contributors, a missing value
        where the rule is "refuse", a value outside bounds, categories or classes, text in a number column, an empty,
        missing or damaged source. Every message names source, column and row, what was expected and what to do.
    """
    if not specs:
        raise InputError("the study names no data", expected="at least one [[data]] source")
    shapes = {(spec.images.mode, spec.images.size) if spec.images else None for spec in specs}
    if len(shapes) > 1:
        raise InputError(
            "the sources differ in kind", expected="images of one mode and size in all sources, or in none"
        )
    if specs[0].images is not None and schema.features:
        raise InputError(
            "image sources take no feature columns yet",
            where=", ".join(map(repr, schema.features)),
            expected='only a label and columns with role = "attribute" or "ignore" beside images',
            remedy="change the role of these columns",
        )
    if specs[0].images is None and not schema.features:
        raise InputError("no column is declared as a feature", expected="at least one [columns.NAME] to learn from")
    return _assemble([_read_part(number, spec, schema, base) for number, spec in enumerate(specs)], schema)


@dataclass
class _Part:
    """One source, read."""

    origin: Origin
    owners: list[str]
    entries: list[str] | None
    unique: bool
    cells: pl.DataFrame
    features: F32
    labels: Labels | None
    report: SourceReport


def _read_part(number: int, spec: SourceSpec, schema: Schema, base: Path) -> _Part:
    frame, origin = read_source(spec, base=base)
    if spec.contributor == "row":
        owners = [f"row {number + 1}.{row + 1}" for row in range(frame.height)]
    else:
        check_columns(frame, [spec.contributor], origin)
        declared = schema.columns.get(spec.contributor)
        if declared is not None and declared.role in ("feature", "label"):
            raise InputError(
                f"the contributor column {spec.contributor!r} is declared as a {declared.role}",
                where=origin.name,
                expected="ids that are never learnt from",
                remedy=f"remove [columns.{spec.contributor}]",
            )
        owners = linked_ids(frame, spec, origin, "contributor id", base=base)
    entries: list[str] | None = None
    if spec.entry is not None:
        check_columns(frame, [spec.entry], origin)
        entries = text_of(frame[spec.entry]).to_list()
        gone = np.flatnonzero([entry is None for entry in entries]).astype(np.int64)
        if len(gone):
            raise InputError(
                f"the entry key is missing{more(gone)}",
                where=origin.at(spec.entry, gone),
                expected="a key that tells this contributor's entries apart in every row",
                remedy="fill it in at the source, or remove entry from [[data]]",
            )
    cells, features, labels, counts = encode(frame, schema, origin)
    paths: list[Path] = []
    if spec.images is not None and spec.images.array is not None:
        features = read_array(find_file(file_of(spec), base=base), spec, spec.images)
    elif spec.images is not None:
        paths = image_paths(frame, spec.images, origin, base=base)
        files = [str(path) for path in paths]
        what = "mesh file" if spec.images.mode == "mesh" else "image file"
        _one_owner(pl.DataFrame({"owner": owners, "entry": files}), [(origin, len(files))], what)
        entries = files if entries is None else entries
        features = _read_files(paths, spec.images)
    if schema.target == "mask":
        labels = _masks(frame, spec, schema, origin, owners, paths, base)
    known = {*schema.columns, spec.contributor, spec.entry, spec.images.column if spec.images else None}
    report = SourceReport(
        origin.name, frame.height, len(set(owners)), counts.filled, counts.clipped,
        tuple(name for name in frame.columns if name not in known),
    )  # fmt: skip
    return _Part(origin, owners, entries, spec.entry_unique, cells, features, labels, report)


def _masks(
    frame: pl.DataFrame,
    spec: SourceSpec,
    schema: Schema,
    origin: Origin,
    owners: list[str],
    pictures: list[Path],
    base: Path,
) -> Labels:
    """The masks of a source: files beside its pictures, or the array of the label's name."""
    assert schema.label is not None
    name, column = schema.label
    if spec.images is None:
        raise InputError(
            f"the masks of column {name!r} have no pictures",
            where=origin.name,
            expected="images in every [[data]] source whose label is a mask",
            remedy="declare images = {folder = ..., column = ...} or images = {array = ...}",
        )
    if spec.images.array is not None:
        return read_mask_array(find_file(file_of(spec), base=base), spec, name, column, spec.images)
    if column.folder is None:
        raise InputError(
            f"the masks of column {name!r} have no folder",
            where=f"[columns.{name}]",
            expected='folder = "masks", the folder of the files that the column names',
            remedy="add it: it is relative to the study file",
        )
    masks = named_files(frame, name, column.folder, origin, base=base, what="mask")
    pairs = pl.DataFrame({"owner": owners, "entry": [str(path) for path in masks]})
    _one_owner(pairs, [(origin, len(masks))], "mask file")
    return read_mask_files(masks, pictures, name, column, spec.images, origin)


def _locate(row: int, lengths: list[tuple[Origin, int]]) -> str:
    for origin, length in lengths:
        if row < length:
            return origin.at(None, [row])
        row -= length
    raise AssertionError("row beyond the table")


def _one_owner(pairs: pl.DataFrame, lengths: list[tuple[Origin, int]], what: str) -> None:
    """Refuse an entry key that stands under two contributors."""
    owners = (
        pairs.with_row_index("row")
        .group_by("entry")
        .agg(pl.col("owner").n_unique().alias("n"), pl.col("row"), pl.col("owner"))
    )
    shared = owners.filter(pl.col("n") > 1)
    if shared.height:
        group = shared.sort(pl.col("row").list.min()).row(0, named=True)
        rows = sorted(zip(group["row"], group["owner"], strict=True))
        second = next(row for row, owner in rows if owner != rows[0][1])
        raise InputError(
            f"one {what} belongs to two contributors"
            + (f" ({shared.height - 1} more like it)" if shared.height > 1 else ""),
            where=f"{_locate(rows[0][0], lengths)} and {_locate(second, lengths)}",
            expected="every entry under one contributor: otherwise removing one of them leaves the data in",
            remedy="give both rows the same contributor id, or remove the wrong row at the source",
        )


def _assemble(parts: list[_Part], schema: Schema) -> Table:
    lengths = [(part.origin, len(part.owners)) for part in parts]
    owners = [owner for part in parts for owner in part.owners]
    entries: list[str] | None = None
    if any(part.entries is not None for part in parts):
        # A source without an entry column gets its row numbers, set apart so that they meet no declared key.
        entries = [
            key
            for number, part in enumerate(parts)
            for key in (part.entries or [f"\x01source {number} row {row:09d}" for row in range(len(part.owners))])
        ]
        pairs = pl.DataFrame({"owner": owners, "entry": entries})
        twice = np.flatnonzero(pairs.is_duplicated().to_numpy())
        if len(twice):
            same = [int(r) for r in twice if (owners[r], entries[r]) == (owners[twice[0]], entries[twice[0]])]
            raise InputError(
                "the same entry stands twice for one contributor",
                where=f"{_locate(same[0], lengths)} and {_locate(same[1], lengths)}",
                expected="every (contributor, entry) pair once",
                remedy="remove the duplicate at the source, or declare an entry column that tells the two apart",
            )
        if any(part.unique for part in parts):
            _one_owner(pairs, lengths, "entry")
    index = ContributorIndex.from_labels(owners, entries)
    labels = np.concatenate([part.labels for part in parts if part.labels is not None]) if schema.label else None
    return Table(
        frame=pl.concat([part.cells for part in parts]),
        index=index,
        entry_ids=None if entries is None else tuple(entries),
        features=np.ascontiguousarray(np.concatenate([part.features for part in parts])),
        feature_names=schema.feature_names,
        labels=labels,
        report=tuple(part.report for part in parts),
    )
