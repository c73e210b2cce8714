"""From noisy models to a release folder: tables, schema, noisy marginals, certificate, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from confide.evaluation import tables as score
from confide.release import AssumedPublic, LedgerReference, PaidMetric, certify, write_release
from confide.report import table_release_report
from confide.studies.opening import linkage_of, stated_flow
from confide.studies.synthesis_draw import draw_tables
from confide.studies.synthesis_run import FittedTables, TablePlan, check_guarantee
from confide.studies.write import not_covered, public_text
from confide.synthesis import NoisyModel, Panel
from confide.synthesis.coding import Coded
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.domain import BLOCK_PATIENTS
from confide.synthesis.followup import followed
from confide.synthesis.spool import StreamedCoded
from confide.synthesis.study import SynthesisStudy


def write_tables(
    study: SynthesisStudy,
    text: str,
    *,
    plan: TablePlan,
    fitted: FittedTables,
    real: Coded | StreamedCoded,
    aside: int,
    receipt: LedgerReference,
    releases: Path,
    spool: Path,
    key: str = "",
    buy: Callable[[Panel], list[PaidMetric]] = lambda drawn: [],
    progress: Callable[[str], None] = lambda what: None,
) -> Path:
    """Draw the tables, write the release folder and the internal one beside it, each in one step; returns the former.

    Parameters
    ----------
    real : Coded or StreamedCoded
        Private: for the internal figures alone.
    aside : int
        Patients set aside (internal).
    spool : Path
        Where drawn tables lie until they are in the release.
    key : str
        Secret of the run that draws come from.
    buy : function
        Buys figures about the first drawn table.
    progress : function, optional
        Told what is being done.
    """
    check_guarantee(plan, fitted)
    models = {"": fitted.main, **fitted.events}
    looks = [
        f"{table + ': ' if table else ''}{m.level}: {' x '.join(m.columns)}"
        for table, model in models.items()
        for m in model.measurements
    ]
    drawn = draw_tables(study, fitted, spool, whole=isinstance(real, Coded), key=key, progress=progress)
    certificate = certify(
        replace(plan, looks=tuple(looks)),
        name=study.name,
        kind="table",
        evaluation=buy(drawn.panel),
        assumed_public=assumed(study),
        testing_only=study.privacy.seed is not None,
        precision="float64",
        ledger=receipt,
        flow=stated_flow(study),
        linkage=linkage_of(study),
        not_covered=not_covered(study),
    )
    files: dict[str, Any] = dict(drawn.files)
    for number in range(2, study.sample.tables + 1):
        files |= draw_tables(study, fitted, spool, number=number, whole=False, key=key, progress=progress).files
    marginals = marginals_of(study, fitted)
    files["schema.json"] = json.dumps(schema_of_release(study), indent=1)
    files["marginals.json"] = json.dumps(marginals, indent=1)
    files["study.toml"] = public_text(text)
    files["report.html"] = lambda complete: table_release_report(complete, public_text(text), marginals)
    internal = {"figures.json": json.dumps(_figures(real, aside, drawn.panel), indent=1), "study.toml": text}
    return write_release(releases, study.name, certificate, files, internal)


def schema_of_release(study: SynthesisStudy) -> dict[str, Any]:
    """Return the schema of the released tables: columns, what they may hold, how tables are linked. Public facts."""
    tables: dict[str, Any] = {"patients": _described(study.features(study.patients))}
    if study.visits is not None:
        tables["visits"] = _described(study.features(study.visits)) | {"in order of": study.visits.time}
    for name, section in study.events.items():
        tables[name] = _described(study.features(section)) | {"in order of": section.time}
    return {
        "tables": tables,
        "linked by": "patient",
        "rules": [r.text for table in ("visits", *study.events) for r in study.row_rules(table)],
    }


def _described(columns: Mapping[str, SynthesisColumn]) -> dict[str, Any]:
    described = {}
    for name, column in columns.items():
        facts = column.model_dump(mode="json", exclude_defaults=True, exclude={"roll_up", "outside", "role"})
        described[name] = facts | {"cells": column.cell_names()}
    return {"columns": described}


def marginals_of(study: SynthesisStudy, fitted: FittedTables) -> dict[str, Any]:
    """Return every released table with its error bar: noise included, so shares may be negative."""
    tables = _measured(fitted.main, _cell_names(study, "visits"), "")
    for name, model in fitted.events.items():
        tables += _measured(model, _cell_names(study, name), name)
    return {
        "patients": fitted.main.patients,
        "note": "shares as measured with noise; standard_error is that of the privacy noise in every cell. What "
        "clipping cut off and that the patients are a sample of all possible ones is not part of it",
        "tables": tables,
    }


def _measured(model: NoisyModel, cells: Mapping[str, list[str]], table: str) -> list[dict[str, Any]]:
    return [
        {
            "table": table,
            "columns": list(m.columns),
            "level": m.level,
            "cells": [cells.get(name.removeprefix("previous "), []) for name in m.columns],
            "noisy": m.noisy.tolist(),
            "standard_error": m.deviation,
            "estimate": m.estimate.tolist(),
        }
        for m in model.measurements
    ]


def _cell_names(study: SynthesisStudy, table: str) -> dict[str, list[str]]:
    section = study.visits if table == "visits" else study.events[table]
    static = study.features(study.patients) if table == "visits" else study.given(table)
    domain = study.domain() if table == "visits" else study.event_domain(table)
    names = {name: column.cell_names() for name, column in {**static, **study.features(section)}.items()}
    starts = [*domain.count_starts, domain.max_visits + 1]
    names["number of visits"] = [f"{a}" if b - a == 1 else f"{a} to {b - 1}" for a, b in pairwise(starts)]
    for other in () if table == "visits" else study.events[table].beside:
        names[f"rows in {other}"] = [
            f"{a}" if b - a == 1 else f"{a} to {b - 1}" if b else f"{a} or more"
            for a, b in pairwise([*study.row_bins(other), 0])
        ]
    wider = followed(domain)
    if wider is not domain and domain.time is not None:
        none = ["none"] if domain.min_visits == 0 else []
        names[wider.static[-2].name] = names[domain.time] + none
        names[wider.static[-1].name] = [
            "same bin" if bins == 0 else f"{bins} bin{'s' * (bins > 1)} later"
            for bins in range(len(names[domain.time]))
        ] + none
    return names


def _figures(real: Coded | StreamedCoded, aside: int, synthetic: Panel) -> dict[str, Any]:
    """Compare with the real tables in short: internal. ``confide evaluate`` does it thoroughly."""
    found: dict[str, Any] = {
        "internal": True,
        "patients": real.panel.patients,
        "visits": sum(len(block.visit) for _, block in real.panel.blocks(BLOCK_PATIENTS)),
        "patients set aside": aside,
        "values moved to a declared bound": dict(real.clipped),
    }
    try:
        if isinstance(real, Coded):
            return found | _compared(real.panel, synthetic)
        found["compared"] = f"the first {BLOCK_PATIENTS:,} patients at most, in the order of a hash of their ids"
        for _, block in real.panel.blocks(BLOCK_PATIENTS):
            return found | _compared(block, synthetic)
    except Exception as error:  # exact figures must never decide whether a release is made
        found["note"] = f"the internal figures failed: {error!r}"
    return found


def _compared(real: Panel, synthetic: Panel) -> dict[str, Any]:
    if not real.domain.visit or not len(synthetic.visit) or not len(real.visit):
        return {"note": "no visits to compare"}
    a, b = flat(real), flat(synthetic)
    found: dict[str, Any] = {}
    for ways in (1, 2):
        f = score.fidelity(a, b, ways=ways)
        found[f"tv{ways}"] = {"mean": f.mean, "worst": f.worst, "worst_columns": list(f.worst_columns)}
        found[f"tv{ways}_per_patient"] = score.fidelity(a, b, ways=ways, per_patient=True).mean
    moving = [column.name for column in real.domain.visit]
    found["transitions"] = score.transition_distance(a, b, moving)
    found["visit_counts"] = score.visit_count_distance(a, b)
    return found


def flat(panel: Panel) -> score.CodedTable:
    """Return visits with the patient's columns beside them, as codes."""
    columns = {c.name: panel.static[panel.of_visit, i] for i, c in enumerate(panel.domain.static)}
    columns |= {c.name: panel.visit[:, i] for i, c in enumerate(panel.domain.visit)}
    cells = {c.name: c.cells for c in (*panel.domain.static, *panel.domain.visit)}
    return score.CodedTable(columns, cells, panel.of_visit)


