"""The house rules that a linter cannot see: what an import loads, and that the public names are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import confide

HEAVY = {"torch", "polars", "pydantic", "sqlalchemy", "rich", "typer", "pandas", "sklearn", "dp_accounting"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("room", ["accounting", "planning", "risk", "contributors", "mechanisms"])
def test_numeric_rooms_load_numpy_and_scipy_only(room: str) -> None:
    assert not loaded_by(f"import confide.{room}") & HEAVY


@pytest.mark.parametrize(
    "room", ["data", "ledger", "release", "report", "studies", "cli.app", "evaluation", "synthesis"]
)
def test_rooms_without_training_never_load_torch(room: str) -> None:
    assert "torch" not in loaded_by(f"import confide.{room}")


def test_top_level_is_lazy() -> None:
    assert not loaded_by("import confide") & (HEAVY | {"numpy"})


def test_public_names_resolve() -> None:
    for name in confide.__all__:
        assert getattr(confide, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        confide.nonsense  # noqa: B018
