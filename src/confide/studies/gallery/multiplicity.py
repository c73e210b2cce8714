"""Are predictions of equally good private models arbitrary, and does an ensemble with abstention help?"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.evaluation import GroupRule, admitted, auroc, ensemble_report, youden_threshold
from confide.evaluation.fairness import MINIMUM
from confide.evaluation.multiplicity import conflict_by_size, disagreement, self_consistency
from confide.studies.gallery.base import Context, GalleryStudy, Outcome, Verdict, over_repetitions

if TYPE_CHECKING:
    from pathlib import Path

    from confide.data import Table
    from confide.studies.gallery.tabular import Split

_MEMBERS = 5
_DELTA = 1e-5
_EPSILON = 8.0
# Of plain steps on scattering coefficients, as in the study of pneumonia.
_RATE_OF_PICTURES = 8.0

_ALIKE = "models that validation cannot tell apart, share"
_APART = "two models contradict each other, share of people"
_COIN = "people told near a coin's toss (self-consistency below 0.6), share"
_CONFLICT = f"conflict among {_MEMBERS} models, share of people"
_COVERAGE = f"coverage of {_MEMBERS} models at the same total, unanimous"
_SELECTIVE = "accuracy of the ensemble where it answers"
_SINGLE = "accuracy of a single model on everybody"
_RESIDUAL = "residual multiplicity of the ensemble"
# Beside the criterion, decides nothing: one threshold for all members, chosen by their mean on validation people.
_SHARED = f"coverage of {_MEMBERS} models at the same total with one threshold for all, unanimous"
_SHARED_RIGHT = "accuracy of that ensemble where it answers"
_GROUPS = {"sex": GroupRule("Gender"), "age": GroupRule("Age", (50, 65))}


def read_pictures(path: Path, limit: int | None) -> Split:
    """Return scattering coefficients of a two-class MedMNIST file with its published splits; each image is a unit.

    Parameters
    ----------
    path : Path
        The .npz file.
    limit : int or None
        At most so many images of each split.

    Raises
    ------
    InputError
        An array is missing, or the labels are not 0 and 1.
    """
    from confide.nn import Scattering2d
    from confide.studies.gallery.pneumonia import read_medmnist
    from confide.studies.gallery.tabular import split_rows

    sides = [read_medmnist(path)[name] for name in ("train", "val", "test")]
    front = Scattering2d(sides[0].images.shape[1:])
    return split_rows([(front.transform(side.images[:limit]), side.labels[:limit]) for side in sides])


def _days() -> Table:
    from confide.data import Schema, SourceSpec, declaration, read_sources

    return read_sources(
        [SourceSpec(source="named:icu", contributor="CombinedID", entry="Study_Day")],
        Schema.from_dict(tomllib.loads(declaration("icu"))["columns"]),
    )


def _run(context: Context) -> Outcome:
    from confide.planning import plan
    from confide.studies.gallery.tabular import split_people, train

    full = context.size == "full"
    splits, models, steps = (5, 15, 60) if full else (1, 4, 20)
    pictures = None if context.data is None else read_pictures(context.data, None if full else 200)
    who, rate = ("people", 0.5) if pictures is None else ("images", _RATE_OF_PICTURES)
    if pictures is None:
        table = _days()
        ks, ns = np.unique(table.index.counts, return_counts=True)
        counts = {int(k): float(n) * 0.6 for k, n in zip(ks, ns, strict=True)}
    else:
        counts = {1: float(len(pictures.train.labels))}
    common: dict[str, Any] = {"epsilon": _EPSILON, "delta": _DELTA, "noise_multiplier": 4.0, "strategy": "individual"}
    single = plan(counts, steps=steps, **common)
    # all members under one total: a plan of as many steps as they have together, the model begun anew in between
    shared = plan(counts, steps=steps * _MEMBERS, **common)
    found: dict[str, list[float]] = {}
    curves: list[list[float]] = []
    for number in range(splits):
        split = split_people(table, context.rng(number)) if pictures is None else pictures
        one = [train(split, single, learning_rate=rate)[0] for _ in range(models)]
        validation = np.stack([split.validation.scores(s) for s in one])
        kept = admitted(split.validation.labels, validation, split.validation.people, metric=auroc, replicates=500)
        said = _decisions(split, one)[kept]
        curve = conflict_by_size(said)
        curves.append(curve.tolist())
        scores = train(split, shared, members=_MEMBERS, learning_rate=rate)
        members = _decisions(split, scores)
        report = ensemble_report(members, split.test.labels)
        for what, value in {
            _ALIKE: kept.mean(),
            _APART: disagreement(said),
            _COIN: (self_consistency(said) < 0.6).mean(),
            _CONFLICT: curve[min(_MEMBERS, curve.size) - 1],
            _COVERAGE: report.coverage,
            _SELECTIVE: report.accuracy,
            _SINGLE: (said == split.test.labels).mean(),
            _RESIDUAL: report.residual_multiplicity,
            **_beside(split, scores, members),
        }.items():
            found.setdefault(what, []).append(float(value))
        context.say(
            f"split {number + 1} of {splits}: {found[_CONFLICT][-1]:.3f} in conflict, {report.coverage:.3f} answered"
        )
    figures = {what: over_repetitions(what, values, share=True) for what, values in found.items()}
    alike, conflict = figures[_ALIKE].ours, figures[_CONFLICT].ours
    answered, residual = figures[_COVERAGE].ours, figures[_RESIDUAL].ours
    arbitrary, remedy = alike >= 0.5 and conflict >= 0.05, residual <= 0.002
    verdict: Verdict = "does not hold"
    if arbitrary or remedy:
        verdict = "holds" if arbitrary and remedy and answered >= 0.9 else "holds in part"
    why = (
        f"{alike:.0%} of the models cannot be told apart, and {_MEMBERS} of them contradict one another on "
        f"{conflict:.1%} of the {who}. {_MEMBERS} models at the same total answer {answered:.1%} and leave "
        f"{residual:.2%}."
    )
    return Outcome(verdict, why, tuple(figures.values()), {"conflict by number of models, a list a split": curves})


def _beside(split: Split, scores: list[npt.NDArray[np.float64]], members: npt.NDArray[np.int64]) -> dict[str, float]:
    """The course of coverage with the votes asked for, who is left without an answer, and one threshold for all."""
    out: dict[str, float] = {}
    for votes in range(_MEMBERS // 2 + 1, _MEMBERS):
        report = ensemble_report(members, split.test.labels, share=votes / _MEMBERS)
        out[f"coverage where {votes} of {_MEMBERS} models agree"] = report.coverage
        out[f"accuracy where {votes} of {_MEMBERS} models agree"] = report.accuracy
    _, first = np.unique(split.test.index.of_entry, return_index=True)
    for attribute, rule in _GROUPS.items():
        if rule.column not in split.table.frame.columns:
            continue
        groups = rule.assign(split.table.values(rule.column)[split.test.entries[first]])
        report = ensemble_report(members, split.test.labels, groups=groups.tolist())
        for name, covered in report.coverage_by_group.items():
            if (groups == name).sum() < MINIMUM:  # as everywhere: too few to speak of a group
                continue
            out[f"abstention of the unanimous ensemble, {attribute} {name}"] = 1.0 - covered
    mean = np.mean([split.validation.scores(one) for one in scores], axis=0)
    cut = youden_threshold(split.validation.labels, mean)
    same = np.stack([split.test.scores(one) >= cut for one in scores]).astype(np.int64)
    report = ensemble_report(same, split.test.labels)
    return out | {_SHARED: report.coverage, _SHARED_RIGHT: report.accuracy}


def _decisions(split: Split, scores: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.int64]:
    """Each model's threshold is its own, chosen on validation people."""
    out = []
    for one in scores:
        cut = youden_threshold(split.validation.labels, split.validation.scores(one))
        out.append((split.test.scores(one) >= cut).astype(np.int64))
    return np.stack(out)


STUDY = GalleryStudy(
    name="multiplicity",
    title="Arbitrary predictions of equally good private models",
    paper='Lockfisch et al., "On arbitrary predictions from equally valid models", 2025',
    claim="Models that validation cannot tell apart contradict one another on a substantial share of the "
    "people; a small ensemble with abstention removes what can be measured of it.",
    criterion=f"At least half of the models are admitted by a paired bootstrap and {_MEMBERS} of them are in conflict "
    f"on at least 5% of test people; {_MEMBERS} models at the same total epsilon {_EPSILON:g}, unanimous, leave a "
    "residual of at most 0.2% and answer at least 90%.",
    data="named:icu: 2,000 intensive-care patients with 18,797 days (real); does the patient die in hospital? Logistic "
    f"regression, epsilon {_EPSILON:g}, delta 1e-5 per patient",
    run=_run,
    own_data="a two-class MedMNIST file (.npz), with its published splits; guarantees and figures are then per image",
    minutes=6.0,
)
