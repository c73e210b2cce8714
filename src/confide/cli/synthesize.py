"""``confide synthesize``: parse, show the price, run, print where things are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.errors import InputError

if TYPE_CHECKING:
    pass


def synthesize(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The synthesis study.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending (for scripts).")] = False,
    ledger: Annotated[
        str | None, typer.Option("--ledger", help="Ledger URL; else the study's, else CONFIDE_LEDGER.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of releases instead of the study's.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the latest unfinished run of this study; nothing is paid twice."),
    ] = False,
) -> None:
    """Reserve the price, learn the tables through noise, and write synthetic ones with certificate and report."""
    from confide.studies.synthesis_run import run_synthesis

    outcome = run_synthesis(
        study, accept=lambda lines: ask(lines, yes), ledger_url=ledger, output=output, resume=resume
    )
    for line in outcome.lines:
        typer.echo(line)
    typer.echo("")
    for what, path in outcome.paths.items():
        typer.echo(f"{what:<16} {path}")
    typer.echo(f"\nHow good it is (internal):  confide evaluate {outcome.paths['release']} --study {study}")


def ask(lines: list[str], yes: bool) -> None:
    """Show a price and ask; raises to stop."""
    for line in lines:
        typer.echo(line)
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("the price has to be accepted, and there is nobody to ask", remedy="add --yes in scripts")
    if not typer.confirm("Reserve this in the ledger and look at the data?"):
        raise typer.Abort
