"""The tables behind an evaluation: real patients who took part, real ones who did not, and the released ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from confide.errors import InputError
from confide.evaluation.tables import CodedTable
from confide.release import Release
from confide.studies.synthesis_people import after_cut, by_coin
from confide.studies.synthesis_write import flat
from confide.studies.write import public_text
from confide.synthesis.coding import Bools, Coded, read_coded
from confide.synthesis.domain import Floats
from confide.synthesis.sections import VisitsSection
from confide.synthesis.study import SynthesisStudy


@dataclass(frozen=True, repr=False, eq=False)
class EvaluationTables:
    """Private, all of it but `synthetic`.

    Attributes
    ----------
    train : Coded
        Patients who took part (as far as the study says: a ledger may have dropped some).
    held_out : Coded
        Patients whom the public coin set aside, of the same time.
    later : Coded or None
        Patients at or after the cut in time.
    synthetic : Coded
    further : tuple of Coded
        Further tables drawn from the same noisy model ([sample] tables).
    """

    study: SynthesisStudy
    train: Coded
    held_out: Coded
    later: Coded | None
    synthetic: Coded
    further: tuple[Coded, ...] = ()


def read_for_evaluation(study: SynthesisStudy, release: Release, *, base: Path) -> EvaluationTables:
    """Read real and released tables, coded alike.

    Raises
    ------
    InputError
        The release is no table of this study, or the data do not fit.
    """
    everybody = read_coded(study, base=base)
    coin, late = by_coin(study, everybody), after_cut(study, everybody)
    return EvaluationTables(
        study,
        everybody.subset(~coin & ~late),
        everybody.subset(coin & ~late),
        everybody.subset(late) if study.evaluation.over_time is not None else None,
        read_released(study, release.path),
        tuple(read_released(study, release.path, number) for number in range(2, study.sample.tables + 1)),
    )


def read_released(study: SynthesisStudy, folder: Path, number: int = 1) -> Coded:
    """Read the released tables by the study's own declarations; a value outside them would be refused.

    Parameters
    ----------
    number : int
        Which of the tables drawn from the one noisy model.
    """
    drawn = "" if number == 1 else f"-{number}"

    def at(name: str, section: Any, **more: Any) -> Any:
        columns = {
            key: column.model_copy(update={"roll_up": None, "since": None, "other": None})
            for key, column in section.columns.items()
            if column.role == "feature"
        }
        changes = {
            "source": f"{name}{drawn}.parquet",
            "contributor": "patient",
            "entry": None,
            "query": None,
            "sha256": None,
            "columns": columns,
            "images": None,
        }
        return section.model_copy(update=changes | more)

    update: dict[str, Any] = {
        "patients": at("patients", study.patients, repeated=False),
        "privacy": study.privacy.model_copy(update={"budget": "equal"}),
    }
    if study.visits is not None:
        update["visits"] = at("visits", study.visits)
    update["events"] = {name: at(name, section) for name, section in study.events.items()}
    return read_coded(study.model_copy(update=update), base=folder)


def check_same_study(study_text: str, release: Release, where: str) -> None:
    """Refuse to evaluate a release with a study that did not make it.

    Raises
    ------
    InputError
    """
    made_by = release.path / "study.toml"
    if made_by.exists() and made_by.read_text(encoding="utf-8") != public_text(study_text):
        raise InputError(
            "this release was made by another study",
            where=where,
            expected=f"the study file that {release.path.name} was made from",
            remedy="leave --study out to use the one kept with the internal figures",
        )


def visit_table(coded: Coded) -> CodedTable:
    """Return visits with the patient's columns; a study without visits: the patients."""
    return flat(coded.panel) if coded.panel.domain.visit else patient_table(coded)


def patient_table(coded: Coded) -> CodedTable:
    """Return one row a patient."""
    panel = coded.panel
    columns = {c.name: panel.static[:, i] for i, c in enumerate(panel.domain.static)}
    cells = {c.name: c.cells for c in panel.domain.static}
    return CodedTable(columns, cells, np.arange(panel.patients, dtype=np.int64))


def numbers(frame: pl.DataFrame, name: str) -> Floats:
    """Return a column as numbers, nan where missing; words of a category as their own number where they are one."""
    series = frame[name]
    if series.dtype == pl.Date:
        series = series.cast(pl.Int32)
    values = series.cast(pl.Float64, strict=False)
    return np.asarray(values.fill_null(float("nan")).to_numpy(), dtype=np.float64)


def matches(frame: pl.DataFrame, name: str, values: Sequence[Any]) -> Bools:
    """Mark the rows whose cell is one of some declared values."""
    wanted = {str(value) for value in values}
    return np.array([text in wanted for text in frame[name].cast(pl.String).to_list()], dtype=bool)


def time_of(section: VisitsSection, coded: Coded, table: str = "visits") -> Floats:
    """Return the time of every row of a table."""
    return numbers(coded.cells[table], section.time)
