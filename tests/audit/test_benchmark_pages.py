"""The committed pages are what the committed figures say: nobody edits a figure by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        path.replace("/", "_").removesuffix(".py"), ROOT / "benchmarks" / path
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(path: str) -> dict:
    return json.loads((ROOT / "benchmarks" / path).read_text())


def test_the_audit_page_is_written_from_its_figures():
    assert script("audit/run.py").page(figures("audit/results.json")) == (ROOT / "docs" / "audit.md").read_text()


def test_the_audit_of_the_released_code_is_what_the_project_promises():
    rows = figures("audit/results.json")["rows"]
    close = [row for row in rows if row["broken"] is None]
    assert {row["strategy"] for row in close} == {"contributor", "individual", "scale"}
    assert all(4 <= row["claim"] <= 6 and not row["rejected"] and row["ratio"] <= 1 for row in close)
    assert all(row["violation"]["rejected"] for row in rows if row["broken"] is not None)


def test_the_utility_page_and_picture_are_written_from_their_figures():
    report, document = script("utility/report.py"), figures("utility/results.json")
    assert report.page(document, figures("utility/pilot.json")) == (ROOT / "docs" / "utility.md").read_text()
    assert report.picture(report.Measured(document)) == (ROOT / "docs" / "utility.svg").read_text()


def test_utility_has_every_cell_once():
    document = figures("utility/results.json")
    cells = [(c["set"], c["method"], c["epsilon"], c["split"]) for c in document["cells"]]
    assert len(set(cells)) == len(cells) == len(document["sets"]) * (3 * 7 + 1) * document["settings"]["splits"]
    assert document["settings"]["splits"] >= 20


def test_the_interval_is_the_t_interval_where_splits_do_not_overlap():
    values = np.random.default_rng(0).normal(0.7, 0.1, 12)
    mean, low, high = script("utility/report.py").interval(values, trained_on=1.0, tested_on=0.0)
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((values.mean(), *expected))
    wider = script("utility/report.py").interval(values, trained_on=3.0, tested_on=1.0)
    assert wider[1] < low < high < wider[2]
