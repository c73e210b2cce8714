"""Models on synthetic patients, tested on real ones: prediction, augmentation, prediction over time, survival."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from confide.errors import InputError
from confide.evaluation import tables_survival as survival
from confide.evaluation import tables_utility as models
from confide.evaluation.tables import CodedTable
from confide.report import CoxRow, Curve, Difference, Pairing, SurvivalView, Trained, Utility
from confide.studies.tables_read import EvaluationTables, matches, numbers, visit_table
from confide.synthesis.coding import Coded
from confide.synthesis.domain import Floats
from confide.synthesis.sections import Survival
from confide.synthesis.study import SynthesisStudy

FEW = 100
_CURVE_POINTS = 200


def utility_figures(tables: EvaluationTables, note: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return train-on-synthetic figures for held-out patients and, with a cut in time, for later ones."""
    study = tables.study
    outcome = study.evaluation.outcome or study.method.target
    if outcome is None:
        return {"left_out": ["Models: no outcome is declared ([evaluation] outcome, or [method] target)."]}
    found = []
    if tables.held_out.panel.patients:
        found.append(_utility(tables, outcome, tables.held_out, "held-out patients", note))
    if tables.later is not None and tables.later.panel.patients:
        later = study.evaluation.over_time
        assert later is not None
        words = f"patients with {later.column} from {later.cut} on, trained on those before"
        found.append(_utility(tables, outcome, tables.later, words, note))
    return {"utility": [one for one in found if one is not None]}


def positive_cells(study: SynthesisStudy, outcome: str) -> tuple[list[int], list[str]]:
    """Return the cells of an outcome that count as 1, and their names."""
    column = {**study.features(study.patients), **study.features(study.visits)}[outcome]
    cells = column.cell_names()
    if column.missing == "indicator":
        cells = cells[:-1]
    wanted = [str(v) for v in study.evaluation.positive] if study.evaluation.positive is not None else [cells[-1]]
    unknown = [value for value in wanted if value not in cells]
    if unknown:
        raise InputError(
            f"positive holds {unknown[0]!r}, which is no value of {outcome!r}",
            where="[evaluation] positive",
            expected=", ".join(cells),
        )
    return [cells.index(value) for value in wanted], wanted


def _utility(
    tables: EvaluationTables, outcome: str, test: Coded, tested_on: str, note: Callable[[str], None] | None
) -> Utility | None:
    study = tables.study
    positive, words = positive_cells(study, outcome)
    target = visit_table(test)
    if not len(target.patient) or outcome not in target.columns:
        return None
    y = np.isin(target.columns[outcome], positive)
    static = outcome in study.features(study.patients)
    made, real = visit_table(tables.synthetic), visit_table(tables.train)
    few = visit_table(tables.train.subset(np.arange(tables.train.panel.patients) < FEW))
    training: dict[str, CodedTable] = {"synthetic": made, "real": real}
    pairs = [("synthetic", "real", "synthetic instead of real")]
    if tables.further:
        every = made
        for other in tables.further:
            every = models.stacked(every, visit_table(other))
        label = f"synthetic, all {len(tables.further) + 1} tables"
        training[label] = every
        pairs.append((label, "synthetic", "all synthetic tables instead of the first"))
    if len(made.patient) and len(real.patient):
        training["real + synthetic"] = models.stacked(real, made)
        pairs.append(("real + synthetic", "real", "synthetic added to real"))
        if tables.train.panel.patients > 2 * FEW:
            training[f"{FEW} real patients"] = few
            training[f"{FEW} real + synthetic"] = models.stacked(few, made)
            pairs.append((f"{FEW} real + synthetic", f"{FEW} real patients", f"synthetic added to {FEW} real patients"))
    hidden = study.evaluation.survival.time if study.evaluation.survival is not None else None
    seen = study.evaluation.predictors
    names = [n for n in target.columns if n not in (outcome, hidden) and (seen is None or n in seen)]
    text = "" if y.any() and not y.all() else "All tested people have the same outcome: there is nothing to measure. "
    scores, gains = models.compare(
        training,
        target,
        outcome=outcome,
        positive=positive,
        names=names,
        per_patient=static,
        pairs=pairs,
        note=note,
    )
    return Utility(
        outcome=outcome,
        positive=words,
        unit="patient" if static else "visit",
        people=test.panel.patients,
        tested_on=tested_on,
        rows=[Trained(**vars(score)) for score in scores],
        differences=[Difference(**vars(gain)) for gain in gains],
        note=text
        + "Intervals draw the tested patients again; how much another synthesis would differ is not part of them.",
    )


