"""`confide evaluate` for a released model: calibration, groups of people, arbitrariness and budgets; all internal.

Nothing here leaves: the figures are exact, on held-out contributors, and go to the internal report. The other models
that are trained (other noise, other budgets, no privacy) stay in memory and are thrown away; they are not charged,
because nobody outside ever sees them or anything made from them. They learn from those people alone whom the ledger
had admitted to the training that is measured and who have not withdrawn since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide._files import write_atomic
from confide.contributors import holdout_mask
from confide.errors import ConfideError, InputError
from confide.evaluation import (
    METRICS,
    ece,
    evaluate,
    nll,
    null_ece,
    per_contributor,
    reliability,
    selective_curve,
    youden_threshold,
)
from confide.planning import Plan, plan
from confide.release import Release
from confide.report import InternalFigures, internal_report
from confide.report.figures import Curve, Measured, Reliability
from confide.studies.evaluate_groups import measure_groups, members_of
from confide.studies.evaluate_multiplicity import FILE, Rows, answer_of, measure_multiplicity
from confide.studies.evaluate_targets import Evaluation, evaluate_targets
from confide.studies.file import Study, load_study, parse_study
from confide.studies.measure import fit_plainly, fit_with
from confide.studies.models import build_model, fixed_features, probabilities
from confide.studies.opening import still_admitted
from confide.studies.people import only
from confide.studies.predict import each_member
from confide.studies.prepare import (
    Prepared,
    declared_counts,
    histogram_source,
    holdout_key,
    plan_arguments,
    prepare,
)
from confide.studies.search import WINNER_FILE, winner_study
from confide.studies.slice_weights import slice_curves
from confide.studies.targets import schema_of
from confide.studies.training_section import neuraldp_of

F64 = npt.NDArray[np.float64]
_BINS = 15
_METRICS = ("AUROC", "accuracy", "sensitivity", "positive rate")


@dataclass(frozen=True)
class Evaluated:
    """Where `confide evaluate` left its figures."""

    figures: InternalFigures
    report: Path
    data: Path


def evaluate_model(
    release: str | Path,
    *,
    study: str | Path | None = None,
    members: int = 0,
    budgets: Sequence[float] = (),
    watcher: Any = None,
    device: str = "auto",
    ledger_url: str | None = None,
) -> Evaluated:
    """Measure a released model on the people who took no part, and rewrite its internal report with the pictures.

    Of several classes the most likely one is the answer: its probability is what calibration and deferral are about,
    groups are compared by the share of right answers, and all figures are per entry with intervals over people. For
    masks and numbers see `confide.studies.evaluate_targets`.

    Parameters
    ----------
    release : path
        A release folder whose internal folder lies beside ``releases``.
    study : path, optional
        The study file; default: the copy in the internal folder, with the data where they were.
    members : int
        Models to train under the same plan with other noise, to see what depends on the noise (0: leave that out). A
        release that is an ensemble shows its own members instead.
    budgets : sequence of float
        Epsilons at which to train a model each, for the picture of privacy against utility.
    watcher : Watcher, optional
    device : str
    ledger_url : str, optional
        The ledger of the release; default: the study's, then ``CONFIDE_LEDGER``, then where the run left it.

    Raises
    ------
    InputError
        No internal folder, nobody held out, or the ledger that knows who took part is not at hand.
    """
    from confide.studies.loaded import load
    from confide.studies.watch import Quiet

    watcher = watcher or Quiet()
    loaded = Release.load(release)
    internal = loaded.internal
    file = internal / "figures.json"
    if not file.is_file():
        raise InputError(
            "this release has no internal folder here",
            where=str(internal),
            expected="figures.json of the run (a release that came from others cannot be measured on their data)",
            remedy="run `confide evaluate` where the release was made",
        )
    figures = InternalFigures.model_validate_json(file.read_text(encoding="utf-8"))
    declared, base = _study(internal, study, figures)
    if declared.search is not None:
        declared = winner_study(declared, loaded.file(WINNER_FILE))
    prepared = prepare(declared, base=base, holdout_key=holdout_key(declared, None))
    if prepared.held_out_index is None or prepared.table.labels is None:
        raise InputError(
            "nobody was held out", where="[evaluation] holdout", expected="a share above 0, chosen before training"
        )
    label = schema_of(declared).label
    outputs = schema_of(declared).n_outputs
    assert label is not None
    may = still_admitted(
        declared,
        base,
        ledger_url,
        written=loaded.certificate.ledger,
        noted=figures.extra.get("ledger"),
        people=prepared.train_index.ids.tolist(),
    )
    prepared = only(prepared, may)
    assert prepared.held_out_index is not None
    plans = _budget_plans(declared, base, budgets)  # what cannot be planned is said before anything is trained
    prepared.features = fixed_features(declared, prepared.table.features, outputs=outputs, base=base)
    if schema_of(declared).target != "classes":
        found_for = Evaluation(declared, prepared, base, watcher, device, Plan.from_dict(loaded.certificate.plan))
        released = load(release, base=base).model
        figures = evaluate_targets(found_for, released, figures, members=members, plans=plans, notes=_left_out(may))
        return _written(internal, figures)
    rows = _rows(declared, prepared, classes=outputs > 1)
    held = prepared.inputs[prepared.held_out]
    released = load(release, base=base).model
    of_release = np.asarray(probabilities(released, held, outputs=outputs), dtype=np.float64)
    private = Plan.from_dict(loaded.certificate.plan)

    made: dict[str, Any] = {"this release": released}

    def train(how: str, under: Plan | None) -> F64:
        model = build_model(declared, inputs=prepared.table.input_shape, outputs=outputs, base=base)
        if under is None:
            fit_plainly(declared, prepared, model, outputs, watcher)
            made[how] = model
        else:
            model = fit_with(declared, prepared, under, model, outputs, watcher, device, what=how, base=base)
        return np.asarray(probabilities(model, held, outputs=outputs), dtype=np.float64)

    plain = train("non-private", None)
    both = {"this release": of_release, "non-private": plain}
    threshold, chosen = _threshold(declared, rows, of_release)
    found: dict[str, Any] = _calibration(rows, both, threshold)
    groups, notes = measure_groups(declared, prepared, rows, both, threshold)
    found["groups"], found["group_notes"] = groups, [chosen, *_one_class(rows), *notes, *_left_out(may)]
    shown = ~rows.validation_entries
    found["slices"] = [] if outputs > 1 else slice_curves(made, held[shown], rows.entry_labels[shown])
    voters, compared = declared.training.voters, []
    if voters is not None:
        compared = list(each_member(released, held, outputs=outputs))
        if members:
            found["group_notes"].append("This release is an ensemble: its own members are compared, no others.")
    elif members:
        others = [train(f"model {i + 1} of {members} with other noise", private) for i in range(members)]
        compared = [of_release, *others]
    each = None
    if compared:
        found["multiplicity"], each = measure_multiplicity(
            rows,
            compared,
            threshold if voters is None else declared.evaluation.threshold,  # of an ensemble: as its answers are given
            private,
            {attribute: member for attribute, (member, _) in members_of(declared, prepared).items()},
            prepared.held_out_index.ids.tolist(),
            agree=None if voters is None else voters.agree,
        )
    if plans:
        found["budgets"] = _budgets(declared, rows, plans, train, plain)
    update = {**found, "metrics": [*figures.metrics, *_calibration_metrics(rows, of_release, plain, figures)]}
    done = _written(internal, figures.model_copy(update=update))
    if each is not None:
        write_atomic(internal / FILE, each.write_csv(), mode=0o600)
    return done


def _written(internal: Path, figures: InternalFigures) -> Evaluated:
    """Write the figures and the page made from them."""
    write_atomic(internal / "report.html", internal_report(figures), mode=0o600)
    write_atomic(internal / "figures.json", figures.to_json(), mode=0o600)
    return Evaluated(figures, internal / "report.html", internal / "figures.json")


def _study(internal: Path, given: str | Path | None, figures: InternalFigures) -> tuple[Study, Path]:
    if given is not None:
        return load_study(given), Path(given).parent
    copy = internal / "study.toml"
    return parse_study(copy.read_text(encoding="utf-8"), where=str(copy)), Path(figures.extra.get("base", "."))


def _rows(study: Study, prepared: Prepared, *, classes: bool) -> Rows:
    index = prepared.held_out_index
    assert index is not None
    assert prepared.table.labels is not None
    labels = prepared.table.labels[prepared.held_out].astype(np.int64)
    # a second keyed coin for every held-out person: validation for choices, the rest for figures
    own = holdout_key(study.model_copy(update={"name": study.name + " validation"}), None)
    share = study.evaluation.validation
    people = holdout_mask(index, share, own) if share > 0 else np.zeros(index.n_contributors, dtype=bool)
    if study.evaluation.unit == "contributor" and not classes:
        y, _ = per_contributor(labels, labels.astype(np.float64), index.of_entry)
        return Rows(y, np.arange(y.size), labels, index.of_entry, "contributor", people, people[index.of_entry])
    of_entry = index.of_entry
    return Rows(labels, of_entry, labels, of_entry, "entry", people[of_entry], people[of_entry], classes)


def _threshold(study: Study, rows: Rows, by_entry: F64) -> tuple[float, str]:
    """Return the threshold and a sentence about where it comes from."""
    if by_entry.ndim == 2:
        return 0.5, "Several classes: the most likely one is the answer, and figures are per entry."
    if not rows.validation.any():
        return study.evaluation.threshold, f"Threshold {study.evaluation.threshold:g}, declared in the study file."
    try:
        value = youden_threshold(rows.labels[rows.validation], rows.scores(by_entry)[rows.validation])
    except InputError:
        return (
            study.evaluation.threshold,
            f"Threshold {study.evaluation.threshold:g}: the validation contributors are all of one class.",
        )
    return value, (
        f"Threshold {value:.3f}: largest sensitivity + specificity on {int(rows.validation.sum())} validation rows, "
        "whose people are in no figure below. It is not part of the release; shipping it would have to be paid for."
    )


def _left_out(may: npt.NDArray[np.bool_]) -> list[str]:
    """Say how many people of the training side the other models have not learned from."""
    if may.all():
        return []
    return [
        f"Models for comparison were trained without {int((~may).sum())} of {may.size} people of the training side: "
        "the ledger had dropped them from this training, or they have withdrawn or been erased since."
    ]


def _one_class(rows: Rows) -> list[str]:
    """Say that figures of two classes are undefined where the people who were held out are all of one."""
    test = ~rows.validation
    if len(np.unique(rows.labels[test])) > 1 or rows.several:
        return []
    what = "people" if rows.unit == "contributor" else "rows"
    return [
        f"All {int(test.sum())} held-out {what} are of one class: AUROC is undefined, and models cannot be compared "
        "by it. Hold more people out, or wait until there are cases of both classes."
    ]


def _calibration(rows: Rows, models: dict[str, F64], threshold: float) -> dict[str, Any]:
    test = ~rows.validation
    curves, bins = [], []
    for name, by_entry in models.items():
        if by_entry.ndim == 2:  # of classes: surest where the most likely one is likely, right where it is the label
            right_answer, sure = answer_of(rows, by_entry)
            share, right = selective_curve(right_answer[test], sure[test], threshold=0.0)
        else:
            share, right = selective_curve(rows.labels[test], rows.scores(by_entry)[test], threshold=threshold)
        curves.append(Curve(label=name, x=share.tolist(), y=right.tolist(), y_label="accuracy on what is answered"))
        # the model predicts entries, so that is where a 30% can be a 30%
        kept = ~rows.validation_entries
        y, p = (rows.entry_labels, by_entry) if by_entry.ndim == 1 else answer_of(rows, by_entry)
        predicted, observed, weight = reliability(y[kept], p[kept], spacing="adaptive")
        bins.append(
            Reliability(model=name, predicted=predicted.tolist(), observed=observed.tolist(), weight=weight.tolist())
        )
    return {"selective": curves, "calibration": bins}


def _calibration_metrics(rows: Rows, of_release: F64, plain: F64, figures: InternalFigures) -> list[Measured]:
    """ECE beside its value by chance, and the likelihood; measured once, however often this is run."""
    known = {(m.model, m.metric) for m in figures.metrics}
    test = ~rows.validation_entries
    out = []
    models: list[tuple[str, F64, Any]] = [("this release", of_release, "release"), ("non-private", plain, "baseline")]
    for name, by_entry, role in models:
        y, p = rows.entry_labels, by_entry
        of_label = (y, p)
        if by_entry.ndim == 2:
            y, p = answer_of(rows, by_entry)
            of_label = (np.ones_like(y), by_entry[np.arange(len(y)), rows.entry_labels])
        y, s = y[test], p[test]
        owners = rows.of_entry[test]
        found = evaluate(
            y, s, owners, unit="entry", metrics={f"ECE per entry ({_BINS} bins)": _ece}, replicates=500
        ) | evaluate(
            of_label[0][test],
            of_label[1][test],
            owners,
            unit="entry",
            metrics={"negative log-likelihood per entry": nll},
            replicates=500,
        )
        out += [
            Measured(model=name, metric=key, value=e.value, low=e.low, high=e.high, level=e.level, role=role)
            for key, e in found.items()
        ]
        if role == "release":
            chance = null_ece(s, bins=_BINS, draws=500)
            out.append(
                Measured(
                    model="by chance, if calibrated",
                    metric=f"ECE per entry ({_BINS} bins)",
                    value=chance.mean,
                    low=0.0,
                    high=chance.high,
                    role="baseline",
                )
            )
    return [m for m in out if (m.model, m.metric) not in known]


def _ece(labels: Any, scores: Any, weights: Any = None) -> Any:
    return ece(labels, scores, weights, bins=_BINS)


def _budget_plans(study: Study, base: Path, budgets: Sequence[float]) -> list[tuple[float, Plan]]:
    """The study's plan at other budgets.

    Raises
    ------
    InputError
        One of them cannot be reached.
    """
    source = histogram_source(study)
    counts = declared_counts(study, base) if source == "public" else None
    arguments = plan_arguments(study, counts, source if source == "public" else "none")
    noised = neuraldp_of(study)
    out = []
    for epsilon in budgets:
        try:
            made = plan(**{**arguments, "epsilon": epsilon, "budgets": None})
            if noised is not None:
                noised.check(made)
        except ConfideError as error:
            raise InputError(
                f"no plan for epsilon {epsilon:g}: {error.what}",
                where="--budgets",
                expected="budgets that the study can reach",
            ) from error
        out.append((epsilon, made))
    return out


def _budgets(study: Study, rows: Rows, plans: Sequence[tuple[float, Plan]], train: Any, plain: F64) -> list[Measured]:
    out = []
    test = ~rows.validation
    for epsilon, under in (*plans, (None, None)):
        name, by_entry = "non-private", plain
        if epsilon is not None:
            name = f"epsilon {epsilon:g}"
            by_entry = train(f"a model for {name}", under)
        name_of = "AUROC"
        y, scores = rows.labels, by_entry
        if rows.several:
            name_of, y = "accuracy", np.ones_like(rows.labels)
            scores = answer_of(rows, by_entry)[0].astype(np.float64)
        one = evaluate(
            y[test],
            rows.scores(scores)[test],
            rows.owners[test],
            unit="entry",
            metrics={name_of: METRICS[name_of.lower()]},
            replicates=study.evaluation.bootstrap,
        )[name_of]
        out.append(
            Measured(
                model=name,
                metric=name_of,
                value=one.value,
                low=one.low,
                high=one.high,
                level=one.level,
                role="baseline" if epsilon is None else "release",
            )
        )
    return out


def summary(evaluated: Evaluated) -> str:
    """Return the figures as one JSON document, for `--json`."""
    return json.dumps(json.loads(evaluated.figures.to_json()), indent=1)
