"""``confide evaluate``: what a release is worth, measured on the people who took no part; internal figures."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from confide.errors import InputError


def run_evaluate(
    release: Path,
    *,
    study: Path | None,
    members: int,
    budgets: str | None,
    device: str | None,
    as_json: bool,
    data: Path | None = None,
    refits: int | None = None,
    ledger: str | None = None,
) -> None:
    """Measure a release, by its kind, and say where the pictures are."""
    from confide.release import Release

    certificate = Release.load(release).certificate
    if certificate.kind == "table":
        _tables(release, study=study, data=data, refits=refits, as_json=as_json)
        return
    artefacts = certificate.artefacts
    if "model.safetensors" not in artefacts:
        raise InputError(
            "this release holds neither a model nor tables",
            where=str(release),
            expected="a release of `confide train` or `confide synthesize`",
        )
    _model(release, study=study, members=members, budgets=budgets, device=device, as_json=as_json, ledger=ledger)


def _model(
    release: Path,
    *,
    study: Path | None,
    members: int,
    budgets: str | None,
    device: str | None,
    as_json: bool,
    ledger: str | None,
) -> None:
    from confide.cli.train import TerminalWatcher
    from confide.studies.evaluate_model import evaluate_model, summary

    console = Console(stderr=as_json)
    watcher = TerminalWatcher(console, yes=True)
    try:
        found = evaluate_model(
            release,
            study=study,
            members=members,
            budgets=_numbers(budgets),
            watcher=watcher,
            device=device or "auto",
            ledger_url=ledger,
        )
    finally:
        watcher.end()
    if as_json:
        print(summary(found))
        return
    for line in found.figures.group_notes:
        console.print(line, highlight=False)
    if found.figures.multiplicity is not None:
        m = found.figures.multiplicity
        alike = "cannot be told apart" if m.compared else "are kept, with nothing to compare them by"
        begun = f"{m.admitted} of {m.models} models {alike}"
        if m.released:
            begun = f"an ensemble of {m.models} members"
        console.print(
            f"{begun}; two of them contradict each other on "
            f"{100 * (m.disagreement or 0):.1f}% of the rows, enough agree on {100 * (m.coverage or 0):.1f}%.",
            highlight=False,
        )
    console.print(f"internal report  {found.report}", highlight=False, soft_wrap=True)
    console.print("These figures are exact: they must not leave.", highlight=False)


def _tables(release: Path, *, study: Path | None, data: Path | None, refits: int | None, as_json: bool) -> None:
    from confide.cli.train import TerminalWatcher
    from confide.studies.evaluate_tables import DEFAULT_REFITS, evaluate_tables, summary_lines

    console = Console(stderr=as_json)
    watcher = TerminalWatcher(console, yes=True)
    try:
        done = evaluate_tables(
            release,
            study_path=study,
            data=data,
            refits=DEFAULT_REFITS if refits is None else refits,
            watcher=watcher,
        )
    finally:
        watcher.end()
    if as_json:
        print(done.figures.to_json(), end="")
        return
    for line in summary_lines(done.figures):
        console.print(line, highlight=False)
    for line in done.figures.left_out:
        console.print("not measured: " + line, highlight=False, markup=False)
    for what, path in done.paths.items():
        console.print(f"{what:<16} {path}", highlight=False, soft_wrap=True, markup=False)
    console.print("These figures are exact: they must not leave.", highlight=False)


def _numbers(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) <= 0:
        raise InputError(f"--budgets {text!r}", where="command line", expected="positive numbers such as 1,4,8")
    return values
