"""One small public setting, planned once a session for every strategy."""

from __future__ import annotations

import pytest
from planning_cases import ALL, CONSTANTS, COUNTS

from confide.planning import Comparison, Plan, compare, plan


@pytest.fixture(scope="session")
def plans() -> dict[str, Plan]:
    return {name: plan(COUNTS, strategy=name, **CONSTANTS) for name in ALL}


@pytest.fixture(scope="session")
def table() -> Comparison:
    return compare(COUNTS, strategies=("truncate(3)", "contributor(2)"), **CONSTANTS)