def assumed(study: SynthesisStudy) -> list[AssumedPublic]:
    """List everything the study declares to be public knowledge, and what of it was paid for beforehand."""
    paid = study.public.paid_schema
    bought = set(paid.values) if paid is not None else set()
    facts = []

    def add(what: str, value: Any, key: str = "") -> None:
        source = "declared in the study file"
        if paid is not None and key in bought:
            source = f"learnt privately before and charged: epsilon {paid.epsilon:g}, ledger receipt {paid.receipt}"
        facts.append(AssumedPublic(what=what, value=value, source=source))

    sections: dict[str, Any] = {"patients": study.patients}
    if study.visits is not None:
        sections["visits"] = study.visits
    sections |= {f"events.{name}": section for name, section in study.events.items()}
    for path, section in sections.items():
        for name, column in section.columns.items():
            value = column.model_dump(mode="json", exclude_defaults=True)
            add(f"column {name} of {path}", value, f"{path}.columns.{name}")
        if path != "patients":
            add(f"most rows of a synthetic patient in {path}", section.max_visits, f"{path}.max_visits")
            add(f"every patient has a row in {path}", bool(section.min_visits))
    if study.public.max_contributors is not None:
        add("upper bound on the number of patients (delta rests on it)", study.public.max_contributors)
    if study.sample.patients is not None:
        add("synthetic patients asked for", study.sample.patients)
    if study.evaluation.holdout:
        add("share of patients set aside by a public coin", study.evaluation.holdout)
    if (later := study.evaluation.over_time) is not None:
        add(f"patients with {later.column} from here on were set aside", str(later.cut))
    for table in ("visits", *study.events):
        for rule in study.row_rules(table):
            add("rule", rule.text)
    return facts