def survival_figures(tables: EvaluationTables) -> dict[str, Any]:
    """Return Kaplan-Meier curves, restricted means and Cox models, if the study declares a time and an event."""
    declared = tables.study.evaluation.survival
    if declared is None:
        return {}
    sets = {"real": tables.train, "synthetic": tables.synthetic}
    if tables.held_out.panel.patients:
        sets["held out"] = tables.held_out
    columns = tables.study.features(tables.study.patients)
    for name in (declared.time, declared.event, *declared.covariates):
        if name not in columns:
            raise InputError(
                f"{name!r} is no column of the patients", where="[evaluation] survival", expected=", ".join(columns)
            )
    horizon = declared.horizon or columns[declared.time].low_high[1]
    rng = np.random.default_rng()
    curves, means = [], {}
    for label, coded in sets.items():
        times, events = _times(declared, coded)
        x, y = survival.kaplan_meier(times, events)
        keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).astype(int))
        curves.append(Curve(label=label, x=x[keep].tolist(), y=y[keep].tolist(), y_label="share without the event"))
        means[label] = survival.restricted_mean_interval(times, events, horizon, rng)
    real, made, held = means["real"], means["synthetic"], means.get("held out")
    pairing = Pairing(
        what="restricted mean time",
        of=f"up to {horizon:g}",
        real=real[0],
        synthetic=made[0],
        held_out=None if held is None else held[0],
        distance=abs(real[0] - made[0]),
        floor=None if held is None else abs(real[0] - held[0]),
    )
    a, b = (_cox(tables.study, declared, sets[label]) for label in ("real", "synthetic"))
    rows = []
    for term, first in a.items():
        if term in b:
            second = b[term]
            rows.append(
                CoxRow(
                    term=term,
                    real=first.value,
                    real_low=first.low,
                    real_high=first.high,
                    synthetic=second.value,
                    synthetic_low=second.low,
                    synthetic_high=second.high,
                    overlap=survival.interval_overlap(first, second),
                )
            )
    view = SurvivalView(
        time=declared.time,
        event=declared.event,
        horizon=horizon,
        curves=curves,
        restricted_mean=[pairing],
        cox=rows,
        note="The synthetic intervals treat synthetic patients as real ones and are too short: see the error bars.",
    )
    return {"survival": view}


def _times(declared: Survival, coded: Coded) -> tuple[Floats, Any]:
    frame = coded.cells["patients"]
    times, events = numbers(frame, declared.time), matches(frame, declared.event, declared.values)
    keep = np.isfinite(times)
    return times[keep], events[keep]


def _cox(study: SynthesisStudy, declared: Survival, coded: Coded) -> dict[str, survival.Coefficient]:
    frame, columns = coded.cells["patients"], study.features(study.patients)
    times = numbers(frame, declared.time)
    terms: dict[str, Floats] = {}
    keep = np.isfinite(times)
    for name in declared.covariates:
        if columns[name].type in ("real", "integer", "date"):
            values = numbers(frame, name)
            keep &= np.isfinite(values)
            terms[name] = values
        else:
            for value in (columns[name].categories or ())[1:]:
                terms[f"{name} = {value}"] = matches(frame, name, [value]).astype(np.float64)
    events = matches(frame, declared.event, declared.values)
    fitted = survival.cox(times[keep], events[keep], {term: values[keep] for term, values in terms.items()})
    return {one.term: one for one in fitted}
