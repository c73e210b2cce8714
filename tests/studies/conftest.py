from __future__ import annotations

from pathlib import Path

import pytest
from clinic import Clinic


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _accounts(known_guarantees: None) -> None:
    """The clinic's plan is certified a hundred times."""
