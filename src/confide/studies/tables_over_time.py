"""What happens to patients over time: visits, gaps, transitions, courses, missing values, rules."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from confide.evaluation import tables as score
from confide.evaluation import tables_time as over
from confide.report import ColumnView, Curve, Pairing, Violation
from confide.studies.synthesis_write import flat
from confide.studies.tables_read import EvaluationTables, numbers, time_of
from confide.synthesis import Panel
from confide.synthesis.coding import Coded
from confide.synthesis.contributions import codes_of
from confide.synthesis.domain import Floats
from confide.synthesis.study import SynthesisStudy

_COURSE_BINS = 10


def longitudinal_figures(tables: EvaluationTables) -> dict[str, Any]:
    """Return counts, gaps, pairings, courses, missing values and rule violations."""
    study = tables.study
    found: dict[str, Any] = {"violations": _violations(tables), "missing": _missing(tables)}
    events = [row for name in study.events for row in _events(tables, name)]
    found["longitudinal"] = events
    if study.visits is None or not len(tables.synthetic.panel.visit) or not len(tables.train.panel.visit):
        return found | {"left_out": [] if study.visits is None else ["Courses over time: there are no visits."]}
    train, made = tables.train, tables.synthetic
    held = tables.held_out if len(tables.held_out.panel.visit) else None
    return found | {
        "counts": _counts(train, made, held),
        "gaps": _gaps(study, train, made, held),
        "longitudinal": _pairings(study, train, made, held) + events,
        "course": _courses(study, train, made),
    }


def _view(column: str, level: Any, cells: list[str], p: Floats, q: Floats, r: Floats | None) -> ColumnView:
    return ColumnView(
        column=column,
        level=level,
        cells=cells,
        real=p.tolist(),
        synthetic=q.tolist(),
        held_out=None if r is None else r.tolist(),
        distance=score.total_variation(p, q),
        floor=None if r is None else score.total_variation(p, r),
    )


def _counts(train: Coded, made: Coded, held: Coded | None) -> ColumnView:
    starts = train.panel.domain.count_starts
    ends = [*(s - 1 for s in starts[1:]), None]
    cells = [
        f"{a}" if a == b else f"{a} or more" if b is None else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)
    ]
    p, q = (over.count_shares(c.panel.counts, starts) for c in (train, made))
    r = over.count_shares(held.panel.counts, starts) if held is not None else None
    return _view("number of visits", "patient", cells, p, q, r)


def _gaps(study: SynthesisStudy, train: Coded, made: Coded, held: Coded | None) -> ColumnView:
    assert study.visits is not None
    section = study.visits
    low, high = section.columns[section.time].low_high
    edges = over.gap_edges(low, high)

    def share(coded: Coded) -> Floats:
        return over.histogram_shares(over.gaps(time_of(section, coded), coded.panel.of_visit), edges)

    cells = ["0", *(f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges[1:]))]
    cells[1] = f"up to {edges[2]:.3g}"
    cells[-1] = f"above {edges[-2]:.3g}"
    return _view(
        f"gap to the next visit ({section.time})",
        "visit",
        cells,
        share(train),
        share(made),
        None if held is None else share(held),
    )


def _pairings(study: SynthesisStudy, train: Coded, made: Coded, held: Coded | None) -> list[Pairing]:
    assert study.visits is not None
    a, b = flat(train.panel), flat(made.panel)
    c = flat(held.panel) if held is not None else None
    found = []
    for name, column in study.features(study.visits).items():
        if name == study.visits.time:
            continue
        p = score.transitions(a, name)
        found.append(
            Pairing(
                what="transitions from visit to visit",
                of=name,
                real=None,
                synthetic=None,
                distance=score.total_variation(p, score.transitions(b, name)),
                floor=None if c is None else score.total_variation(p, score.transitions(c, name)),
            )
        )
        found.append(
            Pairing(
                what="agreement of neighbouring visits beyond chance",
                of=name,
                real=score.within_patient_agreement(a, name),
                synthetic=score.within_patient_agreement(b, name),
                held_out=None if c is None else score.within_patient_agreement(c, name),
            )
        )
        if column.type not in ("real", "integer", "ordinal"):
            continue
        for what, measure in (
            ("share of variance between patients (ICC)", over.intraclass_correlation),
            ("correlation with the next visit", over.lag_correlation),
        ):
            values = [
                None if s is None else measure(numbers(s.cells["visits"], name), s.panel.of_visit)
                for s in (train, made, held)
            ]
            if values[0] is not None and np.isfinite(values[0]):
                found.append(Pairing(what=what, of=name, real=values[0], synthetic=values[1], held_out=values[2]))
    return found


def _events(tables: EvaluationTables, name: str) -> list[Pairing]:
    """Compare an event table: events per patient, gaps, and the mean distance of its single columns."""
    section = tables.study.events[name]
    sets = [tables.train, tables.synthetic, tables.held_out if tables.held_out.panel.patients else None]
    panels = [None if coded is None else coded.events[name] for coded in sets]
    starts = tables.train.events[name].domain.count_starts
    low, high = section.columns[section.time].low_high
    edges = over.gap_edges(low, high)

    def rows(what: str, shares: list[Floats | None], means: list[float | None]) -> Pairing:
        p, q, r = shares
        assert p is not None
        assert q is not None
        return Pairing(
            what=what,
            of=name,
            real=means[0],
            synthetic=means[1],
            held_out=means[2],
            distance=score.total_variation(p, q),
            floor=None if r is None else score.total_variation(p, r),
        )

    counts = [None if panel is None else over.count_shares(panel.counts, starts) for panel in panels]
    means = [None if panel is None else float(panel.counts.mean()) for panel in panels]
    gaps = [
        None
        if coded is None
        else over.histogram_shares(over.gaps(time_of(section, coded, name), coded.events[name].of_visit), edges)
        for coded in sets
    ]
    found = [rows("events per patient (mean)", counts, means), rows("gaps between events", gaps, [None, None, None])]
    for position, column in enumerate(tables.train.events[name].domain.visit):
        shares: list[Floats | None] = [
            None
            if panel is None
            else np.bincount(panel.visit[:, position], minlength=column.cells) / max(len(panel.visit), 1)
            for panel in panels
        ]
        found.append(rows(f"share of each {column.name}", shares, [None, None, None]))
    return found


def _courses(study: SynthesisStudy, train: Coded, made: Coded) -> list[Curve]:
    assert study.visits is not None
    section = study.visits
    low, high = section.columns[section.time].low_high
    edges = np.linspace(low, high, _COURSE_BINS + 1)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    curves = []
    for name, column in study.features(section).items():
        if name == section.time or column.type not in ("real", "integer", "ordinal"):
            continue
        if not np.isfinite(numbers(train.cells["visits"], name)).any():
            continue  # an ordinal scale in words has no mean
        for label, coded in (("real", train), ("synthetic", made)):
            y = over.course(time_of(section, coded), numbers(coded.cells["visits"], name), edges)
            curves.append(Curve(label=label, x=middle, y=y.tolist(), y_label=name))
    return curves


def _missing(tables: EvaluationTables) -> list[Pairing]:
    found = []
    for level in ("static", "visit"):
        columns = getattr(tables.train.panel.domain, level)
        for position, column in enumerate(columns):
            if not column.missing:
                continue
            values = []
            for coded in (tables.train, tables.synthetic, tables.held_out):
                codes = getattr(coded.panel, level)[:, position]
                values.append(float((codes == column.cells - 1).mean()) if len(codes) else None)
            found.append(
                Pairing(what="share missing", of=column.name, real=values[0], synthetic=values[1], held_out=values[2])
            )
    visit = tables.train.panel.domain.visit
    gap_cells = {c.name: c.cells - 1 for c in visit if c.missing}
    if len(gap_cells) > 1 and len(tables.synthetic.panel.visit) and len(tables.train.panel.visit):
        a, b = flat(tables.train.panel), flat(tables.synthetic.panel)
        held = flat(tables.held_out.panel) if len(tables.held_out.panel.visit) else None
        found.append(
            Pairing(
                what="patterns of missing values, total variation",
                real=None,
                synthetic=None,
                distance=over.pattern_distance(a, b, gap_cells),
                floor=None if held is None else over.pattern_distance(a, held, gap_cells),
            )
        )
    return found


def _violations(tables: EvaluationTables) -> list[Violation]:
    study, found = tables.study, []
    for table in ("visits", *study.events):
        panels = [c.panel if table == "visits" else c.events[table] for c in (tables.train, tables.synthetic)]
        declared = [rule for rule in study.rules if rule.table == table]
        for rule, row in zip(declared, study.row_rules(table), strict=True):
            broken = []
            for panel, coded in zip(panels, (tables.train, tables.synthetic), strict=True):
                number = _broken(row, panel)
                if rule.limit is not None:
                    number = _beyond(study, rule, coded, table, panel)
                broken.append(number)
            found.append(Violation(rule=row.text, real=broken[0], synthetic=broken[1], rows=len(panels[1].visit)))
    return found


def _broken(rule: Any, panel: Panel) -> int:
    level = "visit" if "visit" in (rule.parent.kind, rule.child.kind) or rule.parent.kind == "lag" else "patient"
    parent, child = codes_of(panel, rule.parent, level), codes_of(panel, rule.child, level)
    here = parent >= 0
    return int(np.count_nonzero(~rule.allowed[parent[here], child[here]]))


def _beyond(study: SynthesisStudy, rule: Any, coded: Coded, table: str, panel: Panel) -> int:
    """Count rows whose value, not only whose bin, lies beyond the patient's own limit."""
    limit = numbers(coded.cells["patients"], rule.limit)[panel.of_visit]
    value = numbers(coded.cells[table], rule.column)
    beyond = value > limit + 1e-9 if rule.not_after is not None else value < limit - 1e-9
    return int(np.count_nonzero(beyond))
