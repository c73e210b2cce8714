"""``confide studies``: the gallery of papers with what was found here, and the command that runs one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from confide._files import write_atomic
from confide.errors import InputError

if TYPE_CHECKING:
    from confide.studies.gallery import Finding
    from confide.studies.gallery.base import Size

app = typer.Typer(
    name="studies", help="Papers' claims, run again: what holds and what does not.", rich_markup_mode=None
)


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """List every study with its claim and the verdict of the last full run that was kept."""
    if context.invoked_subcommand is not None:
        return
    from confide.studies import gallery

    table = Table(title="confide studies", show_lines=True)
    for column in ("study", "claim", "data", "found here"):
        table.add_column(column)
    for name in gallery.names():
        study, found = gallery.study(name), gallery.kept_finding(name)
        verdict = "not run yet" if found is None else f"{found.verdict} ({found.date}). {found.why}"
        data, simulated = (study.data, study.simulation) if found is None else (found.data, found.simulation)
        table.add_row(name, study.claim, ("SIMULATION. " if simulated else "") + data, verdict)
    console = Console()
    console.print(table)
    console.print("Run one again: confide studies run NAME", highlight=False)


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="As `confide studies` lists it.")],
    size: Annotated[
        str, typer.Option(help="small (a minute, decides nothing), cpu (less, where a study has it) or full.")
    ] = "small",
    data: Annotated[Path | None, typer.Option(help="The paper's own data in its published format.")] = None,
    seed: Annotated[int, typer.Option(help="Of splits and initial weights; noise is never seeded.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the finding as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Run a study and print the paper's claim, what was found, and whether it holds."""
    from confide.release import outside_releases
    from confide.studies import gallery

    if size not in ("small", "cpu", "full"):
        raise InputError(f"--size {size!r}", where="command line", expected="small, cpu or full")
    if output is not None:
        outside_releases(output)
        if output.exists() and not force:
            raise InputError(f"{output} exists", where="--output", expected="a new file", remedy="or give --force")
    study = gallery.study(name)
    console = Console()
    console.print(f"{study.title}: {study.paper}", highlight=False)
    context = gallery.Context(
        size=cast("Size", size),
        data=data,
        seed=seed,
        device=device,
        say=lambda line: console.print("  " + line, highlight=False),
    )
    with console.status("running" if size != "full" else f"running, about {study.minutes:g} minutes on two cores"):
        found = gallery.run_study_of_gallery(study, context)
    show(console, found)
    if output is not None:
        write_atomic(output, json.dumps(found.to_dict(), indent=1) + "\n")
        console.print(f"wrote {output}", highlight=False)


@app.command("show")
def shown(name: Annotated[str, typer.Argument(help="As `confide studies` lists it.")]) -> None:
    """Print the finding of the last full run that was kept."""
    from confide.studies import gallery

    gallery.study(name)
    found = gallery.kept_finding(name)
    if found is None:
        raise InputError(f"no full run of {name!r} was kept", remedy=f"confide studies run {name} --size full")
    show(Console(), found)
    for other in gallery.kept_beside(name).values():
        show(Console(), other)


def show(console: Console, found: Finding) -> None:
    """Print one finding."""
    from confide.studies import gallery

    console.print()
    console.print(f"Claim:     {found.claim}", highlight=False)
    console.print(f"Holds if:  {found.criterion}", highlight=False)
    console.print(f"Data:      {'SIMULATION. ' if found.simulation else ''}{found.data}", highlight=False)
    if found.size == "cpu":
        console.print(f"CPU size:  {gallery.study(found.study).cpu}", highlight=False)
    table = Table()
    table.add_column("figure")
    for column in ("paper", "here", "interval"):
        table.add_column(column, justify="right")
    for f in found.figures:
        ends = "" if f.low is None or f.high is None else f"{f.low:.4g} to {f.high:.4g}"
        paper = f"{f.paper:.4g}" if isinstance(f.paper, float) else str(f.paper or "")
        table.add_row(f.what, paper, f"{f.ours:.4g}", ends)
    console.print(table)
    console.print(f"Verdict:   {found.verdict}. {found.why}", highlight=False)
    if found.size == "small":
        console.print("A small run shows that the study runs; only --size full decides.", highlight=False)
    console.print(f"({found.seconds:g} s on {found.machine}, {found.date})", highlight=False)
