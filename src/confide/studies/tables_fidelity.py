"""Shares of cells: real against synthetic, beside what two samples of real patients differ by."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from confide.evaluation.tables import CodedTable, shares, total_variation
from confide.report import ColumnView, Distance, Pairing, Subgroup
from confide.studies.tables_read import EvaluationTables, patient_table, visit_table
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.domain import Floats, Ints

MOST_TABLES = 300
_SUBGROUP_AT_LEAST = 20
_COPIES = 400


def fidelity_figures(tables: EvaluationTables) -> dict[str, Any]:
    """Return columns, distances by number of columns, subgroups, and what is no evidence."""
    study = tables.study
    declared = {**study.features(study.patients), **study.features(study.visits)}
    real, made = visit_table(tables.train), visit_table(tables.synthetic)
    held = visit_table(tables.held_out) if tables.held_out.panel.patients else None
    columns = _columns(tables, declared)
    columns.sort(key=lambda c: -(c.distance or 0.0))
    fidelity = [
        _distance(real, made, held, ways, per_patient)
        for per_patient in ((False, True) if study.visits is not None else (True,))
        for ways in (1, 2, 3)
        if len(real.columns) >= ways
    ]
    return {
        "columns": columns,
        "fidelity": fidelity,
        "subgroups": _subgroups(tables, real, made, held),
        "not_evidence": _copies(real, made, held),
    }


def _columns(tables: EvaluationTables, declared: dict[str, SynthesisColumn]) -> list[ColumnView]:
    views = []
    static = [c.name for c in tables.train.panel.domain.static]
    for level, build in (("patient", patient_table), ("visit", visit_table)):
        real, made = build(tables.train), build(tables.synthetic)
        held = build(tables.held_out) if tables.held_out.panel.patients else None
        for name in real.columns:
            if (name in static) != (level == "patient"):
                continue
            p, q = shares(real, [name]), shares(made, [name])
            r = shares(held, [name]) if held is not None else None
            views.append(
                ColumnView(
                    column=name,
                    level=level,  # type: ignore[arg-type]
                    cells=declared[name].cell_names(),
                    real=p.tolist(),
                    synthetic=q.tolist(),
                    held_out=None if r is None else r.tolist(),
                    distance=total_variation(p, q),
                    floor=None if r is None else total_variation(p, r),
                )
            )
    return views


def _distance(real: CodedTable, made: CodedTable, held: CodedTable | None, ways: int, per_patient: bool) -> Distance:
    names = list(itertools.combinations(real.columns, ways))
    if len(names) > MOST_TABLES:  # a public choice of tables, the same every time
        names = [names[i] for i in np.sort(np.random.default_rng(0).choice(len(names), MOST_TABLES, replace=False))]
    weights = [t.per_patient_weights() if per_patient and t is not None else None for t in (real, made, held)]
    found: list[tuple[float, float | None, tuple[str, ...]]] = []
    for columns in names:
        p = shares(real, columns, weights[0])
        floor = None if held is None else total_variation(p, shares(held, columns, weights[2]))
        found.append((total_variation(p, shares(made, columns, weights[1])), floor, columns))
    found.sort(key=lambda one: -one[0])
    floors = [floor for _, floor, _ in found if floor is not None]
    return Distance(
        ways=ways,
        per="patient" if per_patient else "visit",
        mean=float(np.mean([one[0] for one in found])),
        floor=float(np.mean(floors)) if floors else None,
        worst=found[0][0],
        worst_columns=list(found[0][2]),
        worst_floor=found[0][1],
        tables=len(found),
        ten_worst=[(list(columns), distance, floor) for distance, floor, columns in found[:10]],
    )


def _subgroups(tables: EvaluationTables, real: CodedTable, made: CodedTable, held: CodedTable | None) -> list[Subgroup]:
    study, found = tables.study, []
    declared = {**study.features(study.patients), **study.features(study.visits)}
    for column in study.evaluation.subgroups:
        for cell, group in enumerate(declared[column].cell_names()):
            parts = [_where(t, column, cell) if t is not None else None for t in (real, made, held)]
            mine = parts[0]
            assert mine is not None
            people = len(np.unique(mine.patient))
            if people == 0 and (parts[1] is None or not len(parts[1].patient)):
                continue
            others = [name for name in real.columns if name != column]
            distance = _mean_distance(mine, parts[1], others)
            enough = parts[2] is not None and len(np.unique(parts[2].patient)) >= _SUBGROUP_AT_LEAST
            floor = _mean_distance(mine, parts[2], others) if enough else None
            found.append(Subgroup(column=column, group=group, patients=people, distance=distance, floor=floor))
    return sorted(found, key=lambda s: -(s.distance or 0.0))


def _where(table: CodedTable, column: str, cell: int) -> CodedTable:
    keep = table.columns[column] == cell
    return CodedTable({name: codes[keep] for name, codes in table.columns.items()}, table.cells, table.patient[keep])


def _mean_distance(a: CodedTable, b: CodedTable | None, names: list[str]) -> float | None:
    if b is None or not names or not len(a.patient) or not len(b.patient):
        return None
    return float(np.mean([total_variation(shares(a, [n]), shares(b, [n])) for n in names]))


def _copies(real: CodedTable, made: CodedTable, held: CodedTable | None) -> list[Pairing]:
    """Distance to the closest record, in columns that differ: shown for those who expect it, and no evidence."""
    rng = np.random.default_rng(0)
    if not len(made.patient):
        return []
    sample = _codes(made)[rng.choice(len(made.patient), min(_COPIES, len(made.patient)), replace=False)]
    to_train = _closest(sample, _codes(real), rng)
    to_held = _closest(sample, _codes(held), rng) if held is not None and len(held.patient) else None
    equal = Pairing(
        what="share of synthetic rows equal to a real one in all cells",
        real=float((to_train == 0).mean()),
        synthetic=None,
        held_out=None if to_held is None else float((to_held == 0).mean()),
    )
    mean = Pairing(
        what="mean number of cells by which a synthetic row differs from the closest real one",
        real=float(to_train.mean()),
        synthetic=None,
        held_out=None if to_held is None else float(to_held.mean()),
    )
    return [equal, mean]


def _codes(table: CodedTable) -> Ints:
    return np.column_stack(list(table.columns.values()))


def _closest(rows: Ints, others: Ints, rng: np.random.Generator) -> Floats:
    if len(others) > 5_000:
        others = others[rng.choice(len(others), 5_000, replace=False)]
    return np.array([(others != row).sum(1).min() for row in rows], dtype=np.float64)
