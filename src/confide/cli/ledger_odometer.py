"""``confide ledger balance | what-if | export``: how much is left, what a release would do, tables for the DPO."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from confide.cli.ledger_app import Json, Key, Url, app, open_ledger
from confide.cli.ledger_people import Ids, read_ids
from confide.errors import InputError


@app.command("balance")
def balance(
    data_set: Annotated[str | None, typer.Option("--data-set", help="A named data set; default: everybody.")] = None,
    ids: Ids = None,
    each: Annotated[bool, typer.Option("--each", help="One line a contributor, in the order of --ids.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show how far the balances of a group are used: everybody, a data set, or the ids in a file."""
    from confide.ledger import Odometer

    if each:
        _each(ids, url, key, as_json)
        return
    if ids is not None and data_set is not None:
        raise InputError("two groups were named", expected="--ids FILE or --data-set NAME")
    with open_ledger(url, key) as ledger:
        who: Any = read_ids(ids, None) if ids is not None else ledger.data_set(data_set) if data_set else None
        found = Odometer(ledger).cohort(who)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
        return
    typer.echo(f"INTERNAL  {found.people} contributors, {found.known} of them known to the ledger")
    for level, used in zip(found.levels, found.quantiles, strict=True):
        typer.echo(f"  {100 * level:>3.0f}% of them have used at most {100 * used:.1f}% of their balance")


def _each(file: Path | None, url: str | None, key: Path | None, as_json: bool) -> None:
    """Print what is left of everybody in a file of ids."""
    if file is None:
        raise InputError("whose balances is not said", where="--each", expected="--ids FILE, one id a line")
    people = read_ids(file, None)
    with open_ledger(url, key) as ledger:
        found = ledger.remaining_of(people)
    if as_json:
        rows = [
            {"contributor": name, "known": left.known, **left.to_dict()}
            for name, left in zip(people, found, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    typer.echo(f"INTERNAL  {len(people)} contributors: share of the balance used, epsilon, releases, consent level")
    for name, left in zip(people, found, strict=True):
        said = (
            f"{100 * left.used:5.1f}%  {left.epsilon:8.3f}  {left.releases:4d}  {left.level}"
            if left.known
            else "unknown"
        )
        typer.echo(f"  {name}  {said}")


@app.command("what-if")
def what_if(
    plan: Annotated[
        Path, typer.Argument(metavar="STUDY.toml|PLAN.json", help="The study that would be run, or a plan.")
    ],
    data_set: Annotated[
        str | None, typer.Option("--data-set", help="For a plan: the data set it would run on.")
    ] = None,
    recipient: Annotated[
        str | None, typer.Option(help="Who would receive it (allowances), not as the study has it.")
    ] = None,
    purpose: Annotated[str | None, typer.Option(help="What for (consent), not as the study has it.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Say who would drop out of a release and what that does to it, without reserving anything."""
    from confide.ledger import Odometer
    from confide.studies import load_study

    study = None if plan.suffix == ".json" else load_study(plan)
    said = {"recipient": "", "purpose": ""} if study is None else study.ledger.flow
    with _ledger_of(study, plan.parent, url, key) as ledger:
        who, class_of, classes = _of_plan(ledger, plan, data_set) if study is None else _of_study(study, plan.parent)
        effect = Odometer(ledger).planned(
            contributors=who,
            class_of=class_of,
            classes=classes,
            recipient=said["recipient"] if recipient is None else recipient,
            purpose=said["purpose"] if purpose is None else purpose,
        )
    found = effect.to_dict()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    typer.echo(
        f"INTERNAL, must not leave: {found['admitted']} of {found['contributors']} contributors would be admitted, "
        f"{found['dropped']} ({100 * effect.dropped_share:.2f}%) have no balance left for it"
    )
    if effect.refused or not effect.kept_share:
        typer.echo("  the release would be refused")
    else:
        typer.echo(
            f"  expected draws a step: {found['draws_per_step_planned']:.4g} planned, "
            f"{found['draws_per_step_kept']:.4g} left ({100 * effect.kept_share:.2f}%); denominators unchanged, so it "
            f"learns as if the noise were {1 / effect.kept_share:.3f} times as large"
        )
    for level, b, a in zip(found["used_quantiles"], found["used_before"], found["used_after"], strict=True):
        typer.echo(f"  {100 * level:>3.0f}% quantile of balance used: {100 * b:.1f}% -> {100 * a:.1f}%")


def _ledger_of(study: Any, base: Path, url: str | None, key: Path | None) -> Any:
    """Open the ledger that was named, or the study's."""
    from confide.studies.opening import open_ledger as of_study

    named = url is not None or key is not None or study is None or study.ledger.url is None
    return open_ledger(url, key) if named else of_study(study, base, None)


def _of_study(study: Any, base: Path) -> tuple[Any, Any, Any]:
    """Return contributors, classes and guarantees of a study file."""
    from confide.studies.people import classes_for
    from confide.studies.prepare import declared_counts, histogram_source, holdout_key, make_plan, prepare

    prepared = prepare(study, base=base, holdout_key=holdout_key(study, None))
    counts = declared_counts(study, base)
    made = make_plan(study, counts, histogram_source(study) if counts is not None else "none")
    guarantees, class_of = classes_for(made, prepared.train_index, prepared.budgets)
    return prepared.train_index.ids.tolist(), class_of, guarantees


def _of_plan(ledger: Any, file: Path, data_set: str | None) -> tuple[Any, Any, Any]:
    """Return the contributors of a data set, and their classes in a plan."""
    import numpy as np

    from confide.planning import Plan

    if data_set is None:
        raise InputError("a plan does not say who takes part", expected="--data-set NAME", where=str(file))
    try:
        plan = Plan.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the plan cannot be read", where=str(file), expected="a plan as JSON") from error
    who = ledger.data_set(data_set)
    counts, class_of = np.unique(who.entries, return_inverse=True)
    return who, class_of.reshape(-1), [plan.guarantee(plan.class_of(int(k))) for k in counts]


@app.command("export")
def export(
    what: Annotated[str, typer.Argument(metavar="releases|balances", help="Which table.")] = "releases",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; default: standard output (CSV of releases).")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="csv or parquet; default: by the file's name.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write releases, or balances by pseudonym, as CSV or Parquet for the data protection officer (internal)."""
    from confide.ledger import export as table
    from confide.release import outside_releases

    if output is not None:
        outside_releases(output)
    kind = format or ("parquet" if output is not None and output.suffix == ".parquet" else "csv")
    with open_ledger(url, key) as ledger:
        if output is None:
            if what != "releases" or kind != "csv":
                raise InputError("this table needs a file", expected="--output FILE")
            sys.stdout.write(table.releases_csv(ledger))
            return
        rows = table.export(ledger, what, output, format=kind)
    typer.echo(f"wrote {rows} rows to {output}; internal, must not leave")
