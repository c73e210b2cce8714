"""A plan: policy, noise, steps and the guarantee of every class, fixed before any data is touched.

>>> from confide.planning import plan
>>> p = plan({1: 900, 2: 100}, epsilon=2.0, delta=1e-5, noise_multiplier=1.0, steps=500)
>>> p.class_of(2).epsilon <= 2.0
True
>>> Plan.from_dict(p.to_dict()) == p
True

Everything in a plan is public and may be printed whole. In a step, each unit's gradient is clipped to
``clip_norm * class.clip_norm``, the clipped gradients are summed, noise N(0, (noise_multiplier * clip_norm)^2 I) is
added, and the sum is divided by ``denominator``, a fixed number; empty steps count.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from confide.accounting import Correlation, Guarantee, SampledGaussian
from confide.errors import InputError, VerificationError
from confide.planning.histogram import HISTOGRAMS, STAMP, EntryCounts
from confide.planning.options import QuantileClipping
from confide.planning.policy import READ_EACH, Costs, Policy, positive, whole_number
from confide.planning.rules import BudgetRule
from confide.planning.search import Search, costs_for

if TYPE_CHECKING:
    from confide.planning.comparison import Comparison

__all__ = ["FORMAT", "Plan", "PlanClass"]

FORMAT = 1
RELATIONS = ("add/remove", "zero-out")
OPTIONAL = ("clipping", "correlation", "search")
_SAME = 1e-9
# a certified epsilon lies up to about 0.1 % above the true one; a check that fails is repeated at this width
_FINE = 1e-4


@dataclass(frozen=True)
class PlanClass:
    """Contributors who share a guarantee.

    Attributes
    ----------
    entries : int
        Own number of entries k.
    budget : float
        Epsilon they asked for.
    rate : float
        Probability per step: of each entry (clip unit "entry"), or of the contributor.
    clip_norm : float
        Clip of a unit in units of the plan's `clip_norm`.
    entries_used : int
        How many of the k entries can enter a step.
    epsilon : float
        What they spend over the whole plan at the plan's delta: an upper bound.
    contributors : int, float or None
        How many there are, where the histogram is public or paid for (then noisy).
    """

    entries: int
    budget: float
    rate: float
    clip_norm: float
    entries_used: int
    epsilon: float
    contributors: int | float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite epsilon is written as null."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["epsilon"] = self.epsilon if math.isfinite(self.epsilon) else None
        return values


@dataclass(frozen=True)
class Plan:
    """Policy, public constants and guarantees; made by `confide.plan`, not by hand.

    Attributes
    ----------
    strategy, clip_unit, noise_multiplier, steps, clip_norm, delta, max_entries
        See `confide.planning.Policy`; `clip_norm` is C, the unit of every class's clip.
    budgets : tuple of float
        Distinct declared budget levels.
    denominator : float
        Fixed number that every noisy sum is divided by: the expected entries (clip unit "entry") or contributors of a
        step, from public or paid numbers, or as declared.
    relation : str
        ``"zero-out"`` where counts or constants of these contributors were declared public, else ``"add/remove"``.
    histogram : str
        ``"public"``, ``"paid"``, ``"preview"`` or ``"none"``.
    classes : tuple of PlanClass
        On the public grid of entries x budgets, sorted by both.
    rule : str or None
        The declared rule from the own number of entries to the budget.
    entry_counts : EntryCounts or None
        The histogram where it is public or paid for; never that of a preview.
    clipping : QuantileClipping or None
        A clipping norm that follows a quantile, starting at `clip_norm`; None: it stays as it is.
    correlation : Correlation or None
        Noise correlated over steps, with the participation pattern that its sensitivity rests on; None: independent.
    search : Search or None
        Terms of a hyper-parameter search: every epsilon here is that of the whole search.
    """

    strategy: str
    clip_unit: str
    noise_multiplier: float
    steps: int
    clip_norm: float
    delta: float
    max_entries: int
    budgets: tuple[float, ...]
    denominator: float
    relation: str
    histogram: str
    classes: tuple[PlanClass, ...]
    rule: str | None = None
    entry_counts: EntryCounts | None = None
    clipping: QuantileClipping | None = None
    correlation: Correlation | None = None
    search: Search | None = None

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clip_norm", "delta", "denominator"):
            object.__setattr__(self, name, positive(getattr(self, name), f"plan {name}"))
        for name in ("steps", "max_entries"):
            object.__setattr__(self, name, whole_number(getattr(self, name), f"plan {name}"))
        for name, choices in (
            ("relation", RELATIONS),
            ("histogram", HISTOGRAMS),
            ("clip_unit", ("entry", "contributor")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}", where="plan", expected=" or ".join(map(repr, choices))
                )
        if self.policy.clip_unit != self.clip_unit:
            raise InputError(
                f"strategy {self.strategy!r} clips each {self.policy.clip_unit}, the plan says {self.clip_unit}",
                where="plan clip_unit",
                expected=repr(self.policy.clip_unit),
            )
        if not self.classes:
            raise InputError("a plan without classes", where="plan classes", expected="at least one")
        if not self._grid:
            raise InputError("two classes share entries and budget", where="plan classes", expected="each pair once")

    @cached_property
    def _grid(self) -> dict[tuple[int, float], PlanClass]:
        grid = {(c.entries, c.budget): c for c in self.classes}
        return grid if len(grid) == len(self.classes) else {}

    @cached_property
    def policy(self) -> Policy:
        """The rule that gave the rates and clips of the classes."""
        return Policy(
            self.strategy,
            max_entries=self.max_entries,
            noise_multiplier=self.noise_multiplier,
            steps=self.rounds,
            delta=self.delta,
            reference_budget=max(self.budgets),
        )

    @property
    def rounds(self) -> int:
        """Steps in which one contributor can be drawn: all of them, or with correlated noise those of their group."""
        return self.steps if self.correlation is None else self.correlation.rounds(self.steps)

    @property
    def gradient_noise(self) -> float:
        """Noise of the sum over the current clipping norm; above `noise_multiplier` where a count is paid for too."""
        return self.noise_multiplier if self.clipping is None else self.clipping.gradient_noise(self.noise_multiplier)

    @property
    def entry_limit(self) -> int:
        """Most entries of one contributor that can enter a step: what the samplers call `max_entries`."""
        return self.policy.limit

    @property
    def stamp(self) -> str | None:
        """What must be said with this plan: set where its parameters came from a look at private counts."""
        return STAMP if self.histogram == "preview" else None

    def class_of(self, entries: int, budget: float | None = None) -> PlanClass:
        """Return the class of a contributor with `entries` entries and their budget.

        Above `max_entries` it is the class of `max_entries` (a random subset is used); between two classes of the grid
        it is the next larger one, whose rate and clip are safe for fewer entries.

        Parameters
        ----------
        entries : int
            Own number of entries, 1 or more.
        budget : float, optional
            Own budget; needed only where several levels were declared.

        Raises
        ------
        InputError
            No entries, a level that was not declared, or no level given where there are several.
        """
        k = min(whole_number(entries, "entries"), self.max_entries)
        if self.rule is not None:
            # a rule may rise with k: the next larger class serves only if its budget is not above this person's own
            own = BudgetRule(self.rule)(k)
            candidates = [c for c in self._by_budget[None] if c.entries >= k and c.budget <= own]
            if not candidates:
                raise InputError(
                    f"no class of this plan is safe for {k} entries with a budget of {own:g}",
                    where="class_of",
                    expected="a number of entries that the declared histogram contains",
                    remedy="declare the histogram with this number of entries, or plan without a histogram",
                )
            return candidates[0]
        level = self.budgets[0] if budget is None and len(self.budgets) == 1 else budget
        if level is None or float(level) not in self._by_budget:
            raise InputError(
                f"no class has a budget of {level:g}"
                if level is not None
                else "several budget levels and none was given",
                where="class_of",
                expected=f"a declared level: {', '.join(f'{b:g}' for b in self.budgets)}",
                remedy="declare the level in the plan: levels are public, who chose which is not",
            )
        row = self._by_budget[float(level)]
        return row[min(bisect_left(row, k, key=lambda c: c.entries), len(row) - 1)]

    @cached_property
    def _by_budget(self) -> dict[float | None, tuple[PlanClass, ...]]:
        rows: dict[float | None, list[PlanClass]] = {None: []}
        for c in sorted(self.classes, key=lambda c: (c.entries, c.budget)):
            rows[None].append(c)
            rows.setdefault(c.budget, []).append(c)
        return {level: tuple(row) for level, row in rows.items()}

    def mechanism(self, c: PlanClass) -> SampledGaussian:
        """Return one step's mechanism as it meets a contributor of class `c`."""
        return self.policy.mechanism(entries=c.entries, rate=c.rate, clip_norm=c.clip_norm, relation=self.relation)

    def guarantee(self, c: PlanClass) -> Guarantee:
        """Return what a contributor of class `c` is guaranteed over all steps, and over the whole search if any."""
        training = self.mechanism(c).guarantee(self.rounds)
        return training if self.search is None else self.search.over(training)

    def compare(self, entry_counts: EntryCounts | Mapping[Any, Any] | str | None = None) -> Comparison:
        """Return all strategies side by side under this plan's constants, with this plan's strategy among them.

        Parameters
        ----------
        entry_counts : mapping or path, optional
            Counts to preview on; the result is then internal. A public or paid plan brings its own.
        """
        from confide.planning.side_by_side import compare

        counts, kind = self.entry_counts, self.histogram
        if entry_counts is not None:
            counts, kind = EntryCounts.of(entry_counts), "preview"
        elif counts is None:
            kind = "none"
        return compare(
            counts,
            epsilon=max(self.budgets),
            delta=self.delta,
            noise_multiplier=self.noise_multiplier,
            steps=self.rounds,
            max_entries=self.max_entries,
            histogram=kind,
            budgets=self.rule if self.rule is not None else self.budgets,
            strategies=(self.strategy,),
        )

    def check(self) -> None:
        """Recompute the epsilon of every class from its rate, clip and entries, and its place within the budget.

        Raises
        ------
        VerificationError
            A class states less than it spends, spends more than its budget (`per-entry` states that it does), or uses
            more entries than the strategy allows: the plan was changed by hand, or damaged.
        """
        costs = costs_for(self.noise_multiplier, self.rounds, self.delta, self.search)
        self._check_correlation()
        for c in self.classes:
            used = int(self.policy.used([c.entries])[0])
            possible = 0 <= c.rate <= 1 and 0 < c.clip_norm <= 1 and c.entries <= self.max_entries
            if not (possible and c.entries_used == used):
                raise VerificationError(
                    "a class does not follow its strategy",
                    where=f"class of {c.entries} entries, budget {c.budget:g}",
                    expected=f"a rate in 0..1, a clip in (0, 1], {used} of at most {self.max_entries} entries in use",
                    remedy="make the plan anew: do not train with this one",
                )
        settled = self._calibrated(costs)
        rest = [c for c, done in zip(self.classes, settled, strict=True) if not done]
        units = self.policy.accounted([c.entries for c in rest])
        read = costs.spent(units.tolist(), [c.rate for c in rest], [c.clip_norm for c in rest])
        spent = dict(zip(((c.entries, c.budget) for c in rest), read.tolist(), strict=True))
        for c in self.classes:
            epsilon = spent.get((c.entries, c.budget), c.epsilon)
            where = f"class of {c.entries} entries, budget {c.budget:g}"
            if not epsilon <= c.epsilon * (1 + _SAME) and not self._spends_at_most(c, c.epsilon):
                raise VerificationError(
                    f"a class states epsilon {c.epsilon:.6g} and spends {epsilon:.6g}",
                    where=where,
                    expected="a stated epsilon that is not below the recomputed one",
                    remedy="make the plan anew: do not train with this one",
                )
            if c.epsilon > c.budget * (1 + 1e-12) and self.strategy != "per-entry":
                raise VerificationError(
                    f"a class spends {c.epsilon:.6g} of a budget of {c.budget:g}",
                    where=where,
                    expected="a guarantee within the budget",
                    remedy="make the plan anew: do not train with this one",
                )

    def _check_correlation(self) -> None:
        factor = self.correlation
        if factor is None:
            return
        if not factor.check(self.steps):
            raise VerificationError(
                f"the noise's factor lets a contributor change the run by {factor.sensitivity(self.steps):.6g}",
                where="plan correlation",
                expected=f"at most the square root of {self.rounds} participations",
                remedy="make the plan anew: do not train with this one",
            )
        if not factor.amplifies and any(c.rate != 1 for c in self.classes):
            raise VerificationError(
                f"{factor.kind} noise does not count on secret sampling, but a class has a rate below 1",
                where="plan classes",
                expected="rates of 1: everybody takes part whenever it is their group's turn",
                remedy="make the plan anew: do not train with this one",
            )

    def _calibrated(self, costs: Costs) -> list[bool]:
        """Tell which of very many classes a fresh calibration covers: as much rate or clip, within what they state.

        Calibration shares its work between classes; reading each one by itself takes about 10 ms a class.
        """
        n = len(self.classes)
        if n <= READ_EACH or self.search is not None or self.correlation is not None:
            return [False] * n
        used = self.policy.used([c.entries for c in self.classes]).tolist()
        budgets = [c.budget for c in self.classes]
        if self.strategy == "individual":
            most, bounds = costs.rates(used, budgets), costs.rate_bounds(used, budgets)
            mine, plain = [c.rate for c in self.classes], [c.clip_norm == 1 for c in self.classes]
        elif self.strategy == "scale":
            rate = self.classes[0].rate
            most, bounds = costs.clips(used, budgets, rate), costs.clip_bounds(used, budgets, rate)
            mine, plain = [c.clip_norm for c in self.classes], [c.rate == rate for c in self.classes]
        else:
            return [False] * n  # these have a handful of different mechanisms, each read once
        return [
            bool(same and own <= top and bound <= c.epsilon * (1 + _SAME))
            for c, own, top, bound, same in zip(self.classes, mine, most, bounds, plain, strict=True)
        ]

    def _spends_at_most(self, c: PlanClass, epsilon: float) -> bool:
        """Tell by a finer calculation: another machine's rounding may move the bound within its own tolerance."""
        return self.guarantee(c).epsilon_interval(self.delta, rtol=_FINE)[1] <= epsilon * (1 + _SAME)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` gives back an equal plan."""
        values: dict[str, Any] = {"format": FORMAT}
        values.update({f.name: getattr(self, f.name) for f in fields(self)})
        values["budgets"] = list(self.budgets)
        values["classes"] = [c.to_dict() for c in self.classes]
        values["entry_counts"] = None if self.entry_counts is None else self.entry_counts.to_list()
        values["stamp"] = self.stamp
        # Left out where they are not used: plans, and their fingerprints, stay what they were before these existed.
        for name in OPTIONAL:
            values.pop(name)
        if self.clipping is not None:
            values["clipping"] = self.clipping.to_dict(self.noise_multiplier)
        if self.correlation is not None:
            values["correlation"] = self.correlation.to_dict()
        if self.search is not None:
            values["search"] = self.search.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Read a plan written by `to_dict`; `check` then recomputes what it claims.

        Raises
        ------
        InputError
            A missing or unknown key, another format, a value of the wrong kind.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            found = values.get("format") if isinstance(values, Mapping) else type(values).__name__
            raise InputError(
                f"not a plan of format {FORMAT} (found {found!r})", where="plan", expected="Plan.to_dict() as JSON"
            )
        names = {f.name for f in fields(cls)}
        given = set(values) - {"format", "stamp"}
        if given | set(OPTIONAL) != names:
            odd = sorted((given | set(OPTIONAL)) ^ names)
            raise InputError(
                f"a plan with unknown or missing keys: {', '.join(odd)}",
                where="plan",
                expected=", ".join(sorted(names)),
            )
        try:
            classes = tuple(_class_from(row) for row in values["classes"])
            counts = values["entry_counts"]
            arguments = {name: values[name] for name in names if name in values}
            if values.get("search") is not None:
                arguments["search"] = Search.from_dict(values["search"])
            arguments["budgets"] = tuple(positive(b, "plan budgets") for b in values["budgets"])
            arguments["classes"] = classes
            if counts is not None:
                table = {(k, b) if b is not None else k: n for k, b, n in counts}
                arguments["entry_counts"] = EntryCounts.of(table, kind=values["histogram"])
            if "clipping" in values:
                arguments["clipping"] = QuantileClipping.from_dict(values["clipping"], values["noise_multiplier"])
            if "correlation" in values:
                arguments["correlation"] = Correlation.from_dict(values["correlation"])
        except (TypeError, ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"a plan that cannot be read: {error}", where="plan", expected="Plan.to_dict() as JSON"
            ) from error
        return cls(**arguments)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the canonical JSON (sorted keys, no spaces, floats by repr)."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _class_from(row: Mapping[str, Any]) -> PlanClass:
    names = {f.name for f in fields(PlanClass)}
    if set(row) != names:
        raise InputError(
            f"a class with unknown or missing keys: {', '.join(sorted(set(row) ^ names))}",
            where="plan classes",
            expected=", ".join(sorted(names)),
        )
    number = row["contributors"]
    return PlanClass(
        entries=whole_number(row["entries"], "entries of a class"),
        budget=positive(row["budget"], "budget of a class"),
        rate=float(row["rate"]),
        clip_norm=float(row["clip_norm"]),
        entries_used=whole_number(row["entries_used"], "entries_used of a class"),
        epsilon=math.inf if row["epsilon"] is None else float(row["epsilon"]),
        contributors=number if number is None or isinstance(number, int) else float(number),
    )
