"""What the rooms above the accountant share: figures of it that were computed once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import pytest

from confide.accounting import Guarantee
from confide.release import crosscheck

_READOUTS = ("epsilon", "epsilon_interval", "delta_interval", "advantage", "reconstruction_bound")
_known: dict[Any, Any] = {}


def _once(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Remember a pure function of a guarantee and numbers."""

    def ask(guarantee: Guarantee, *values: Any, **named: Any) -> Any:
        arrays = tuple((np.shape(v), np.asarray(v, float).tobytes()) for v in (*values, *named.values()))
        key = (name, guarantee.parts, arrays, tuple(named))
        if key not in _known:
            _known[key] = plain(guarantee, *values, **named)
        found = _known[key]
        return found.copy() if isinstance(found, np.ndarray) else found

    return ask


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Keep what is imported out of the search for garbage: half a million objects that live as long as the process.

    A fifth of the time of collecting went into searching them again and again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module")
def known_guarantees() -> Iterator[None]:
    """Compute each figure of a guarantee once.

    For tests that run the same plan dozens of times and ask about something else; what the accountant itself says is
    tested in its own room, without this.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in _READOUTS:
            patch.setattr(Guarantee, name, _once(name, getattr(Guarantee, name)))
        patch.setattr(crosscheck, "second_opinion", _once("second_opinion", crosscheck.second_opinion))
        yield
