"""What a model is worth, measured on held-out contributors: exact figures for inside, paid ones that may leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from confide.accounting import Gaussian, Guarantee, calibrate_noise, compose
from confide.contributors import ContributorIndex
from confide.errors import ConfideError
from confide.evaluation import evaluate, paid_metrics, per_contributor, reliability, roc_curve
from confide.planning import Plan
from confide.release import PaidMetric, paid_metric
from confide.report import BatchSizes, Curve, DataReport, Event, InternalFigures, Measured, Reliability, Source
from confide.studies.file import Study
from confide.studies.models import build_model
from confide.studies.people import dataset_of, only
from confide.studies.predict import predictor_of
from confide.studies.prepare import Prepared
from confide.studies.targets import answers_of, loss_of, schema_of
from confide.studies.targets_measured import measured_target
from confide.studies.training_section import methods_of, neuraldp_of, optimizer_of

F64 = npt.NDArray[np.float64]
#: Epochs of a model that is trained without privacy, for comparison; of masks the most.
EPOCHS = 200
_NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "accuracy": "accuracy", "mcc": "MCC", "brier": "Brier score"}


def binary_views(
    labels: npt.NDArray[np.int64], scores: F64, outputs: int
) -> list[tuple[str, npt.NDArray[np.int64], F64]]:
    """Return (suffix, 0/1 labels, scores) for a yes/no label, or one class against the rest for each of several."""
    if outputs == 1:
        return [("", labels, scores)]
    return [(f" (class {c} against the rest)", (labels == c).astype(np.int64), scores[:, c]) for c in range(outputs)]


def measure(
    study: Study,
    prepared: Prepared,
    *,
    plan: Plan,
    result: Any,
    scores: F64,
    outputs: int,
    base: Path,
    admitted: npt.NDArray[np.bool_],
    seconds: float,
    watcher: Any,
    device: str,
) -> InternalFigures:
    """Measure the release and the baselines the study names; all of it internal.

    Baselines learn from the `admitted` training contributors alone: whom the ledger dropped is used for nothing.
    """
    took_part = only(prepared, admitted)
    metrics: list[Measured] = []
    roc: list[Curve] = []
    calibration: list[Reliability] = []
    notes: list[str] = []

    def add(name: str, model_scores: F64, role: Any) -> None:
        if prepared.held_out_index is None:
            return
        for row in _measured(study, prepared, name, model_scores, outputs, role):
            metrics.append(row)
        curve, bins = _pictures(study, prepared, name, model_scores, outputs)
        roc.extend(curve)
        calibration.extend(bins)

    try:
        add("this release", scores, "release")
    except ConfideError as error:
        notes.append(f"the release was not measured: {error.what}")
    for name in study.evaluation.baselines:
        try:
            other = baseline_scores(
                study, took_part, plan, name, outputs=outputs, base=base, watcher=watcher, device=device
            )
        except ConfideError as error:
            notes.append(f"baseline {name}: not run ({error.what})")
            continue
        add(name, other, "baseline")
    if prepared.held_out_index is None:
        notes.append("nobody was held out, so nothing was measured")
    internal = result.internal
    steps: list[float | None] = [float(i) for i in range(1, len(internal["loss"]) + 1)]
    unit = "contributors" if plan.clip_unit == "contributor" else "entries"
    return InternalFigures(
        name=study.name,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        learning=[Curve(label="training loss of the drawn entries", x=steps, y=_smooth(internal["loss"]))],
        batches=[BatchSizes(unit=unit, expected=plan.denominator, realised=[int(n) for n in internal["units"]])],
        measured_per=study.evaluation.unit,
        metrics=metrics,
        roc=roc,
        calibration=calibration,
        events=[
            Event(
                what="contributions that were not finite", count=int(internal["nonfinite"]), meaning="counted as zero"
            ),
            Event(
                what="contributors without balance",
                count=int((~admitted).sum()),
                meaning="took no part; divisors stayed as planned",
            ),
        ],
        data=_data_report(prepared),
        timing={"training": round(seconds, 2)},
        notes=[*notes, *([f"run by the {internal['engine']}"] if "engine" in internal else [])],
    )


def _smooth(losses: list[float | None], width: int = 25) -> list[float | None]:
    """Moving mean over the steps that drew anybody: single steps of a sampled run are mostly noise."""
    values = np.array([np.nan if v is None else v for v in losses], dtype=np.float64)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), np.ones(width))[: len(values)]
    count = np.convolve(known.astype(np.float64), np.ones(width))[: len(values)]
    return [float(t / c) if c else None for t, c in zip(total, count, strict=True)]


def _measured(
    study: Study, prepared: Prepared, name: str, scores: npt.NDArray[Any], outputs: int, role: Any
) -> Iterator[Measured]:
    index = prepared.held_out_index
    assert index is not None
    assert prepared.table.labels is not None
    labels = prepared.table.labels[prepared.held_out]
    if schema_of(study).target != "classes":
        yield from measured_target(study, labels, scores, index.of_entry, name, role)
        return
    for suffix, y, s in binary_views(labels, scores, outputs):
        found = evaluate(y, s, index.of_entry, unit=study.evaluation.unit, replicates=study.evaluation.bootstrap)
        for key, words in _NAMES.items():
            if key in found:
                one = found[key]
                yield Measured(
                    model=name,
                    metric=words + suffix,
                    value=one.value,
                    low=one.low,
                    high=one.high,
                    level=one.level,
                    role=role,
                )


def _pictures(
    study: Study, prepared: Prepared, name: str, scores: F64, outputs: int
) -> tuple[list[Curve], list[Reliability]]:
    """ROC and calibration of a yes/no label."""
    if schema_of(study).target != "classes" or outputs != 1:
        return [], []
    if prepared.held_out_index is None or prepared.table.labels is None:
        return [], []
    y, s = prepared.table.labels[prepared.held_out], scores
    # the model predicts entries: a person's mean score against "any entry positive" would look miscalibrated
    predicted, observed, weight = reliability(y, s, spacing="adaptive")
    if study.evaluation.unit == "contributor":
        y, s = per_contributor(y, s, prepared.held_out_index.of_entry)
    fpr, tpr = roc_curve(y, s)
    curve = Curve(label=name, x=fpr.tolist(), y=tpr.tolist(), y_label="true positive rate")
    return [curve], [
        Reliability(model=name, predicted=predicted.tolist(), observed=observed.tolist(), weight=weight.tolist())
    ]


def baseline_scores(
    study: Study, prepared: Prepared, plan: Plan, name: str, *, outputs: int, base: Path, watcher: Any, device: str
) -> F64:
    """Train a baseline on the same split and return its scores on the held-out entries."""
    table = prepared.table
    assert table.labels is not None
    model = build_model(study, inputs=table.input_shape, outputs=outputs, base=base)
    if name == "non-private":
        fit_plainly(study, prepared, model, outputs, watcher)
    else:
        model = _fit_privately(study, prepared, plan, name, model, outputs, watcher, device, base)
    return answers_of(study, model, prepared.inputs[prepared.held_out])


def fit_plainly(study: Study, prepared: Prepared, model: Any, outputs: int, watcher: Any) -> None:
    """Ordinary training without clipping or noise: Adam, every entry once an epoch, entries of equal weight.

    Masks teach more in a step and cost more: batches of 16, about 400 steps and at least 5 epochs of them.
    """
    import torch

    table, loss = prepared.table, loss_of(study)
    assert table.labels is not None
    x = torch.from_numpy(np.ascontiguousarray(prepared.inputs[prepared.train]))
    y = torch.from_numpy(np.ascontiguousarray(table.labels[prepared.train]))
    masks = schema_of(study).target == "mask"
    batch, epochs = (16 if masks else 256), EPOCHS
    if masks:
        epochs = min(max(400 // max(-(-len(x) // batch), 1), 5), EPOCHS)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3 if masks else 0.01)
    model.train()
    watcher.begin("baseline: non-private", epochs)
    with torch.random.fork_rng([]):
        for epoch in range(epochs):
            order = torch.randperm(len(x))
            for rows in torch.split(order, batch):
                optimizer.zero_grad()
                loss(model(x[rows]), y[rows]).mean().backward()
                optimizer.step()
            watcher.step(epoch + 1)
    watcher.end()


def _fit_privately(
    study: Study,
    prepared: Prepared,
    plan: Plan,
    name: str,
    model: Any,
    outputs: int,
    watcher: Any,
    device: str,
    base: Path,
) -> Any:
    """The same budget under another strategy. Its model and figures never leave, so the ledger is not charged."""
    from confide.planning import plan as make

    counts: dict[int, float] = {}
    for row in plan.classes:
        if row.contributors is not None:
            counts[row.entries] = counts.get(row.entries, 0.0) + float(row.contributors)
    median = int(np.median(prepared.train_index.counts))
    strategy = f"truncate({median})" if name == "truncate(median)" else name
    other = make(
        counts or None,
        epsilon=max(plan.budgets),
        delta=plan.delta,
        noise_multiplier=plan.noise_multiplier,
        steps=plan.steps,
        strategy=strategy,
        clip_norm=plan.clip_norm,
        max_entries=plan.max_entries,
        histogram=plan.histogram if counts else "none",
        budgets=plan.rule if plan.rule is not None else plan.budgets,
        max_contributors=study.public.max_contributors or prepared.train_index.n_contributors,
    )
    return fit_with(study, prepared, other, model, outputs, watcher, device, what=f"baseline: {name}", base=base)


def fit_with(
    study: Study,
    prepared: Prepared,
    plan: Plan,
    model: Any,
    outputs: int,
    watcher: Any,
    device: str,
    *,
    what: str,
    base: Path,
) -> Any:
    """Train what a study would release, to stay inside, under any plan and with noise of its own.

    The ledger is not charged. Views, clipping rule, averages, snapshots and members are those of the study; a private
    temperature, which changes no ranking and no answer at one half, is left out.

    Returns
    -------
    torch.nn.Module
        What predicts: the model, or several of one run together.
    """
    from confide.training import EngineOptions, PrivateRun, Ranks
    from confide.training.methods import NeuralDPRun

    plan = dataclasses.replace(plan, clip_norm=study.privacy.clip_norm)
    noised = neuraldp_of(study)
    optimizer = optimizer_of(study, (model if noised is None else model.head).parameters(), plan)
    data = dataset_of(prepared)

    def progress(done: int, _total: int) -> None:
        watcher.step(done)

    watcher.begin(what, plan.steps)
    run: Any
    if noised is not None:
        run = NeuralDPRun(model, optimizer, plan, data, noised, classes=max(outputs, 2), progress=progress)
    else:
        run = PrivateRun(
            model,
            loss_of(study),
            optimizer,
            plan,
            data,
            options=EngineOptions(device=device),
            progress=progress,
            ranks=Ranks(),
            methods=methods_of(study, base),
        )
    result = train_through(run, model)
    watcher.end()
    return predictor_of(model, result.snapshots, outputs=outputs) if result.snapshots else model


def train_through(run: Any, model: Any) -> Any:
    """Drive a private run to its end and return its result; the caller's random numbers stay as they were."""
    import torch

    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        for batch in run:
            run.take(batch)
    return run.result()


