"""`confide evaluate` where the label is a mask or a number: figures per person, groups, other noise, other budgets.

As for classes, nothing here leaves, and the models that are trained beside the release are thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.evaluation.fairness import MINIMUM
from confide.planning import Plan
from confide.report import InternalFigures
from confide.report.figures import GroupFigure, Measured
from confide.studies.evaluate_groups import members_of
from confide.studies.file import Study
from confide.studies.measure import fit_plainly, fit_with
from confide.studies.models import build_model
from confide.studies.prepare import Prepared
from confide.studies.targets import answers_of, schema_of
from confide.studies.targets_measured import figures_of, measured_target

Answers = npt.NDArray[Any]


@dataclass
class Evaluation:
    """A study, its data and how models are trained for comparison."""

    study: Study
    prepared: Prepared
    base: Path
    watcher: Any
    device: str
    private: Plan

    def answers(self, model: Any) -> Answers:
        """What a model answers for the held-out entries."""
        return answers_of(self.study, model, self.prepared.inputs[self.prepared.held_out])

    def trained(self, how: str, under: Plan | None) -> Answers:
        """Answers of a model that is trained now, under a plan or without privacy."""
        outputs = schema_of(self.study).n_outputs
        model = build_model(self.study, inputs=self.prepared.table.input_shape, outputs=outputs, base=self.base)
        if under is None:
            fit_plainly(self.study, self.prepared, model, outputs, self.watcher)
        else:
            model = fit_with(
                self.study, self.prepared, under, model, outputs, self.watcher, self.device, what=how, base=self.base
            )
        return self.answers(model)

    @property
    def labels(self) -> Answers:
        """Labels of the held-out entries."""
        assert self.prepared.table.labels is not None
        return np.asarray(self.prepared.table.labels[self.prepared.held_out])

    @property
    def owners(self) -> npt.NDArray[np.int64]:
        """Whose each held-out entry is."""
        assert self.prepared.held_out_index is not None
        return self.prepared.held_out_index.of_entry


def evaluate_targets(
    on: Evaluation,
    released: Any,
    figures: InternalFigures,
    *,
    members: int,
    plans: Sequence[tuple[float, Plan]],
    notes: Sequence[str] = (),
) -> InternalFigures:
    """Return the figures of a run with those of the comparison in place.

    Parameters
    ----------
    on : Evaluation
    released : torch.nn.Module
    figures : InternalFigures
        Of the run, or of an earlier evaluation: figures of the same models are replaced, not piled up.
    members : int
        Models with other noise: how far figures depend on it.
    plans : sequence of (epsilon, Plan)
        Other budgets.
    notes : sequence of str
        Further sentences about how figures were made.
    """
    of_release, plain = on.answers(released), on.trained("non-private", None)
    models: list[tuple[str, Answers, Any]] = [
        ("this release", of_release, "release"),
        ("non-private", plain, "baseline"),
    ]
    for i in range(members):
        name = f"other noise {i + 1}"
        models.append((name, on.trained(f"model {i + 1} of {members} with other noise", on.private), "baseline"))
    fresh = [one for name, found, role in models for one in _rows(on, name, found, role)]
    replaced = {name for name, _, _ in models}
    kept = [m for m in figures.metrics if m.model not in replaced and not m.model.startswith("other noise")]
    groups, said = _groups(on, {"this release": of_release, "non-private": plain})
    update: dict[str, Any] = {"metrics": [*fresh, *kept], "groups": groups, "group_notes": [*said, *notes]}
    if plans:
        update["budgets"] = _budgets(on, plans, plain)
    return figures.model_copy(update=update)


def _rows(on: Evaluation, name: str, found: Answers, role: Any) -> list[Measured]:
    return list(measured_target(on.study, on.labels, found, on.owners, name, role))


def _groups(on: Evaluation, models: dict[str, Answers]) -> tuple[list[GroupFigure], list[str]]:
    """Figures inside each declared group; a group of few people is suppressed with the reason."""
    out: list[GroupFigure] = []
    notes: list[str] = []
    if not on.study.evaluation.subgroups:
        notes.append('No subgroups are declared; [evaluation] subgroups = {sex = "sex"} names a column.')
    for attribute, (member, names) in members_of(on.study, on.prepared).items():
        for group in names if names is not None else sorted(set(member.tolist())):
            inside = member == group
            people = len(np.unique(on.owners[inside]))
            common: dict[str, Any] = {"attribute": attribute, "group": str(group), "contributors": people}
            if people < MINIMUM:
                why = f"fewer than {MINIMUM} people"
                notes.append(f"{attribute}: no figures for {str(group)!r}, {why}.")
                out.append(GroupFigure(metric=_first(on), model="this release", suppressed=why, **common))
                continue
            for name, found in models.items():
                for metric, e in figures_of(on.study, on.labels[inside], found[inside], on.owners[inside]).items():
                    one = GroupFigure(metric=metric, model=name, value=e.value, low=e.low, high=e.high, **common)
                    out.append(one)
    return out, notes


def _first(on: Evaluation) -> str:
    return "Dice" if schema_of(on.study).target == "mask" else "mean absolute error"


def _budgets(on: Evaluation, plans: Sequence[tuple[float, Plan]], plain: Answers) -> list[Measured]:
    """The first figure of a model for each budget, and of the one without privacy."""
    found = [
        (f"epsilon {epsilon:g}", on.trained(f"a model for epsilon {epsilon:g}", under)) for epsilon, under in plans
    ]
    rows = [_rows(on, name, one, "release")[0] for name, one in found]
    return [*rows, _rows(on, "non-private", plain, "baseline")[0]]
