"""``confide ms``: tables of a multiple-sclerosis registry, from a real export or a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ms_app = typer.Typer(name="ms", help="Tables of a multiple-sclerosis registry.", no_args_is_help=True)

_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")]


@ms_app.command("simulate")
def simulate(
    output: _Output = Path("ms-simulation"),
    patients: Annotated[int, typer.Option(min=1)] = 3_000,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
) -> None:
    """Write a SIMULATION of a registry: nobody in it exists. Its coefficients are declared in confide.data.ms."""
    from confide.data.ms import simulate_registry, write_registry
    from confide.release import outside_releases

    outside_releases(output)
    write_registry(simulate_registry(patients, seed=seed), output)
    typer.echo(f"Wrote a simulation of {patients:,} patients to {output}. Nobody in it exists.")


@ms_app.command("prepare")
def prepare(
    export: Annotated[Path, typer.Argument(metavar="EXPORT", help="Folder with patients.csv, visits.csv, ...")],
    output: _Output = Path("ms-tables"),
) -> None:
    """Derive therapy cycles with relapses and confirmed progression, and write the tables of the study."""
    from confide._files import write_atomic
    from confide.data.ms import linked_tables, read_registry
    from confide.release import outside_releases

    outside_releases(output)
    tables = linked_tables(read_registry(export))
    output.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        write_atomic(output / f"{name}.csv", frame.write_csv(), mode=0o600)
    typer.echo(
        f"Wrote {', '.join(f'{name}.csv' for name in tables)} to {output}: exact data, keep them where they are."
    )
    typer.echo(
        "Declare them as examples/ms_synthesis.toml does, with sources like "
        f'"{output / "patients.csv"}", and run confide synthesize.'
    )
