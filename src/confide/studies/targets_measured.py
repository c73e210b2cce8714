"""Figures of masks and of numbers on held-out people, and of both in declared groups; all of it internal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.evaluation import Estimate, evaluate_masks, evaluate_numbers
from confide.report.figures import Measured
from confide.studies.targets import schema_of, truth_of

if TYPE_CHECKING:
    from confide.studies.file import Study


def figures_of(
    study: Study, labels: npt.NDArray[Any], answers: npt.NDArray[Any], of_entry: npt.NDArray[np.int64]
) -> dict[str, Estimate]:
    """Return named figures with intervals over people.

    Parameters
    ----------
    study : Study
    labels : array
        As `Table.labels`, of held-out entries.
    answers : array
        From `answers_of`, of the same entries.
    of_entry : int64 array, shape (entries,)

    Returns
    -------
    dict of str to Estimate
        Of masks Dice and 95% Hausdorff distance for each class but the first, which is the background; of numbers mean
        absolute error, root of the mean squared error and R2.
    """
    schema = schema_of(study)
    assert schema.label is not None
    name, column = schema.label
    repeats = study.evaluation.bootstrap
    if schema.target == "number":
        found = evaluate_numbers(truth_of(study, labels), answers, of_entry, replicates=repeats)
        return {key if key == "R2" else f"{key} of {name}": one for key, one in found.items()}
    classes = [1] if schema.n_outputs == 1 else range(1, schema.n_outputs)
    unit = "pixels" if column.spacing is None else "units of the spacing"
    out: dict[str, Estimate] = {}
    for position in classes:
        said = "" if schema.n_outputs == 1 else f" of class {(column.classes or ())[position]}"
        found = evaluate_masks(
            list(labels == position),
            list(answers == position),
            of_entry,
            spacing=1.0 if column.spacing is None else column.spacing,
            replicates=repeats,
        )
        out["Dice" + said] = found["dice"]
        out[f"HD95{said} ({unit})"] = found["hd95"]
    return out


def measured_target(
    study: Study,
    labels: npt.NDArray[Any],
    answers: npt.NDArray[Any],
    of_entry: npt.NDArray[np.int64],
    model: str,
    role: Any,
) -> Iterator[Measured]:
    """Give one row of the report for each figure of `figures_of`."""
    for metric, one in figures_of(study, labels, answers, of_entry).items():
        yield Measured(
            model=model, metric=metric, value=one.value, low=one.low, high=one.high, level=one.level, role=role
        )
