"""``confide train``, ``init`` and ``predict``: what a person sees while a study runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from confide._files import write_atomic
from confide.errors import ConfideError, InputError

if TYPE_CHECKING:
    from confide.planning import Plan
    from confide.studies.loaded import LoadedModel
    from confide.studies.watch import Outcome, Price


class TerminalWatcher:
    """Shows a run on a terminal; what stands there is internal, like every console."""

    def __init__(self, console: Console, *, yes: bool) -> None:
        self.console, self.yes = console, yes
        self._progress: Progress | None = None
        self._task: Any = None

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, highlight=False)

    def price(self, price: Price) -> bool:
        """Show what the run will cost and ask."""
        self.console.print(price_table(price.plan))
        for line in price.lines:
            self.console.print("  " + line, highlight=False)
        if self.yes:
            return True
        if not sys.stdin.isatty():
            raise InputError(
                "the price has to be accepted, and there is nobody to ask",
                where="standard input is not a terminal",
                remedy="add --yes in scripts",
            )
        return typer.confirm("Reserve this in the ledger and train?")

    def begin(self, what: str, total: int) -> None:
        """Start a progress bar."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=False,
        )
        self._progress.start()
        self._task = self._progress.add_task(what, total=total, rate="", note="")

    def step(self, done: int, *, note: str = "") -> None:
        """Move the progress bar."""
        if self._progress is not None:
            task = self._progress.tasks[0]
            rate = f"{task.speed:.0f}/s" if task.speed else ""
            self._progress.update(self._task, completed=done, rate=rate, note=note)

    def end(self) -> None:
        """Finish the progress bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def price_table(plan: Plan) -> RichTable:
    """The price by class, at most a dozen rows: the extremes and some between."""
    table = RichTable(
        title=f"What a contributor with k entries spends (strategy {plan.strategy}, delta {plan.delta:.3g})"
    )
    table.add_column("k", justify="right")
    table.add_column("budget", justify="right")
    table.add_column("sampling rate", justify="right")
    table.add_column("clip", justify="right")
    table.add_column("epsilon", justify="right")
    rows = list(plan.classes)
    if len(rows) > 12:
        step = (len(rows) - 1) / 11
        rows = [rows[round(i * step)] for i in range(12)]
    for row in rows:
        table.add_row(
            f"{row.entries}",
            f"{row.budget:g}",
            f"{row.rate:.5f}",
            f"{row.clip_norm * plan.clip_norm:.4g}",
            f"{row.epsilon:.3f}",
        )
    return table


def run_train(
    study: Path,
    *,
    yes: bool,
    resume: bool,
    rehearse: bool,
    ledger: str | None,
    device: str | None,
    output: Path | None,
) -> None:
    """Run a study and print where the release and the reports are."""
    from confide.studies.rehearse import rehearse_study
    from confide.studies.run import run_study

    if follows():
        follow_train(study, rehearse=rehearse, resume=resume, ledger=ledger, device=device, output=output)
        return
    console = Console(stderr=False)
    watcher = TerminalWatcher(console, yes=yes or rehearse)  # a rehearsal spends nothing, so nobody is asked
    try:
        if rehearse:
            if resume:
                raise InputError("--rehearse and --resume exclude each other", where="command line")
            for line in rehearse_study(study, watcher=watcher, device=device):
                console.print(line, highlight=False)
            return
        outcome = run_study(study, watcher=watcher, resume=resume, ledger_url=ledger, device=device, output=output)
    finally:
        watcher.end()
    show_outcome(console, outcome)
    _leave()


def follows() -> bool:
    """Whether torchrun started this process as one that helps another; it prints nothing."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def follow_train(
    study: Path, *, rehearse: bool, resume: bool, ledger: str | None, device: str | None, output: Path | None
) -> None:
    """Help the first process; errors are printed there, the exit code is the same here."""
    from confide.studies.run import run_study

    if rehearse:  # one process is enough
        return
    try:
        run_study(study, resume=resume, ledger_url=ledger, device=device, output=output)
    except ConfideError as error:
        raise typer.Exit(error.exit_code) from error
    _leave()


def _leave() -> None:
    from confide.training import leave

    leave()


def show_outcome(console: Console, outcome: Outcome) -> None:
    """Print the guarantee in one sentence and the paths, one a line so that they can be copied."""
    console.print()
    console.print(outcome.sentence, highlight=False)
    console.print()
    for name, path in outcome.paths.items():
        console.print(f"{name:<16} {path}", highlight=False, soft_wrap=True)


def run_init(table: Path, *, contributor: str, label: str, output: Path, force: bool) -> None:
    """Write a first study file and say what was looked at."""
    from confide.data import draft_study
    from confide.release import outside_releases

    outside_releases(output)
    if output.exists() and not force:
        raise InputError(
            f"{output} exists already",
            where=str(output),
            remedy="choose another name with --output, or --force to replace it",
        )
    text, looked_at = draft_study(table, contributor=contributor, label=label)
    write_atomic(output, text)
    console = Console()
    console.print(f"Wrote {output}.", highlight=False)
    console.print(
        "\nThis draft was made by LOOKING AT THE DATA. Each value below must be replaced or confirmed from public\n"
        "knowledge before the study is run; a value that only the data tell is a leak that no guarantee covers:\n",
        highlight=False,
    )
    for line in looked_at:
        console.print(f"  [ ] {line}", highlight=False, markup=False)
    console.print(
        f"\nNext: edit {output}; `confide train {output} --rehearse` tries it on random data; "
        f"`confide plan {output}` compares strategies;\n"
        "      `confide ledger init --cap-epsilon 8 --cap-delta 1e-5` makes a ledger; then "
        f"`confide train {output}`.",
        highlight=False,
    )


def run_predict(release: Path, table: Path, *, output: Path | None, force: bool = False) -> None:
    """Write ids and probabilities for each row of the table, or masks into a folder or a .npz file."""
    from confide.release import outside_releases
    from confide.studies import load
    from confide.studies.targets import schema_of

    if output is not None:
        outside_releases(output)
    loaded = load(release)
    if loaded.study is not None and schema_of(loaded.study).target == "mask":
        _predict_masks(loaded, table, output, force=force)
        return
    if output is not None and output.exists() and not force:
        raise InputError(
            f"{output} exists", where=str(output), expected="a new file", remedy="choose another name, or give --force"
        )
    text = loaded.predict(table).write_csv()
    label = None if loaded.study is None else next((c for c in loaded.study.columns.values() if c.classes), None)
    if label is not None and label.classes is not None and "probability" in text.split("\n", 1)[0].split(","):
        what = label.positive if label.positive is not None else label.classes[-1:]
        print(f"probability: of {' or '.join(map(repr, what))}, row by row as in the table", file=sys.stderr)
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(output, text)
        Console(stderr=True).print(f"wrote {output}", highlight=False)


def _predict_masks(loaded: LoadedModel, table: Path, output: Path | None, *, force: bool) -> None:
    from confide.studies.marking import default_output, write_masks

    assert loaded.study is not None
    if output is None:
        raise InputError(
            "this release answers with masks, which are files",
            where="command line",
            expected=f"--output {default_output(loaded.study.data[0])}",
        )
    count = write_masks(loaded, table, output, force=force)
    Console(stderr=True).print(f"wrote {count} masks to {output}", highlight=False)
