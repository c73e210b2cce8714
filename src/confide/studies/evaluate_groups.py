"""Groups of held-out people that a study declares: figures of the release and of the non-private model beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.evaluation import Group, GroupRule, comorbidity, fairness, gap_correlation
from confide.evaluation.groups import UNKNOWN
from confide.report.figures import GroupFigure
from confide.studies.evaluate_multiplicity import Rows, answer_of
from confide.studies.evaluation_section import Subgroups
from confide.studies.file import Study
from confide.studies.prepare import Prepared

F64 = npt.NDArray[np.float64]
_METRICS = (
    *("AUROC", "accuracy", "sensitivity", "positive rate", "positive_rate_difference", "accuracy_difference"),
    *("equal_opportunity_difference", "auroc_difference"),
)


def members_of(study: Study, prepared: Prepared) -> dict[str, tuple[npt.NDArray[np.str_], Any]]:
    """Attribute -> (group of each held-out entry, declared groups)."""
    out: dict[str, tuple[npt.NDArray[np.str_], Any]] = {}
    for attribute, declared in study.evaluation.subgroups.items():
        if declared.column is None:
            out[attribute] = _counted(study, prepared, declared)
            continue
        rule = GroupRule(declared.column, declared.cuts)
        categories = None if rule.cuts else study.columns[rule.column].categories
        names = None if not rule.cuts and categories is None else rule.names(categories)
        member = rule.assign(prepared.table.values(rule.column)[prepared.held_out])
        out[attribute] = (member, None if names is None else (*names, *sorted(set(member.tolist()) - set(names))))
    return out


def _counted(study: Study, prepared: Prepared, group: Subgroups) -> tuple[npt.NDArray[np.str_], tuple[str, ...]]:
    """Group of each held-out entry by how many of several columns say yes."""
    values = [np.asarray(prepared.table.values(column), dtype=str)[prepared.held_out] for column in group.count]
    there = [v == str((study.columns[c].categories or ("", ""))[1]) for c, v in zip(group.count, values, strict=True)]
    # the predicted finding itself is no co-morbidity: it stands in front and does not count
    member = comorbidity(np.column_stack([np.zeros_like(there[0]), *there]), 0, most=group.most)
    member = np.where(np.any([v == "" for v in values], axis=0), UNKNOWN, member)
    every = np.zeros((group.most + 1, group.most + 1), dtype=int)
    every[:, 1:] = np.tril(np.ones((group.most + 1, group.most), dtype=int), -1)
    names = tuple(comorbidity(every, 0, most=group.most).tolist())
    return member, (*names, *sorted(set(member.tolist()) - set(names)))


def measure_groups(
    study: Study, prepared: Prepared, rows: Rows, models: dict[str, F64], threshold: float
) -> tuple[list[GroupFigure], list[str]]:
    """Return figures of every declared group for both models, and sentences about them.

    Parameters
    ----------
    study : Study
    prepared : Prepared
    rows : Rows
    models : mapping of "this release" and "non-private" to float64 arrays
        Probabilities of every held-out entry.
    threshold : float
        Where a probability becomes a yes.
    """
    index = prepared.held_out_index
    assert index is not None
    assert prepared.table.labels is not None
    out: list[GroupFigure] = []
    notes: list[str] = []
    pairs: list[tuple[Group, Group]] = []
    shown_metrics = ("accuracy", "accuracy_difference") if rows.several else _METRICS
    keep = ~rows.validation if rows.unit == "entry" else ~rows.validation[index.of_entry]
    labels = prepared.table.labels[prepared.held_out]
    if not study.evaluation.subgroups:
        notes.append('No subgroups are declared; [evaluation] subgroups = {sex = "sex"} names a column.')
    for attribute, (member, names) in members_of(study, prepared).items():
        by_model = {}
        for name, by_entry in models.items():
            y, p = labels, by_entry
            if rows.several:  # right or wrong, whatever the class
                y, p = np.ones_like(labels), answer_of(rows, by_entry)[0].astype(np.float64)
            by_model[name] = fairness(
                y[keep],
                p[keep],
                index.of_entry[keep],
                member[keep],
                attribute=attribute,
                threshold=threshold,
                unit=rows.unit,
                known=names,
                replicates=study.evaluation.bootstrap,
            )
            for group in by_model[name].groups:
                common: dict[str, Any] = {"attribute": attribute, "group": group.name, "model": name}
                common["contributors"] = group.contributors
                if group.suppressed and name == "this release":
                    notes.append(f"{attribute}: no figures for {group.name!r}, {group.suppressed}.")
                if group.suppressed:
                    out.append(GroupFigure(metric=shown_metrics[0], suppressed=group.suppressed, **common))
                for key, e in {**group.metrics, **group.differences}.items():
                    if key not in shown_metrics:
                        continue
                    out.append(GroupFigure(metric=key, value=e.value, low=e.low, high=e.high, **common))
        both = zip(by_model["this release"].groups, by_model["non-private"].groups, strict=True)
        shown = [(a, b) for a, b in both if not a.suppressed and not b.suppressed]
        notes += _gap(attribute, shown, shown_metrics[0])
        pairs += shown
    if len(study.evaluation.subgroups) > 1:
        notes += _gap("all groups together, which share people", pairs, shown_metrics[0])
    return out, notes


def _gap(attribute: str, pairs: Sequence[tuple[Group, Group]], metric: str) -> list[str]:
    """Whether the groups that lose most by privacy are the small or the difficult ones; private model first."""
    gaps = [a.metrics[metric].value - b.metrics[metric].value for a, b in pairs]
    out = []
    for what, values in (
        ("number of people", [float(a.contributors) for a, _ in pairs]),
        (f"difficulty (non-private {metric})", [b.metrics[metric].value for _, b in pairs]),
    ):
        try:
            r, p = gap_correlation(gaps, values)
        except InputError:
            continue
        out.append(
            f"{attribute}: correlation of the private minus non-private {metric} with {what}: r = {r:.2f}, p = {p:.2f}."
        )
    return out
