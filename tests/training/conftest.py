"""The tests of this room run on both engines: what is right about one must be right about the other."""

from __future__ import annotations

import pytest

from confide.training.engine import types

BOTH = {"test_engine", "test_layers", "test_run", "test_refusals", "test_checkpoint"}


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__.rpartition(".")[2] in BOTH:
        metafunc.fixturenames.insert(0, "engine_kind")
        metafunc.parametrize("engine_kind", ["exact", "fast"], indirect=True)


@pytest.fixture
def engine_kind(request, monkeypatch):
    """What "auto" means on a CPU in this test."""
    monkeypatch.setitem(types.AUTO, "cpu", request.param)
    return request.param
