"""The typer application: every command imports what it needs when it runs, so that planning never loads PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from confide.cli.ledger import app as ledger_app
from confide.cli.ms import ms_app
from confide.cli.plan import plan_command
from confide.cli.schema import schema_app
from confide.cli.studies import app as studies_app
from confide.cli.synthesize import synthesize

app = typer.Typer(
    name="confide",
    help="Learn from, synthesise and share medical data with a stated guarantee for every contributor.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
ReleaseFolder = Annotated[Path, typer.Argument(metavar="RELEASE", help="A release folder.")]
LedgerUrl = Annotated[str | None, typer.Option("--ledger", help="Ledger URL; else the study's, else CONFIDE_LEDGER.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(value: bool) -> None:
    if value:
        from confide import __version__

        typer.echo(f"confide {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Set what holds for every command."""


app.command("plan")(plan_command)
app.add_typer(ledger_app, name="ledger")
app.add_typer(schema_app, name="schema")
app.add_typer(ms_app, name="ms")
app.add_typer(studies_app, name="studies")
app.command("synthesize")(synthesize)


@app.command("train")
def train(
    study: StudyFile,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before spending (for scripts).")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this study.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse", help="Run on random data from the declared columns: touches neither data nor ledger."
        ),
    ] = False,
    ledger: LedgerUrl = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of releases instead of the study's.")] = None,
) -> None:
    """Plan, reserve, train, certify and report, as the study file says."""
    from confide.cli.train import run_train

    run_train(study, yes=yes, resume=resume, rehearse=rehearse, ledger=ledger, device=device, output=output)


@app.command("init")
def init(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV or Parquet file.")],
    contributor: Annotated[str, typer.Option("--contributor", help="Column that says whose entry a row is.")],
    label: Annotated[str, typer.Option("--label", help="Column to predict.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the study file.")] = Path("study.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented first study file, and say what was looked at and must be confirmed as public."""
    from confide.cli.train import run_init

    run_init(table, contributor=contributor, label=label, output=output, force=force)


@app.command("predict")
def predict(
    release: ReleaseFolder,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV, Parquet or npz file with the inputs.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV to write; default: standard output. Masks: a folder, or FILE.npz."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Predict with a released model: rows in their order with their ids and a probability each, or masks as files."""
    from confide.cli.train import run_predict

    run_predict(release, table, output=output, force=force)


@app.command("verify")
def verify(release: ReleaseFolder, ledger: LedgerUrl = None, as_json: Json = False) -> None:
    """Recompute every epsilon of a release, check hashes and the ledger's entry; exit code 4 on any difference."""
    from confide.cli.inspect import run_verify

    run_verify(release, ledger=ledger, as_json=as_json)


@app.command("evaluate")
def evaluate(
    release: ReleaseFolder,
    study: Annotated[
        Path | None, typer.Option("--study", help="The study file; default: the copy in the internal folder.")
    ] = None,
    members: Annotated[
        int, typer.Option(min=0, max=50, help="Models to train with other noise, to see what depends on it.")
    ] = 5,
    budgets: Annotated[
        str | None, typer.Option(help="Epsilons such as 1,4,8 for the picture of privacy against utility.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Tables: folder that the study's files start from.")
    ] = None,
    refits: Annotated[
        int | None,
        typer.Option(min=0, help="Tables: runs on made-up patients for error bars and membership game (default 20)."),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger", help="Models: ledger of the release, which knows who took part; default: where the run had it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a release of a model or of tables on people who took no part. Internal figures."""
    from confide.cli.evaluate import run_evaluate

    run_evaluate(
        release,
        study=study,
        members=members,
        budgets=budgets,
        device=device,
        as_json=as_json,
        data=data,
        refits=refits,
        ledger=ledger,
    )


@app.command("report")
def report(release: ReleaseFolder, output: Annotated[Path | None, typer.Option("--output", "-o")] = None) -> None:
    """Make the report of a release anew from its certificate alone."""
    from confide.cli.inspect import run_report

    run_report(release, output=output)


@app.command("risk")
def risk(
    target: Annotated[
        Path, typer.Argument(metavar="RELEASE|PLAN", help="A release folder, a study file, or a plan as JSON.")
    ],
    entries: Annotated[int | None, typer.Option(help="Only a contributor with this many entries.")] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Compare budgets, such as 1,4,8, for a study file or a plan.")
    ] = None,
    record: Annotated[
        str | None, typer.Option(help="NORM,VALUES[,RANGE] of a record: adds the from-scratch reconstruction bound.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write a page with plots.")] = None,
    as_json: Json = False,
) -> None:
    """Say what an attacker could do at best, in words and figures."""
    from confide.cli.risk import run_risk

    run_risk(target, entries=entries, budgets=budgets, record=record, output=output, as_json=as_json)


@app.command("doctor")
def doctor(as_json: Json = False) -> None:
    """Say what this machine has and which extras are installed."""
    from confide.cli.inspect import run_doctor

    run_doctor(as_json=as_json)


def command() -> Any:
    """The click command behind the application."""
    return typer.main.get_command(app)
