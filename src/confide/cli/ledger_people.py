"""``confide ledger data-set | level | consent | allowance | policy | erase | flows``: people, policy and flows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from confide.cli.ledger_app import Json, Key, Url, app, open_ledger
from confide.errors import InputError

Ids = Annotated[
    Path | None,
    typer.Option("--ids", help="A text file with one contributor id a line, so that no id is on a command line."),
]


def read_ids(file: Path | None, given: list[str] | None) -> list[str]:
    """Return contributor ids from a file or from the command line."""
    if (file is None) == (not given):
        raise InputError("no contributor was named", expected="--ids FILE, or ids as arguments, not both")
    if file is None:
        return list(given or [])
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the file of ids cannot be read", where=str(file)) from error


@app.command("data-set")
def data_set(
    name: Annotated[str | None, typer.Argument(help="A name for it; without one, all data sets are listed.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE.parquet", help="One row a contributor.")] = None,
    contributor: Annotated[str, typer.Option(help="The column with the ids, as text.")] = "contributor",
    entries: Annotated[str | None, typer.Option(help="The column with each contributor's number of entries.")] = None,
    add: Annotated[
        bool, typer.Option("--add", help="A new version of a data set: new people, and more entries of known ones.")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Name a data set and keep who is in it, from a Parquet file of ids; or add to it; or list the data sets."""
    with open_ledger(url, key) as ledger:
        if name is not None:
            if file is None:
                raise InputError(
                    "a new data set needs a file of ids", expected="confide ledger data-set NAME FILE.parquet"
                )
            make = ledger.extend_data_set_from_parquet if add else ledger.create_data_set_from_parquet
            made = make(name, file, contributor, entries=entries)
            typer.echo(f"{name}: {len(made)} contributors (internal)")
            return
        rows = ledger.data_sets()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(
            f"{row['name']}, version {row['version']}: {row['contributors']} people, made {row['created']} (internal)"
        )


@app.command("level")
def level(
    name: Annotated[str, typer.Argument(help='Its name; "default" is the policy for everybody who has not chosen.')],
    cap_epsilon: Annotated[
        float | None, typer.Option(help="Lifetime cap of this level; default: the ledger's.")
    ] = None,
    cap_delta: Annotated[float | None, typer.Option(help="Its delta; default: the ledger's.")] = None,
    purpose: Annotated[list[str] | None, typer.Option(help="An allowed purpose (repeat); default: any.")] = None,
    recipient: Annotated[list[str] | None, typer.Option(help="An allowed recipient (repeat); default: any.")] = None,
    closed: Annotated[bool, typer.Option("--closed", help="Allow nothing at all.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Declare a consent level, for good: what those who choose it may spend, for what and to whom."""
    with open_ledger(url, key) as ledger:
        ledger.define_level(
            name,
            cap_epsilon=cap_epsilon,
            cap_delta=cap_delta,
            purposes=purpose or None,
            recipients=recipient or None,
            closed=closed,
        )
    typer.echo(f"declared the consent level {name}")


@app.command("consent")
def consent(
    level: Annotated[str, typer.Argument(help='A declared level, "default" or "withdrawn".')],
    contributors: Annotated[list[str] | None, typer.Argument(help="Ids; better from a file: --ids.")] = None,
    ids: Ids = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Record the consent level of contributors; what they have spent counts under the new level too."""
    who = read_ids(ids, contributors)
    with open_ledger(url, key) as ledger:
        ledger.set_consent(who, level)
    typer.echo(f"recorded for {len(who)} contributors")


@app.command("allowance")
def allowance(
    recipient: Annotated[str, typer.Argument(help='Who receives; "*" stands for all others together.')],
    cap_epsilon: Annotated[
        float, typer.Option(help="What it may receive about each contributor in a period: epsilon.")
    ],
    cap_delta: Annotated[float, typer.Option(help="The same: delta.")],
    period: Annotated[str, typer.Option(help="month, quarter, year or once.")] = "year",
    url: Url = None,
    key: Key = None,
) -> None:
    """Declare what one recipient may receive about each contributor; it renews, the lifetime cap does not."""
    with open_ledger(url, key) as ledger:
        ledger.set_allowance(recipient, cap_epsilon=cap_epsilon, cap_delta=cap_delta, period=period)
        cap = ledger.rule
    typer.echo(
        f"epsilon {cap_epsilon:g} at delta {cap_delta:g} a {period}; over all recipients together the lifetime cap of "
        f"epsilon {cap.epsilon:g} at delta {cap.delta:g} holds beside it"
    )


@app.command("policy")
def policy(url: Url = None, key: Key = None) -> None:
    """Print the lifetime cap, the consent levels and the allowances as JSON."""
    with open_ledger(url, key) as ledger:
        typer.echo(json.dumps(ledger.policy(), indent=1))


@app.command("erase")
def erase(
    contributors: Annotated[list[str] | None, typer.Argument(help="Ids; better from a file: --ids.")] = None,
    ids: Ids = None,
    override: Annotated[
        str | None,
        typer.Option(help="A reason to remove token and balance too; the journal keeps it as budget history lost."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Remove every membership and attribute of contributors; their token and balance stay."""
    who = read_ids(ids, contributors)
    if not yes:
        typer.confirm(f"Erase {len(who)} contributors for good?", abort=True)
    with open_ledger(url, key) as ledger:
        known = ledger.erase(who, override=override)
    typer.echo(
        f"{known} of {len(who)} were known to the ledger and are erased; older backups still hold what they held"
    )


@app.command("flows")
def flows(
    recipient: Annotated[str | None, typer.Option(help="Only what this recipient receives.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show who receives what about whom, what for, and how many bits at most."""
    with open_ledger(url, key) as ledger:
        found = [flow for flow in ledger.flows() if recipient in (None, flow.recipient)]
    if as_json:
        typer.echo(json.dumps([flow.to_dict() for flow in found], indent=1))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="INTERNAL  flows of information")
    for name in (
        "release",
        "sender",
        "recipient",
        "subject",
        "attributes",
        "purpose",
        "state",
        "mechanism",
        "bits",
        "FNR at FPR 1%",
    ):
        table.add_column(name, overflow="fold")
    for flow in found:
        shown = flow.to_dict(bounds=False)
        words = (
            flow.release,
            flow.sender,
            flow.recipient,
            flow.subject,
            ", ".join(flow.attributes),
            flow.purpose,
            flow.state,
        )
        least = f"{flow.tradeoff([0.01])[0]:.3f}"
        table.add_row(*map(escape, words), ", ".join(shown["mechanisms"]), f"{flow.bits():.3g}", least)
    console = Console()
    console.print(table)
    console.print(
        "bits: an upper bound on what a release tells about everything of one contributor, given everybody else; 0 for "
        "a derived release, which adds nothing to its parents. Bounds add up over releases to one recipient, or to "
        "recipients who share.",
        highlight=False,
    )
