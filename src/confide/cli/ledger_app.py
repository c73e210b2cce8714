"""What the commands of ``confide ledger`` share: the Typer application, its options, and how a ledger is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.errors import InputError

if TYPE_CHECKING:
    from confide.ledger import Ledger

app = typer.Typer(
    name="ledger", help="What every contributor has spent. Figures printed here are internal.", no_args_is_help=True
)

Url = Annotated[
    str | None, typer.Option("--url", "--ledger", help="sqlite:///FILE or postgresql://...; else CONFIDE_LEDGER.")
]
Key = Annotated[Path | None, typer.Option("--key", help="The ledger's key file, if it is not beside the database.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def the_url(url: str | None) -> str:
    """Return the ledger that was named, or the one in CONFIDE_LEDGER."""
    chosen = url or os.environ.get("CONFIDE_LEDGER")
    if not chosen:
        raise InputError(
            "no ledger was named",
            where="--url, or the environment variable CONFIDE_LEDGER",
            expected="sqlite:///FILE or postgresql://...",
            remedy="make one: confide ledger init --url sqlite:///ledger.sqlite --cap-epsilon 8 --cap-delta 1e-5",
        )
    return chosen


def open_ledger(url: str | None, key: Path | None) -> Ledger:
    """Open the ledger that was named."""
    from confide.ledger import Ledger

    return Ledger.open(the_url(url), key=key)