def paid_auroc(
    *,
    unit: Literal["contributor", "entry"],
    labels: npt.NDArray[np.int64],
    scores: F64,
    index: ContributorIndex | None,
    epsilon: float,
    delta: float,
    noise: Any,
    also: list[Guarantee],
    reserve: Callable[[ContributorIndex, Guarantee], npt.NDArray[np.bool_]],
    edges: F64 | int = 20,
) -> list[PaidMetric]:
    """Buy AUROC, accuracy and prevalence on held-out contributors from one noisy histogram of scores.

    They are made whoever is there: with nobody held out, or nobody with balance, the histogram is noise alone.

    Parameters
    ----------
    also : list of Guarantee
        What the same people paid for this release besides; each metric states the composition.
    reserve : function
        Charges the people of an index and says who is admitted.
    edges : int or float array
        Bins of scores, public.
    """
    multiplier = calibrate_noise(epsilon, delta=delta, rate=1.0, steps=1)
    guarantee = Gaussian(noise_multiplier=multiplier).guarantee()
    owners = np.empty(0, dtype=np.int64)
    if index is not None:
        keep = reserve(index, guarantee)[index.of_entry]
        labels, scores, owners = labels[keep], scores[keep], index.of_entry[keep]
    else:
        labels, scores = labels[:0], scores[:0]
    paid = paid_metrics(
        labels,
        scores,
        owners,
        noise=noise,
        delta=delta,
        noise_multiplier=multiplier,
        unit=unit,
        edges=edges,
    )
    who = "held-out contributors" + (", with the noisy histogram of entry counts" if also else "")
    whole = compose([guarantee, *also]) if also else guarantee
    return [
        paid_metric(
            one.metric,
            whole,
            delta=delta,
            value=one.value,
            low=one.low,
            high=one.high,
            who=who,
            level=one.level,
            measured_per=one.measured_per,
            note=one.note,
        )
        for one in paid.for_certificate()
    ]


def _data_report(prepared: Prepared) -> DataReport:
    table = prepared.table
    ks, ns = np.unique(table.index.counts, return_counts=True)
    held = prepared.held_out_index
    return DataReport(
        sources=[
            Source(
                source=one.source,
                rows=one.rows,
                used=one.rows,
                imputed=sum(one.filled.values()),
                contributors=one.contributors,
            )
            for one in table.report
        ],
        entry_counts={int(k): int(n) for k, n in zip(ks, ns, strict=True)},
        training_contributors=prepared.train_index.n_contributors,
        training_entries=prepared.train_index.n_entries,
        held_out_contributors=0 if held is None else held.n_contributors,
        held_out_entries=0 if held is None else held.n_entries,
    )
