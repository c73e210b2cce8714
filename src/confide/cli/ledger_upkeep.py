"""``confide ledger init | migrate | verify | rotate-key | backup``: what keeps a ledger sound over years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from confide.cli.ledger_app import Json, Key, Url, app, open_ledger, the_url


@app.command("init")
def init(
    cap_epsilon: Annotated[float, typer.Option(help="Lifetime cap of every contributor: epsilon.")],
    cap_delta: Annotated[float, typer.Option(help="Lifetime cap of every contributor: delta.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a ledger with a lifetime cap for every contributor."""
    from rich.console import Console

    from confide.ledger import Ledger

    with Ledger.create(the_url(url), cap_epsilon=cap_epsilon, cap_delta=cap_delta, key=key) as ledger:
        console = Console()
        console.print(f"Made the ledger {ledger.where}", highlight=False, soft_wrap=True)
        console.print(
            f"Cap: epsilon {cap_epsilon:g} at delta {cap_delta:g} for every contributor, over all releases and data "
            "sets.\nIts key file turns ids into hashes. Keep it apart from the database, and keep a copy: without it "
            "nobody can tell who has spent what.",
            highlight=False,
        )


@app.command("migrate")
def migrate(
    to: Annotated[int | None, typer.Option(help="Schema version to reach; default: the newest.")] = None,
    backup: Annotated[Path | None, typer.Option(help="Where the backup goes; default: beside the database.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Bring a ledger's tables to another version, up or down, after making a backup. Stop all runs first."""
    from confide.ledger import SCHEMA_VERSION as newest
    from confide.ledger import Ledger

    done = Ledger.migrate(the_url(url), key=key, to=newest if to is None else to, backup=backup)
    if as_json:
        typer.echo(json.dumps(done.to_dict(), indent=1))
    elif done.backup is None:
        typer.echo(f"nothing to do: the ledger has schema version {done.after}")
    else:
        typer.echo(f"schema version {done.before} -> {done.after}; the backup made before: {done.backup}")


@app.command("verify")
def verify(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Check the journal's chain and compute every balance anew; exit code 4 on any difference."""
    with open_ledger(url, key) as ledger:
        found = ledger.verify()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        typer.echo(
            f"nothing differs: {found.journal} journal entries, {found.reservations} reservations, "
            f"{found.contributors} contributors; head {found.head[:16]}"
        )


@app.command("rotate-key")
def rotate_key(url: Url = None, key: Key = None) -> None:
    """Hash every pseudonym again with a fresh key; no balance changes, and open runs must open the ledger again."""
    with open_ledger(url, key) as ledger:
        ledger.rotate_key()
        typer.echo(f"{ledger.status().contributors} pseudonyms changed; back up the key file again")


@app.command("backup")
def backup(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="A new SQLite file.")],
    url: Url = None,
    key: Key = None,
) -> None:
    """Copy a SQLite ledger while others go on writing (PostgreSQL: pg_dump). The key file is not copied."""
    from confide.release import outside_releases

    outside_releases(output)
    with open_ledger(url, key) as ledger:
        ledger.backup(output)
    typer.echo(f"{output} is a whole copy; keep the key file apart from it")


@app.command("roles")
def roles(
    apply: Annotated[bool, typer.Option("--apply", help="Run the SQL after printing it.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Print (and with --apply run) the SQL that makes privacy officer, engineer and auditor on PostgreSQL."""
    from confide.ledger import roles as rights

    with open_ledger(url, key) as ledger:
        if not ledger.where.startswith("postgresql"):
            typer.echo(
                "SQLite has no roles: who may open the file may do everything. File permissions are all there is: keep "
                f"{ledger.where} and its key file at mode 600."
            )
            raise typer.Exit(2 if apply else 0)
        for statement in rights.statements():
            typer.echo(f"{statement};")
        if apply:
            rights.apply(ledger)
            typer.echo(f"-- done. Now grant them to people, for example: GRANT {rights.ENGINEER} TO alice;")
