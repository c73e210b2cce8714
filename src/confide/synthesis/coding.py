"""From declared tables to codes and back.

Everything outside the declaration is refused with the row it stands in, or clipped where the declaration says so;
nothing is dropped. A patient without visits stays a patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.data import Schema, SourceSpec, contributor_ids, read_source
from confide.data.convert import Origin
from confide.data.table import encode
from confide.errors import InputError, nearest
from confide.synthesis.domain import Floats, Ints, Panel
from confide.synthesis.study import PatientsSection, SynthesisColumn, SynthesisStudy, VisitsSection


@dataclass(frozen=True, repr=False, eq=False)
class Coded:
    """Private: the coded panel, whose it is, and each patient's consent level.

    Attributes
    ----------
    panel : Panel
    ids : str array, shape (patients,)
    levels : str array or None
    """

    panel: Panel
    ids: npt.NDArray[np.str_]
    levels: npt.NDArray[np.str_] | None

    def subset(self, keep: npt.NDArray[np.bool_]) -> Coded:
        """Keep some patients with all their visits."""
        return Coded(self.panel.keep(keep), self.ids[keep], None if self.levels is None else self.levels[keep])


def read_coded(study: SynthesisStudy, *, base: Path) -> Coded:
    """Read the tables of a study and code them.

    Raises
    ------
    InputError
        A missing or unknown column, a value outside its declaration, a missing or repeated patient, a visit of somebody
        who is not in the patient table, two visits with one entry key, a declared bound on visits that does not hold.
    """
    frame, cells, origin = _read(study.patients, base)
    ids = _ids(frame, study.patients, origin)
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twice):
        raise InputError(
            "a patient stands twice in the patient table",
            where=origin.at(study.patients.contributor, np.sort(order[twice[0] : twice[0] + 2])),
            expected="one row a patient",
            remedy="join the rows at the source, or declare what changes as a visit column",
        )
    static = _codes(cells, study.features(study.patients))
    levels = None
    if study.privacy.budget != "equal":
        levels = cells[study.privacy.budget.column].cast(pl.String).fill_null("").to_numpy().astype(np.str_)[order]
        unknown = sorted(set(levels.tolist()) - set(study.privacy.budget.levels))
        if unknown:
            raise InputError(
                f"the budget column holds {unknown[0]!r}",
                where=origin.at(study.privacy.budget.column),
                expected="one of " + ", ".join(study.privacy.budget.levels),
                remedy="declare the level with its epsilon, or leave these patients out at the source",
            )
    ids, static = ids[order], static[order]
    visit, counts = np.zeros((0, 0), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
    if study.visits is not None:
        visit, counts = _visits(study, study.visits, ids, base)
    return Coded(Panel(study.domain(), static, visit, counts), ids, levels)


def _read(section: PatientsSection | VisitsSection, base: Path) -> tuple[pl.DataFrame, pl.DataFrame, Origin]:
    spec = SourceSpec.model_validate(section.model_dump(include=set(SourceSpec.model_fields)))
    frame, origin = read_source(spec, base=base)
    if section.contributor not in frame.columns:
        close = nearest(section.contributor, frame.columns)
        raise InputError(
            f"there is no column {section.contributor!r}",
            where=origin.at(),
            expected="the column of patient ids",
            remedy=f"did you mean {close!r}?" if close else "correct `contributor`",
        )
    cells, _, _, _ = encode(frame, Schema.model_construct(columns=dict(section.columns)), origin)
    return frame, cells, origin


def _ids(frame: pl.DataFrame, section: PatientsSection | VisitsSection, origin: Origin) -> npt.NDArray[np.str_]:
    # the same reading as for training: a person who is "7" in one place and "7.0" in another would have two balances
    return np.array(contributor_ids(frame, section.contributor, origin, "patient id"), dtype=np.str_)


def _visits(study: SynthesisStudy, section: VisitsSection, ids: npt.NDArray[np.str_], base: Path) -> tuple[Ints, Ints]:
    frame, cells, origin = _read(section, base)
    whose = _ids(frame, section, origin)
    at = np.searchsorted(ids, whose)
    strange = np.flatnonzero((at >= len(ids)) | (ids[np.minimum(at, len(ids) - 1)] != whose))
    if len(strange):
        raise InputError(
            "a visit belongs to nobody in the patient table",
            where=origin.at(section.contributor, strange),
            expected="every patient of a visit in the patient table",
            remedy="add the patient's row, or leave the visits out at the source",
        )
    time = cells[section.time].cast(pl.Float64 if section.columns[section.time].type != "date" else pl.Int32).to_numpy()
    if section.entry is not None:
        keys = frame[section.entry].cast(pl.String).fill_null("").to_numpy().astype(np.str_)
        by_key = np.lexsort((keys, at))
        same = np.flatnonzero((at[by_key][1:] == at[by_key][:-1]) & (keys[by_key][1:] == keys[by_key][:-1]))
        if len(same):
            raise InputError(
                "two visits of one patient have the same key",
                where=origin.at(section.entry, np.sort(by_key[same[0] : same[0] + 2])),
                expected="every (patient, entry) pair once",
            )
    order = np.lexsort((time, at))
    counts = np.bincount(at, minlength=len(ids)).astype(np.int64)
    if section.min_visits and (counts == 0).any():
        raise InputError(
            "a patient has no visit, and min_visits = 1 declares that everybody has one",
            where=origin.at(),
            remedy="set min_visits = 0",
        )
    return _codes(cells, study.features(section))[order], counts


def _codes(cells: pl.DataFrame, columns: dict[str, SynthesisColumn]) -> Ints:
    coded = []
    for name, column in columns.items():
        series = cells[name]
        gap = series.is_null().to_numpy()
        if column.type in ("categorical", "ordinal"):
            place = {str(value): number for number, value in enumerate(column.categories or ())}
            codes = np.array([place.get(value, 0) for value in series.cast(pl.String).to_list()], dtype=np.int64)
        else:
            values = series.cast(pl.Int32) if column.type == "date" else series
            numbers = values.cast(pl.Float64).fill_null(0.0).to_numpy()
            edges = column.edges()
            codes = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
        coded.append(np.where(gap, column.coded(name).cells - 1, codes))
    return np.column_stack(coded).astype(np.int64) if coded else np.zeros((cells.height, 0), dtype=np.int64)


def decode(study: SynthesisStudy, panel: Panel, rng: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Turn a synthetic panel into tables with declared categories and numbers drawn evenly within their bins.

    Returns
    -------
    dict
        ``"patients"`` and, if declared, ``"visits"``, linked by ``patient`` (a running number).
    """
    patients = {"patient": pl.Series(np.arange(1, panel.patients + 1))}
    for position, (name, column) in enumerate(study.features(study.patients).items()):
        patients[name] = _values(panel.static[:, position], column, rng, None)
    tables = {"patients": pl.DataFrame(patients)}
    if study.visits is not None:
        visits = {"patient": pl.Series(panel.of_visit + 1)}
        for position, (name, column) in enumerate(study.features(study.visits).items()):
            owner = panel.of_visit if name == study.visits.time else None
            visits[name] = _values(panel.visit[:, position], column, rng, owner)
        tables["visits"] = pl.DataFrame(visits)
    return tables


