"""The house rules that a linter cannot see: what an import loads, and that the public names are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import confide

HEAVY = {"torch", "polars", "pydantic", "sqlalchemy", "rich", "typer", "pandas", "sklearn", "dp_accounting"}


NUMERIC = ("accounting", "planning", "risk", "contributors", "mechanisms")
WITHOUT_TORCH = ("data", "ledger", "release", "report", "studies", "cli.app", "evaluation", "synthesis")


@pytest.fixture(scope="module")
def loads() -> dict[str, set[str]]:
    """What each import loads that those before it had not: one process for all, as each start takes seconds."""
    names = ["confide", *(f"confide.{room}" for room in (*NUMERIC, *WITHOUT_TORCH))]
    code = f"""
import importlib, json, sys
found, before = {{}}, set()
for name in {names!r}:
    importlib.import_module(name)
    now = {{module.split('.')[0] for module in sys.modules}}
    found[name], before = sorted(now - before), now
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


@pytest.mark.parametrize("room", NUMERIC)
def test_numeric_rooms_load_numpy_and_scipy_only(room: str, loads: dict[str, set[str]]) -> None:
    assert not loads[f"confide.{room}"] & HEAVY


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_rooms_without_training_never_load_torch(room: str, loads: dict[str, set[str]]) -> None:
    assert "torch" not in loads[f"confide.{room}"]


def test_top_level_is_lazy(loads: dict[str, set[str]]) -> None:
    assert not loads["confide"] & (HEAVY | {"numpy"})


def test_public_names_resolve() -> None:
    for name in confide.__all__:
        assert getattr(confide, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        confide.nonsense  # noqa: B018
