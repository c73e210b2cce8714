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
    text, looked = draft_synthesis(table, contributor=contributor, time=time)
    write_atomic(output, text)
    typer.echo(f"Wrote {output}.\n")
    typer.echo(
        "This draft was made by LOOKING AT THE DATA. Each value below must be replaced or confirmed from public\n"
        "knowledge before anything is synthesised; what only the data tell is a leak that no guarantee covers:\n"
    )
    for line in looked:
        typer.echo(f"  [ ] {line}")


def _free(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise InputError(
            f"{output} exists already", remedy="choose another name with --output, or --force to replace it"
        )
