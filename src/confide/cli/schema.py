"""``confide schema draft``: a first declaration of tables to be synthesised, and what it took from the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confide.errors import InputError

schema_app = typer.Typer(name="schema", help="Declare the columns of tables to be synthesised.", no_args_is_help=True)

_Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write the study file.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


@schema_app.command("draft")
def draft(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV or Parquet file with one row a visit.")],
    contributor: Annotated[str, typer.Option("--contributor", help="Column of patient ids.")],
    time: Annotated[str | None, typer.Option("--time", help="Column that orders a patient's visits.")] = None,
    output: _Output = Path("synthesis.toml"),
    force: _Force = False,
) -> None:
    """Write a first synthesis study, and list every value that was taken from the data."""
    from confide._files import write_atomic
    from confide.synthesis.draft import draft_synthesis

    _free(output, force)
    text, looked = draft_synthesis(table, contributor=contributor, time=time, home=output.parent)
    write_atomic(output, text)
    typer.echo(f"Wrote {output}.\n")
    typer.echo(
        "This draft was made by LOOKING AT THE DATA. Each value below must be replaced or confirmed from public\n"
        "knowledge before anything is synthesised; what only the data tell is a leak that no guarantee covers:\n"
    )
    for line in _by_column(looked):
        typer.echo(f"  [ ] {line}")
    typer.echo(
        f"\nNext: look through {output}, correct bounds and categories, then one of\n"
        f"  confide schema confirm {output}     # value by value: is this public knowledge?\n"
        f"  confide schema estimate {output}    # learn bounds, categories and caps privately instead; costs epsilon"
    )


def _by_column(looked: list[str]) -> list[str]:
    """Join what was read from one column into one line."""
    joined: dict[str, list[str]] = {}
    for line in looked:
        name, _, what = line.partition(": ")
        joined.setdefault(name, []).append(what)
    return [f"{name}: {'; '.join(whats)}" for name, whats in joined.items()]


@schema_app.command("estimate")
def estimate(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A drafted study with values to confirm.")],
    epsilon: Annotated[float, typer.Option(help="Price of all values together, for every patient.")] = 0.5,
    delta: Annotated[float, typer.Option(help="Chance that a value of one patient alone is named.")] = 1e-7,
    ledger: Annotated[str | None, typer.Option("--ledger", help="Ledger URL.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending (for scripts).")] = False,
    output: _Output = Path("synthesis-estimated.toml"),
    force: _Force = False,
) -> None:
    """Learn the marked values of a draft privately, and charge every patient for it."""
    from confide._files import write_atomic
    from confide.cli.synthesize import ask
    from confide.studies.schema_estimate import estimate_schema

    _free(output, force)
    found = estimate_schema(
        study, epsilon=epsilon, delta=delta, accept=lambda lines: ask(lines, yes), ledger_url=ledger
    )
    write_atomic(output, found.text)
    typer.echo(f"Wrote {output}. Learnt privately, and charged to every patient:\n")
    for line in found.lines:
        typer.echo(f"  {line}")
    typer.echo("\nStill guessed from the data: the types, and which columns belong to the patient. Check them.")


@schema_app.command("confirm")
def confirm(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A drafted study with values to confirm.")],
    everything: Annotated[
        bool, typer.Option("--all", help="State that every marked value is public knowledge, without being asked.")
    ] = False,
) -> None:
    """Go through the marked values of a draft: is each public knowledge? A mark is removed where the answer is yes."""
    from confide._files import write_atomic
    from confide.synthesis.draft import MARK

    lines = study.read_text(encoding="utf-8").splitlines()
    header = ""
    for number, line in enumerate(lines):
        header = line.strip() if line.strip().startswith("[") else header
        if MARK not in line:
            continue
        value = line.split(MARK)[0].rstrip()
        if everything or typer.confirm(f"{header}  {value}\n  Is this public knowledge?", default=False):
            lines[number] = value
    write_atomic(study, "\n".join(lines) + "\n")
    left = sum(MARK in line for line in lines)
    typer.echo(
        f"{left} values of {study} still wait to be confirmed, replaced or estimated."
        if left
        else f"Every value of {study} is stated to be public knowledge."
    )


def _free(output: Path, force: bool) -> None:
    from confide.release import outside_releases

    outside_releases(output)
    if output.exists() and not force:
        raise InputError(
            f"{output} exists already", remedy="choose another name with --output, or --force to replace it"
        )
