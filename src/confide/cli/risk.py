"""``confide risk``: what an attacker could do at best, for a release, a plan or a study, or at several budgets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from confide._files import write_atomic
from confide.errors import InputError

if TYPE_CHECKING:
    from confide.planning import Plan
    from confide.report import RiskCase
    from confide.risk import MeanEstimation, RiskProfile


def run_risk(
    target: Path,
    *,
    entries: int | None,
    budgets: str | None,
    record: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print sentences and a table; with `output` also write the page with the plots."""
    from confide.release import outside_releases
    from confide.report import risk_report
    from confide.risk import profile

    if output is not None:
        outside_releases(output)
    name, delta, cases = cases_of(target, entries=entries, budgets=budgets, record=record)
    profiles = [profile(one.guarantee, name=one.name, delta=delta, target=one.target) for one in cases]
    if output is not None:
        write_atomic(output, risk_report(cases, delta=delta, subtitle=name))
    if as_json:
        print(json.dumps({"name": name, "delta": delta, "profiles": [one.to_dict() for one in profiles]}, indent=1))
        return
    console = Console()
    _show(console, name, profiles)
    if output is not None:
        console.print(f"\nwrote {output}", highlight=False, soft_wrap=True)


def cases_of(
    target: Path, *, entries: int | None, budgets: str | None, record: str | None
) -> tuple[str, float, tuple[RiskCase, ...]]:
    """Return (name, delta, cases): classes of a release or plan, or one class at several budgets."""
    from confide.report import RiskCase, risk_cases

    if target.is_dir():
        from confide.release import Release, guarantee_of

        certificate = Release.load(target).certificate
        mean = _record(record, float(certificate.plan.get("noise_multiplier", 0.0)))
        if budgets is not None:
            raise InputError(
                "a release has one budget and it is spent",
                where="--budgets",
                expected="--budgets with a study file or a plan",
            )
        cases = list(risk_cases(certificate, target=mean))
        if entries is not None:
            found = [one for one in certificate.classes if one.entries >= entries] or [certificate.classes[-1]]
            one = min(found, key=lambda c: c.entries)
            cases = [RiskCase(f"contributor with {entries} entries", guarantee_of(one), mean)]
        return certificate.name, certificate.delta, tuple(cases)
    name, plan = plan_of(target)
    mean = _record(record, plan.noise_multiplier)
    if budgets is not None:
        return name, plan.delta, _at_budgets(plan, budgets, entries, mean)
    if entries is not None:
        row = plan.class_of(entries, max(plan.budgets))
        return name, plan.delta, (RiskCase(f"contributor with {entries} entries", plan.guarantee(row), mean),)
    rows = sorted(plan.classes, key=lambda c: (c.epsilon, c.entries))
    chosen = {"most exposed class": rows[-1], "middle class": rows[len(rows) // 2], "least exposed class": rows[0]}
    cases_by: dict[Any, RiskCase] = {}
    for word, row in chosen.items():
        guarantee = plan.guarantee(row)
        cases_by.setdefault(guarantee.parts, RiskCase(f"{word} (k = {row.entries})", guarantee, mean))
    return name, plan.delta, tuple(cases_by.values())


def plan_of(target: Path) -> tuple[str, Plan]:
    """Read a plan as JSON, or make the plan that a study file stands for without looking at its data."""
    from confide.planning import Plan

    if not target.is_file():
        raise InputError(
            "there is no such release, plan or study",
            where=str(target),
            expected="a release folder, a plan as JSON, or a study file",
        )
    if target.suffix == ".json":
        try:
            return target.stem, Plan.from_dict(json.loads(target.read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise InputError(
                f"this is not JSON: {error}", where=str(target), expected="Plan.to_dict() as JSON"
            ) from error
    from confide.studies.file import load_study
    from confide.studies.prepare import declared_counts, make_plan

    study = load_study(target)
    counts = declared_counts(study, target.parent)
    return study.name, make_plan(study, counts, "public" if counts is not None else "none")


def _at_budgets(plan: Plan, text: str, entries: int | None, mean: MeanEstimation | None) -> tuple[RiskCase, ...]:
    """Give one class at several budgets: the strategy's rate and clip at each, same noise and steps."""
    from confide.planning.search import costs_for
    from confide.report import RiskCase

    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or any(not level > 0 for level in levels):
        raise InputError(f"--budgets {text!r} cannot be read", expected="epsilons separated by commas, such as 1,4,8")
    k = entries or plan.max_entries
    costs = costs_for(plan.noise_multiplier, plan.rounds, plan.delta, plan.search)
    policy = dataclasses.replace(plan.policy, steps=plan.rounds, _costs=costs)
    cases = []
    for level in levels:
        table = policy.assign([k], [level])
        rate, clip = float(table.rates[0]), float(table.clips[0])
        mechanism = policy.mechanism(entries=k, rate=rate, clip_norm=clip, relation=plan.relation)
        whole = mechanism.guarantee(plan.rounds)
        whole = whole if plan.search is None else plan.search.over(whole)
        cases.append(RiskCase(f"budget {level:g} (k = {k})", whole, mean))
    return tuple(cases)


def _record(text: str | None, noise: float) -> MeanEstimation | None:
    """Read ``NORM,VALUES[,RANGE]``: the record that a from-scratch attack would rebuild."""
    if text is None:
        return None
    from confide.risk import MeanEstimation

    try:
        parts = [float(part) for part in text.split(",")]
        norm, values, extent = (*parts, 1.0)[:3] if len(parts) == 2 else parts
    except ValueError:
        raise InputError(
            f"--record {text!r} cannot be read",
            expected="NORM,VALUES or NORM,VALUES,RANGE: smallest norm of a record, how many values it has, their range",
        ) from None
    return MeanEstimation(noise=noise, norm=norm, dimension=int(values), data_range=extent)


def _show(console: Console, name: str, profiles: list[RiskProfile]) -> None:
    console.print(f"{name}: what an attacker could do at best", style="bold", highlight=False)
    for one in profiles:
        console.print(f"\n{one.name}", style="bold", highlight=False)
        for sentence in one.sentences:
            console.print(f"  {sentence}", highlight=False, markup=False)
    table = Table(title="Upper bounds against every attacker; none was observed")
    table.add_column("")
    for one in profiles:
        table.add_column(one.name, justify="right")
    roc = [dict(one.roc) for one in profiles]
    gamma = [dict(one.reconstruction) for one in profiles]
    rows: list[tuple[str, list[str]]] = [
        (f"epsilon at delta {profiles[0].delta:g}", [f"{one.epsilon:.3f}" for one in profiles]),
        ("membership advantage", [f"{one.advantage:.1%}" for one in profiles]),
        ("people recognised at 1% false alarms", [f"{one[0.01]:.1%}" for one in roc]),
        ("area under the best ROC", [f"{one.auc:.3f}" for one in profiles]),
        ("right among 100 candidates", [f"{one[0.01]:.1%}" for one in gamma]),
        ("right among a million candidates", [f"{one[1e-6]:.2e}" for one in gamma]),
        ("information about the person, bits", [f"{one.mutual_bits:.2f}" for one in profiles]),
    ]
    if any(one.corridor.uninformed_psnr is not None for one in profiles):
        rows.append(
            (
                "from scratch: PSNR reached in half the attacks, dB",
                [
                    "" if one.corridor.uninformed_psnr is None else f"{one.corridor.uninformed_psnr:.1f}"
                    for one in profiles
                ],
            )
        )
    for what, values in rows:
        table.add_row(what, *values)
    console.print()
    console.print(table)
    console.print("These figures rest on:", highlight=False)
    for line in sorted({text for one in profiles for text in one.assumed_public}):
        console.print(f"  - {line}", highlight=False, markup=False)
    for text in (profiles[0].corridor.best_informed_assumption, profiles[0].corridor.uninformed_assumption):
        console.print(f"  - {text}", highlight=False, markup=False)
