"""What a comparison of strategies holds: rows, their estimand, the recommendation, and their JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from confide.errors import InputError, nearest
from confide.planning.histogram import STAMP
from confide.planning.plans import PlanClass

__all__ = ["Comparison", "Estimand", "Row"]


@dataclass(frozen=True)
class Estimand:
    """Whose loss the expected update minimises: weights relative to a contributor with the fewest entries.

    Attributes
    ----------
    reference_entries : int
        Smallest k of the grid (1 unless declared otherwise); its weights are 1.
    entries : tuple of int
        The k compared with it: the 90th percentile of contributors (where a histogram may be used) and the largest.
    person, entry : tuple of float
        Weight of such a person, and of one of their entries on average, in the expected update. Person 1, entry 1/k:
        people count alike. Person k, entry 1: entries count alike.
    """

    reference_entries: int
    entries: tuple[int, ...]
    person: tuple[float, ...]
    entry: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "reference_entries": self.reference_entries,
            "entries": list(self.entries),
            "person": list(self.person),
            "entry": list(self.entry),
        }


@dataclass(frozen=True)
class Row:
    """One strategy at one noise multiplier. None: not known without a histogram.

    Attributes
    ----------
    strategy : str
        Name as asked for; `resolved` has the number in place of ``median``.
    entries_used : float or None
        Share of all entries with positive inclusion probability.
    overprotected : float or None
        Share of contributors who spend under 99 % of their budget.
    expected_entries, expected_contributors : float or None
        Per step.
    effective_noise : float or None
        Noise standard deviation / expected sum of weight x clip in a step.
    epsilon_min, epsilon_max : float
        Guarantee over the classes that have contributors (over the whole grid without a histogram).
    work : float or None
        Gradients per step.
    within_budget : bool
        Whether every class of the grid, inhabited or not, keeps its budget.
    """

    strategy: str
    resolved: str
    noise_multiplier: float
    clip_unit: str
    entries_used: float | None
    overprotected: float | None
    expected_entries: float | None
    expected_contributors: float | None
    effective_noise: float | None
    epsilon_min: float
    epsilon_max: float
    work: float | None
    within_budget: bool
    estimand: Estimand
    classes: tuple[PlanClass, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return every figure of the row as plain values for JSON."""
        names = [f.name for f in fields(self) if f.name not in ("estimand", "classes")]
        values = {name: _finite(getattr(self, name)) for name in names}
        values["estimand"] = self.estimand.to_dict()
        values["classes"] = [c.to_dict() for c in self.classes]
        return values


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Comparison:
    """Strategies side by side, at one noise multiplier or at three.

    Attributes
    ----------
    rows : tuple of Row
        Grouped by noise multiplier.
    noise_multipliers : tuple of float
    recommendations : tuple of (float, str or None)
        For each noise multiplier the strategy within everybody's budget with the lowest effective noise (ties: less
        work per step, then more entries in use); None without a histogram.
    histogram : str
        Where the numbers of contributors come from.
    steps, delta, budgets
        The public constants.
    notes : tuple of str
        What a reader must know beside the figures.
    """

    rows: tuple[Row, ...]
    noise_multipliers: tuple[float, ...]
    recommendations: tuple[tuple[float, str | None], ...]
    histogram: str
    steps: int
    delta: float
    budgets: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def stamp(self) -> str | None:
        """Set where the figures rest on private counts: the comparison is internal."""
        return STAMP if self.histogram == "preview" else None

    @property
    def recommended(self) -> str | None:
        """The recommended strategy; None where there is none or where it differs between noise multipliers."""
        names = {name for _, name in self.recommendations}
        return names.pop() if len(names) == 1 else None

    def row(self, strategy: str, noise_multiplier: float | None = None) -> Row:
        """Return the row of a strategy, at the only or at the named noise multiplier.

        Raises
        ------
        InputError
            No such row.
        """
        for row in self.rows:
            wanted = (
                len(self.noise_multipliers) == 1
                if noise_multiplier is None
                else row.noise_multiplier == noise_multiplier
            )
            if wanted and strategy in (row.strategy, row.resolved):
                return row
        names = [row.strategy for row in self.rows]
        close = nearest(strategy, names)
        raise InputError(
            f"the comparison has no row {strategy!r}"
            + (f" at noise multiplier {noise_multiplier:g}" if noise_multiplier else ""),
            expected=", ".join(dict.fromkeys(names))
            + f" at noise multiplier {', '.join(f'{s:g}' for s in self.noise_multipliers)}",
            remedy=f"did you mean {close!r}?" if close and close != strategy else None,
        )

    def __iter__(self) -> Any:
        return iter(self.rows)

    def to_json_dict(self) -> dict[str, Any]:
        """Return what ``confide plan --json`` prints.

        One noise multiplier: ``{"strategies": {NAME: {"entries_used", "expected_entries", "classes"}},
        "recommended": NAME}``.
        Several: ``{"noise_multipliers": {"0.7": <that>, ...}}``. A preview adds ``"stamp"``; unknown or infinite: null.
        """
        panels: dict[str, Any] = {}
        for sigma, recommended in self.recommendations:
            strategies = {
                row.strategy: {
                    "entries_used": row.entries_used,
                    "expected_entries": row.expected_entries,
                    "classes": [
                        {
                            "entries": c.entries,
                            **({"budget": c.budget} if len(self.budgets) > 1 else {}),
                            "contributors": c.contributors,
                            "rate": c.rate,
                            "clip_norm": c.clip_norm,
                            "epsilon": _finite(c.epsilon),
                        }
                        for c in row.classes
                    ],
                }
                for row in self.rows
                if row.noise_multiplier == sigma
            }
            panels[repr(sigma)] = {"strategies": strategies, "recommended": recommended}
        values: dict[str, Any] = next(iter(panels.values())) if len(panels) == 1 else {"noise_multipliers": panels}
        if self.stamp:
            values["stamp"] = self.stamp
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, the columns of the printed table included."""
        return {
            "noise_multipliers": list(self.noise_multipliers),
            "recommendations": [list(pair) for pair in self.recommendations],
            "histogram": self.histogram,
            "steps": self.steps,
            "delta": self.delta,
            "budgets": list(self.budgets),
            "stamp": self.stamp,
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }
