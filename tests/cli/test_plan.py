from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from confide.cli.plan import plan_command
from confide.errors import ConfideError

BASE = ["--epsilon", "2", "--delta", "1e-5", "--steps", "200", "--noise-multiplier", "1"]


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts.csv"
    path.write_text("entries,contributors\n1,600\n2,200\n6,50\n", encoding="utf-8")
    return path


def run(*arguments: object, columns: int = 80) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(plan_command)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


def test_json_has_the_shape_of_the_design(counts: Path) -> None:
    result = run("--entry-counts", counts, *BASE, "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert set(values) == {"strategies", "recommended"}
    assert set(values["strategies"]) == {
        "contributor",
        "individual",
        "scale",
        "uniform",
        "truncate(1)",
        "truncate(median)",
        "per-entry",
    }
    individual = values["strategies"]["individual"]
    assert set(individual) == {"entries_used", "expected_entries", "classes"}
    assert [c["contributors"] for c in individual["classes"]] == [600, 200, 50]
    assert all(1.98 <= c["epsilon"] <= 2 for c in individual["classes"])
    assert values["recommended"] in values["strategies"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(counts: Path, columns: int) -> None:
    result = run("--entry-counts", counts, *BASE, "--strategy", "truncate(2)", columns=columns)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "…" not in result.stdout
    header = next(i for i, line in enumerate(lines) if line.startswith("strategy"))
    names = [line.split()[0] for line in lines[header + 1 : header + 9]]
    assert names == [
        "contributor",
        "individual",
        "scale",
        "uniform",
        "truncate(1)",
        "truncate(median)",
        "truncate(2)",
        "per-entry",
    ]
    assert "Recommended: scale" in result.stdout
    assert "truncate(2) at noise multiplier 1: one row a class" in result.stdout
    assert "INTERNAL" not in result.stdout


def test_three_noise_multipliers_are_shown_when_none_is_given(counts: Path) -> None:
    result = run("--entry-counts", counts, "--epsilon", "2", "--delta", "1e-5", "--steps", "30")
    assert [f"noise multiplier {s}" in result.stdout for s in ("0.7", "1", "2")] == [True] * 3


def test_without_counts_there_are_guarantees_and_no_numbers() -> None:
    result = run("--max-entries", "3", *BASE, "--budget", "1,2")
    assert result.exit_code == 0
    assert "epsilon 1, 2 at delta 1e-05" in result.stdout
    assert "Recommended" not in result.stdout and "no histogram" in result.stdout


def test_a_rule_is_taken_from_the_command_line(counts: Path) -> None:
    values = json.loads(run("--entry-counts", counts, *BASE, "--budget", "2 if k < 3 else 1", "--json").stdout)
    classes = values["strategies"]["contributor"]["classes"]
    assert [round(c["epsilon"]) for c in classes] == [2 if c["entries"] < 3 else 1 for c in classes]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--entry-counts", "absent.csv", *BASE], "absent.csv"),
        (["--epsilon", "2", "--delta", "1e-5", "--entry-counts", "COUNTS"], "--steps is missing"),
        (["--steps", "2", "--delta", "1e-5", "--entry-counts", "COUNTS"], "--epsilon is missing"),
        (BASE, "how many entries a contributor has"),
        (["--entry-counts", "COUNTS", *BASE, "--strategy", "individul"], "did you mean 'individual'"),
        (["--entry-counts", "COUNTS", *BASE, "--strategy", "truncate(0)"], "keeps no entries"),
        (["--entry-counts", "COUNTS", *BASE, "--delta", "2"], "delta is 2"),
        (["--entry-counts", "COUNTS", *BASE, "--noise-multiplier", "0"], "noise_multiplier is 0"),
        (["--entry-counts", "COUNTS", *BASE, "--max-entries", "0"], "max_entries is 0"),
        (["--entry-counts", "COUNTS", *BASE, "--budget", "open('x')"], "budget rule"),
        (["study.toml", *BASE], "a study file and --epsilon at once"),
    ],
)
def test_wrong_input_says_what_to_do(counts: Path, arguments: list[str], message: str) -> None:
    result = run(*[str(counts) if a == "COUNTS" else a for a in arguments])
    assert isinstance(result.exception, ConfideError)
    assert result.exception.exit_code == 2
    assert message in str(result.exception)


def test_planning_loads_no_torch_and_no_table_library(counts: Path) -> None:
    script = (
        "import sys, typer\n"
        "from confide.planning import plan, compare\n"
        f"plan({{1: 5000, 2: 10}}, epsilon=2, delta=1e-5, noise_multiplier=1, steps=20).check()\n"
        "heavy = {'torch', 'polars', 'pydantic', 'sqlalchemy', 'pandas', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from confide.cli.plan import plan_command\n"
        "app = typer.Typer(); app.command()(plan_command)\n"
        f"app(['--entry-counts', {str(counts)!r}, *{BASE!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'polars', 'sqlalchemy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error::RuntimeWarning"},
    )
    assert done.returncode == 0, done.stderr
