"""``confide synthesize``: parse, show the price, run, print where things are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from confide.errors import InputError


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

    with spending() as bar:

        def accept(lines: list[str]) -> None:
            bar.stop()  # a question stands alone
            ask(lines, yes)
            bar.start()

        outcome = run_synthesis(
            study,
            accept=accept,
            ledger_url=ledger,
            output=output,
            resume=resume,
            progress=lambda what, spent: bar.update(bar.task_ids[0], description=what, completed=spent),
        )
    for line in outcome.lines:
        typer.echo(line)
    typer.echo("")
    for what, path in outcome.paths.items():
        typer.echo(f"{what:<16} {path}")
    typer.echo(f"\nHow good it is (internal):  confide evaluate {outcome.paths['release']} --study {study}")


@contextlib.contextmanager
def spending() -> Iterator[Progress]:
    """Show what is being done and the share of the budget that is spent; like every console, internal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TextColumn("of the budget"), TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        bar.add_task("reading and checking the tables", total=1.0)
        yield bar


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