def _values(codes: Ints, column: SynthesisColumn, rng: np.random.Generator, owner: Ints | None) -> pl.Series:
    gap = codes == column.coded("x").cells - 1 if column.missing == "indicator" else np.zeros(len(codes), dtype=bool)
    if column.type in ("categorical", "ordinal"):
        words = [*column.categories] if column.categories else []
        return pl.Series([None if g else words[c] for g, c in zip(gap, codes, strict=True)])
    edges = column.edges()
    low, high = edges[np.where(gap, 0, codes)], edges[np.where(gap, 0, codes) + 1]
    drawn: Floats = low + rng.random(len(codes)) * (high - low)
    if column.type in ("integer", "date"):
        drawn = np.clip(np.floor(drawn), np.ceil(low), column.low_high[1])
    if owner is not None:
        drawn = drawn[np.lexsort((drawn, owner))]
    if column.type == "real":
        digits = max(0, 3 - int(np.floor(np.log10(max(edges[-1] - edges[0], 1e-300)))))
        # rounded down, so that a value never leaves its bin
        short = np.maximum(np.floor(drawn * 10**digits) / 10**digits, low if owner is None else edges[0])
        return pl.Series(short).set(pl.Series(gap), None)
    whole = pl.Series(drawn.astype(np.int64)).set(pl.Series(gap), None)
    return whole.cast(pl.Int32).cast(pl.Date) if column.type == "date" else whole
