"""From a study file to what a run needs: table, held-out contributors, plan. Nothing is spent here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.contributors import ContributorIndex, holdout_mask
from confide.data import Table, read_sources
from confide.errors import InputError
from confide.planning import EntryCounts, Plan, plan
from confide.studies.evaluation_section import Paid
from confide.studies.file import BudgetColumn, BudgetRule, Study
from confide.studies.targets import schema_of
from confide.studies.training_section import plan_options


@dataclass
class Prepared:
    """A study's data and split; private.

    Attributes
    ----------
    table : Table
        All entries with their contributors.
    train, held_out : int64 arrays
        Positions of the entries of the two groups of contributors.
    train_index, held_out_index : ContributorIndex
        Who is behind the entries of each group, in the order of `train` and `held_out`.
    budgets : float64 array, shape (training contributors,) or None
        Each training contributor's own epsilon; None when the budget is equal or a rule of the number of entries.
    features : float32 array, optional
        Fixed features of the pictures, where the model learns from nothing else: computed once.
    validation, validation_index
        Entries and contributors that a temperature is fitted on: in neither of the other two groups.
    """

    table: Table
    train: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]
    train_index: ContributorIndex
    held_out_index: ContributorIndex | None
    budgets: npt.NDArray[np.float64] | None
    features: npt.NDArray[np.float32] | None = None
    validation: npt.NDArray[np.int64] | None = None
    validation_index: ContributorIndex | None = None

    @property
    def inputs(self) -> npt.NDArray[np.float32]:
        """What the model is given for every entry of the table."""
        return self.table.features if self.features is None else self.features


def prepare(study: Study, *, base: Path, holdout_key: bytes) -> Prepared:
    """Read the sources and split the contributors by a keyed hash.

    Parameters
    ----------
    study : Study
    base : Path
        Folder that relative paths in the study start from.
    holdout_key : bytes
        Key of the split: the same person falls on the same side in every run with this key, whoever else is there.
    """
    table = read_sources(study.data, schema_of(study), base=base)
    held = holdout_mask(table.index, study.evaluation.holdout, holdout_key)
    if held.all():
        raise InputError(
            "no contributor is left to train on",
            where="[evaluation] holdout",
            expected="a share that leaves someone",
            remedy="lower the share or add data",
        )
    share = _validation_share(study)
    fitted = ~held & holdout_mask(table.index, share, hashlib.sha256(b"temperature:" + holdout_key).digest())
    kept = ~held & ~fitted
    if not kept.any():
        raise InputError(
            "no contributor is left to train on",
            where="[training] temperature",
            expected="a share that leaves someone",
            remedy="lower the share or add data",
        )
    train_index, train = table.index.subset(kept)
    validation_index, validation = table.index.subset(fitted) if fitted.any() else (None, np.empty(0, dtype=np.int64))
    held_out_index, held_out = table.index.subset(held) if held.any() else (None, np.empty(0, dtype=np.int64))
    budgets = own_budgets(study, table)
    own = None if budgets is None else budgets[kept]
    return Prepared(
        table,
        train,
        held_out,
        train_index,
        held_out_index,
        own,
        validation=validation,
        validation_index=validation_index,
    )


def _validation_share(study: Study) -> float:
    """Share of the contributors who are not held out that a temperature is fitted on."""
    return 0.0 if study.training.temperature is None else study.training.temperature.share


def own_budgets(study: Study, table: Table) -> npt.NDArray[np.float64] | None:
    """Each contributor's epsilon where the study reads it from a column of consent levels."""
    rule = study.privacy.budget
    if not isinstance(rule, BudgetColumn):
        return None
    return table.contributor_levels(rule.column, rule.levels)


def declared_counts(study: Study, base: Path) -> dict[int, float] | None:
    """The entry-count histogram that the study declares public, if it does: {entries: contributors}.

    Raises
    ------
    InputError
        The file is missing or is not a table with the columns ``entries`` and ``contributors``.
    """
    declared = study.public.entry_counts
    if declared is None or declared == "preview" or isinstance(declared, Paid):
        return None
    source = base / declared if isinstance(declared, str) else declared
    total: dict[int, float] = {}
    for entries, _, contributors in EntryCounts.of(source).to_list():
        assert entries is not None
        assert contributors is not None
        total[int(entries)] = total.get(int(entries), 0.0) + float(contributors)
    return total


def make_plan(study: Study, histogram: dict[int, float] | None, source: str) -> Plan:
    """The plan of a study for a declared, paid or previewed histogram (or none).

    The histogram is that of everybody in the study; the share that is held out is a public constant, so the expected
    numbers per step are those of the remaining share.
    """
    return plan(**plan_arguments(study, histogram, source))


def plan_arguments(study: Study, histogram: dict[int, float] | None, source: str) -> dict[str, Any]:
    """Arguments of `confide.plan` and `confide.compare` that a study stands for."""
    privacy, public = study.privacy, study.public
    counts = None
    if histogram is not None:
        share = (1.0 - study.evaluation.holdout) * (1.0 - _validation_share(study))
        counts = {k: n * share for k, n in histogram.items()}
    budgets: Any = None
    if isinstance(privacy.budget, BudgetColumn):
        budgets = tuple(sorted(set(privacy.budget.levels.values())))
    elif isinstance(privacy.budget, BudgetRule):
        budgets = privacy.budget.rule
    return {
        "entry_counts": counts,
        "epsilon": privacy.epsilon,
        "delta": study.delta,
        "noise_multiplier": privacy.noise_multiplier,
        "steps": privacy.steps,
        "strategy": privacy.strategy,
        "clip_norm": privacy.clip_norm,
        "max_entries": public.max_entries,
        "histogram": source,
        "budgets": budgets,
        "max_contributors": public.max_contributors,
        "denominator": privacy.denominator,
        "search": None if study.search is None else study.search.terms(),
        **plan_options(study),
    }


def holdout_key(study: Study, secret: bytes | None) -> bytes:
    """Key of the split: the ledger's secret where there is one, else the study's public name."""
    return hashlib.sha256(b"holdout:" + (secret or study.name.encode())).digest()


def histogram_source(study: Study) -> str:
    """``public``, ``paid``, ``preview`` or ``none``."""
    declared = study.public.entry_counts
    if declared is None:
        return "none"
    if declared == "preview":
        return "preview"
    return "paid" if isinstance(declared, Paid) else "public"
