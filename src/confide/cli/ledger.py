"""``confide ledger status | history | what-if | export``: look at a ledger. What it prints is internal."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from confide.cli import ledger_people, ledger_upkeep
from confide.cli.ledger_app import Json, Key, Url, app, open_ledger

__all__ = ["app", "ledger_people", "ledger_upkeep"]


@app.command("status")
def status(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show the cap, the reservations and how far balances are used."""
    with open_ledger(url, key) as ledger:
        found, rows = ledger.status(), ledger.reservations()
    if as_json:
        typer.echo(json.dumps(found.to_dict() | {"releases": [row.to_dict() for row in rows]}, indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"INTERNAL  {found.where}", style="bold", highlight=False, soft_wrap=True)
    rule = found.rule
    console.print(
        f"cap epsilon {rule.get('epsilon', 0):g} at delta {rule.get('delta', 0):g}; {found.contributors} contributors "
        f"known; {found.journal} journal entries",
        highlight=False,
    )
    table = Table()
    for name in ("release", "data set", "state", "reserved", "admitted", "dropped"):
        table.add_column(name, justify="right" if name in ("admitted", "dropped") else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *map(escape, (row.release, row.data_set, row.state, row.created)), str(row.admitted), str(row.dropped)
        )
    console.print(table)
    shares = Table(title="balances used")
    shares.add_column("share used")
    shares.add_column("contributors", justify="right")
    shares.add_column("")
    most = max(found.used_counts, default=0) or 1
    for low, high, n in zip(found.used_edges, found.used_edges[1:], found.used_counts, strict=False):
        if n:
            shares.add_row(f"{100 * low:.0f}-{100 * high:.0f}%", str(n), "#" * max(1, round(40 * n / most)))
    console.print(shares)


@app.command("history")
def history(
    contributor: Annotated[str, typer.Argument(help="The contributor's id as in the data.")],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what one contributor has spent and what is left."""
    with open_ledger(url, key) as ledger:
        spends, left = ledger.history(contributor), ledger.remaining(contributor)
    rows: list[dict[str, Any]] = [
        {
            "release": s.release,
            "data_set": s.data_set,
            "state": s.state,
            "created": s.created,
            "epsilon": s.guarantee.epsilon(left.delta),
        }
        for s in spends
    ]
    if as_json:
        typer.echo(json.dumps({"known": left.known, "remaining": left.to_dict(), "history": rows}, indent=1))
        return
    if not left.known:
        typer.echo(
            "this ledger has never seen this id: no release, data set or consent names it. Check its spelling: an "
            "unknown id is not the untouched balance of somebody known"
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="INTERNAL  one contributor")
    for name in ("release", "data set", "state", "reserved", f"epsilon at {left.delta:g}"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(
            *(escape(row[name]) for name in ("release", "data_set", "state", "created")), f"{row['epsilon']:.3f}"
        )
    console = Console()
    console.print(table)
    console.print(
        f"together epsilon {left.epsilon:.3f} at delta {left.delta:g} (tight composition); the rule that admits has "
        f"used {100 * left.used:.1f}% of the cap of {left.cap_epsilon:g}",
        highlight=False,
    )
    if left.erased:
        console.print(
            "memberships were erased; the epsilon above is a bound from the sums that stayed", highlight=False
        )
    console.print(f"consent level: {escape(left.level)}", highlight=False)
    for cap in left.caps:
        console.print(
            f"  {escape(cap.name)}: {100 * cap.used:.1f}% of epsilon {cap.epsilon:g} at delta {cap.delta:g}",
            highlight=False,
        )


@app.command("what-if")
def what_if(
    plan: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study that would be run.")],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Price a study for its contributors without reserving anything."""
    from confide.studies import load_study
    from confide.studies.prepare import declared_counts, histogram_source, holdout_key, make_plan, prepare
    from confide.studies.run import classes_for

    study = load_study(plan)
    prepared = prepare(study, base=plan.parent, holdout_key=holdout_key(study, None))
    counts = declared_counts(study, plan.parent)
    made = make_plan(study, counts, histogram_source(study) if counts is not None else "none")
    guarantees, class_of = classes_for(made, prepared.train_index, prepared.budgets)
    with open_ledger(url, key) as ledger:
        found = ledger.what_if(
            contributors=prepared.train_index.ids.tolist(), class_of=class_of, classes=guarantees
        ).to_dict()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console

    console = Console()
    console.print(
        f"INTERNAL  {found['admitted']} of {found['contributors']} contributors would be admitted, "
        f"{found['dropped']} have no balance left for it",
        highlight=False,
    )
    before, after = found["used_before"], found["used_after"]
    for level, b, a in zip(found["used_quantiles"], before, after, strict=True):
        console.print(
            f"  {100 * level:>3.0f}% quantile of balance used: {100 * b:.1f}% -> {100 * a:.1f}%", highlight=False
        )


@app.command("export")
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV to write; default: standard output.")
    ] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Write all releases with their states as CSV, for the data protection officer."""
    from confide._files import write_atomic

    with open_ledger(url, key) as ledger:
        rows = [row.to_dict() for row in ledger.reservations()]
    text = io.StringIO()
    names = ["id", "release", "data_set", "state", "created", "admitted", "dropped", "release_hash"]
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    if output is None:
        sys.stdout.write(text.getvalue())
    else:
        write_atomic(output, text.getvalue(), mode=0o600)
        typer.echo(f"wrote {output}")
