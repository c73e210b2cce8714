"""``confide ledger status | history``: look at a ledger. What it prints is internal."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from confide.cli import ledger_odometer, ledger_people, ledger_serve, ledger_upkeep
from confide.cli.ledger_app import Json, Key, Url, app, open_ledger

__all__ = ["app", "ledger_odometer", "ledger_people", "ledger_serve", "ledger_upkeep"]


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
    contributor: Annotated[str | None, typer.Argument(help="The contributor's id as in the data.")] = None,
    pseudonym: Annotated[str | None, typer.Option(help="Their keyed hash instead of the id.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show what one contributor has spent and what is left."""
    from confide.ledger import Odometer

    with open_ledger(url, key) as ledger:
        found = Odometer(ledger).person(contributor, pseudonym=pseudonym)
    spends, left = found.spends, found.remaining
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
