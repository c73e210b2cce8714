"""``confide plan``: strategies side by side before anything is spent."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from confide.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from confide.planning import Comparison, Row, SearchPrice
    from confide.studies.file import Study

__all__ = ["compare_study", "plan_command", "render_classes", "render_comparison"]

_WIDE = 100


def plan_command(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.toml]", help="A study file; or give --entry-counts.")
    ] = None,
    entry_counts: Annotated[
        Path | None, typer.Option(help="CSV with the columns entries,contributors (and budget): declared public.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Everybody's budget, or the most a level or rule may ask for.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Default: 0.1 / contributors.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Without it 0.7, 1 and 2 are shown side by side.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Also show the classes of this strategy.")] = None,
    max_entries: Annotated[int | None, typer.Option(help="Public bound on one contributor's entries.")] = None,
    max_contributors: Annotated[int | None, typer.Option(help="Public bound on the number of contributors.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Consent levels '1,2,4', or a rule such as '4 if k <= 10 else 2'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what each strategy would use, guarantee and cost. Nothing is spent and no model is loaded."""
    from rich.console import Console

    options = {
        "--entry-counts": entry_counts,
        "--epsilon": epsilon,
        "--delta": delta,
        "--noise-multiplier": noise_multiplier,
        "--steps": steps,
        "--max-entries": max_entries,
        "--max-contributors": max_contributors,
        "--budget": budget,
    }
    given = [name for name, value in options.items() if value is not None]
    if study is not None and given:
        raise InputError(
            f"a study file and {given[0]} at once",
            where="command line",
            expected="either STUDY.toml or the options",
            remedy="change the value in the study file: it is what `confide train` will run",
        )
    # the wait is announced on stderr, so that the table and the JSON stay alone on stdout
    messages = Console(stderr=True)
    with messages.status("calibrating every strategy ...") if messages.is_terminal else nullcontext():
        if study is not None:
            comparison = compare_study(study, strategy=strategy)
            price = price_of_search(study)
        else:
            comparison, price = _compare_options(options, strategy), None
    if as_json:
        values = comparison.to_json_dict()
        if price is not None:
            values["search"] = price.to_dict()
        typer.echo(json.dumps(values, indent=1, allow_nan=False))
        return
    console = Console()
    render_comparison(comparison, console, comparison.stamp)
    if price is not None:
        render_search(price, console)
    if strategy is not None:
        for sigma in comparison.noise_multipliers:
            render_classes(_named(comparison, strategy, sigma), console, levels=len(comparison.budgets) > 1)


def _compare_options(options: dict[str, Any], strategy: str | None) -> Comparison:
    from confide.planning import compare

    for name in ("--epsilon", "--steps"):
        if options[name] is None:
            raise InputError(
                f"{name} is missing",
                where="command line",
                expected="confide plan STUDY.toml, or --entry-counts FILE.csv --epsilon E --delta D --steps T",
            )
    if options["--entry-counts"] is None and options["--max-entries"] is None:
        raise InputError(
            "nothing says how many entries a contributor has",
            where="command line",
            expected="STUDY.toml, --entry-counts FILE.csv, or --max-entries K for a plan without a histogram",
        )
    return compare(
        options["--entry-counts"],
        epsilon=options["--epsilon"],
        delta=options["--delta"],
        noise_multiplier=options["--noise-multiplier"],
        steps=options["--steps"],
        max_entries=options["--max-entries"],
        max_contributors=options["--max-contributors"],
        budgets=_budgets(options["--budget"]),
        strategies=() if strategy is None else (strategy,),
    )


def _budgets(text: str | None) -> list[float] | str | None:
    """Read levels ('1,2,4') where the text is a list of numbers, else a rule."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def price_of_search(path: Path) -> SearchPrice | None:
    """Return what a study's hyper-parameter search costs beside the plan without it; None where it has none."""
    from confide.planning import search_price
    from confide.studies.file import load_study

    study = load_study(path)
    if study.search is None:
        return None
    arguments = _constants(study, path.parent)
    return search_price(arguments.pop("search"), str(arguments.pop("strategy")), **arguments)


