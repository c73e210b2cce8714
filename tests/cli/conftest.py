from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _accounts(known_guarantees: None) -> None:
    """The same small study is trained and verified by many commands."""