def render_search(price: SearchPrice, console: Console) -> None:
    """Print a plan without and with its search, and what that means."""
    from rich.table import Table

    search = price.search
    console.print(
        f"\nThe study's search, by strategy {price.searched.strategy}: {search.expected_runs:.3g} runs on average "
        f"({search.law}), each with a noisy score; only the best run is shown",
        style="bold",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    last = price.searched.classes[-1].entries
    for name in ("gradients\nper step", "effective\nnoise", "rate\nk=1", f"rate\nk={last}", "epsilon\nmin to max"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, row in (("one run, no search", price.without), ("each run of the search", price.searched)):
        table.add_row(
            label,
            _number(row.work),
            _noise(row.effective_noise),
            f"{row.classes[0].rate:.4g}",
            f"{row.classes[-1].rate:.4g}",
            _range(row),
        )
    console.print(table)
    ratio = price.noise_ratio
    if ratio is not None:
        console.print(
            f"Each run bears {ratio:.2f} times the noise of one run without a search: the search pays if its best "
            "candidate gains more than that loses.",
            highlight=False,
            markup=False,
        )


def compare_study(path: Path, *, strategy: str | None = None) -> Comparison:
    """Compare strategies for a study file: on its declared histogram, or on exact counts, which makes it internal.

    Parameters
    ----------
    path : Path
        The study file.
    strategy : str, optional
        A further strategy to show.

    Returns
    -------
    Comparison
        ``stamp`` is set where private counts were looked at.
    """
    from confide.planning import compare
    from confide.studies.file import load_study

    arguments = _constants(load_study(path), path.parent)
    extra = [str(arguments.pop("strategy")), *([strategy] if strategy else [])]
    arguments.pop("search")
    return compare(**arguments, strategies=extra)


def _constants(study: Study, base: Path) -> dict[str, Any]:
    """Return what a study's comparison is made from; private counts are looked at where none were declared."""
    import numpy as np

    from confide.accounting import Correlation
    from confide.studies import prepare as studies

    counts: Any = studies.declared_counts(study, base)
    source = "public"
    if counts is None:
        from confide.data import read_sources
        from confide.studies.targets import schema_of

        table = read_sources(study.data, schema_of(study), base=base)
        own, numbers = np.unique(table.index.counts, return_counts=True)
        counts, source = dict(zip(own.tolist(), numbers.tolist(), strict=True)), "preview"
    arguments = studies.plan_arguments(study, counts, source)
    # What a clipping norm that follows a quantile takes comes out of the same noise multiplier: epsilon stays.
    for name in ("clip_norm", "denominator", "clipping", "relation"):
        arguments.pop(name, None)
    correlation = arguments.pop("correlation", None)
    if correlation is not None:  # as in the plan itself: nobody takes part in more than this many steps
        correlation = Correlation.make(correlation, steps=study.privacy.steps)
        arguments["steps"] = correlation.rounds(study.privacy.steps)
    return arguments


def _named(comparison: Comparison, strategy: str, sigma: float) -> Row:
    from confide.planning import resolve_strategy

    name = "truncate(median)" if "median" in strategy else resolve_strategy(strategy)
    return comparison.row(name, sigma)


def render_comparison(comparison: Comparison, console: Console, internal_stamp: str | None = None) -> None:
    """Print the strategies side by side, readable from 80 columns on.

    Parameters
    ----------
    comparison : Comparison
    console : rich Console
    internal_stamp : str or None
        Printed above the table, for figures that must not leave.
    """
    if internal_stamp:
        console.print(f"INTERNAL, must not leave: {internal_stamp}", style="bold red", highlight=False, markup=False)
    budgets = ", ".join(f"{b:g}" for b in comparison.budgets)
    steps = f"{comparison.steps:,} step" + ("s" if comparison.steps > 1 else "")
    for sigma, recommended in comparison.recommendations:
        console.print(
            f"\nepsilon {budgets} at delta {comparison.delta:g}, noise multiplier {sigma:g}, {steps}",
            style="bold",
            highlight=False,
        )
        rows = [row for row in comparison.rows if row.noise_multiplier == sigma]
        console.print(_table(rows, recommended, wide=console.width >= _WIDE))
        if recommended:
            why = "lowest effective noise within everybody's budget; ties: less work per step"
            console.print(f"\nRecommended: {recommended} ({why})", highlight=False, markup=False)
            for row in _tied(rows, recommended):
                console.print(
                    f"As little noise: {row.strategy}, with {_percent(row.entries_used)} of the entries "
                    f"at {_number(row.work)} gradients per step",
                    highlight=False,
                    markup=False,
                )
    _legend(comparison, console)


def _tied(rows: list[Row], recommended: str) -> list[Row]:
    """Return other rows within budget that bear the same noise and use more entries, at more work."""
    best = next(row for row in rows if row.strategy == recommended)
    return [
        row
        for row in rows
        if row.within_budget
        and row.effective_noise is not None
        and best.effective_noise is not None
        and math.isclose(row.effective_noise, best.effective_noise, rel_tol=1e-9)
        and (row.entries_used or 0.0) > (best.entries_used or 0.0)
    ]


def _legend(comparison: Comparison, console: Console) -> None:
    estimand = comparison.rows[0].estimand
    k = estimand.entries[-1]
    ratio = k / estimand.reference_entries
    lines = [
        "entries used: share with a chance to be drawn. over-protected: people who spend under 99 % of their budget. "
        "gradients: expected entries, the work of a step. effective noise: noise / expected sum of weight x clip.",
        f"weight: in the expected update, of a person with {k} entries and of one of their entries, relative to one "
        f"with {estimand.reference_entries}; (1, {1 / ratio:.2g}) counts people alike, ({ratio:.3g}, 1) entries.",
    ]
    if any(not row.within_budget for row in comparison.rows):
        lines.append("! true epsilon above the budget: never recommended.")
    lines += [f"Note: {note}." for note in comparison.notes if note != comparison.stamp]
    console.print()
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False)


def _table(rows: list[Row], recommended: str | None, *, wide: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    # one blank between columns is all that 80 characters leave
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), pad_edge=False, header_style="bold")
    k = rows[0].estimand.entries[-1]
    table.add_column("\nstrategy", no_wrap=True)
    for narrow, broad in (
        ("entries\nused", "entries\nused"),
        ("over-\nprot.", "over-\nprotected"),
        ("gradients\n/step", "gradients\nper step"),
        ("people\n/step", "people\nper step"),
        ("effect.\nnoise", "effective\nnoise"),
        ("epsilon\nmin-max", "epsilon\nmin to max"),
        (f"weight k={k}\nperson,entry", f"weight at k={k}\nperson, entry"),
    ):
        table.add_column(broad if wide else narrow, justify="right", no_wrap=True)
    for row in rows:
        name = row.strategy
        if wide and row.resolved != row.strategy:
            name = f"{row.strategy} = {row.resolved.removeprefix('truncate')}"
        weights = f"{_short(row.estimand.person[-1])},{_short(row.estimand.entry[-1])}"
        cells = [
            name,
            _percent(row.entries_used),
            _percent(row.overprotected),
            _number(row.expected_entries),
            _number(row.expected_contributors),
            _noise(row.effective_noise),
            _range(row),
            weights.replace(",", ", ") if wide else weights,
        ]
        style = "bold green" if row.strategy == recommended else ("red" if not row.within_budget else "")
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def _percent(value: float | None) -> str:
    if value is None:
        return "-"
    # a share just under the whole is never rounded up to it
    return f"{100 * value:.1f}%" if value >= 0.99995 or value < 0.9995 else ">99.9%"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def _short(value: float | None) -> str:
    """Write a positive figure in at most seven characters."""
    if value is None:
        return "-"
    if value >= 10:
        return f"{value:.0f}" if value < 1e5 else f"{value:.0e}"
    if value >= 0.01:
        return f"{value:.3f}"
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}".replace("e-0", "e-")


def _noise(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if value >= 0.1 else f"{value:.2e}".replace("e-0", "e-")


def _epsilon(value: float) -> str:
    """Write an epsilon rounded up: what is printed is never less than what is spent."""
    if not math.isfinite(value):
        return "inf"
    digits = 2 if value < 100 else 0
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def _range(row: Row) -> str:
    low, high = _epsilon(row.epsilon_min), _epsilon(row.epsilon_max)
    return (low if low == high else f"{low}-{high}") + ("!" if not row.within_budget else "")


def render_classes(row: Row, console: Console, *, levels: bool = False) -> None:
    """Print what each class of a strategy gets.

    Parameters
    ----------
    row : Row
    console : rich Console
    levels : bool
        Whether budgets differ, so that a column for them is needed.
    """
    from rich.table import Table

    console.print(
        f"\n{row.strategy} at noise multiplier {row.noise_multiplier:g}: one row a class, per {row.clip_unit} drawn",
        style="bold",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    names = ["entries", *(["budget"] if levels else []), "contributors", "in use", "rate", "clip (of C)", "epsilon"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for c in row.classes:
        table.add_row(
            str(c.entries),
            *([f"{c.budget:g}"] if levels else []),
            "-" if c.contributors is None else f"{c.contributors:,}",
            str(c.entries_used),
            f"{c.rate:.6g}",
            f"{c.clip_norm:.4f}",
            _epsilon(c.epsilon),
        )
    console.print(table)
