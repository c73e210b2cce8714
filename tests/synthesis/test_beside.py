"""Event tables that stand beside visits and other event tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from confide.errors import InputError
from confide.studies.synthesis_run import fit_tables
from confide.studies.synthesis_write import marginals_of
from confide.synthesis.coding import read_coded
from confide.synthesis.study import parse_synthesis_study

STUDY = """
name = "ms"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[visits]
source = "visits.csv"
contributor = "id"
time = "day"
max_visits = 10
[visits.columns.day]
type = "integer"
bounds = [0, 1000]
bins = [200, 500]
[events.relapses]
source = "relapses.csv"
contributor = "id"
time = "day"
max_events = 10
beside = BESIDE
share = 0.3
[events.relapses.columns.day]
type = "integer"
bounds = [0, 1000]
bins = [200, 500]
[events.scans]
source = "relapses.csv"
contributor = "id"
time = "day"
max_events = 10
beside = ["relapses"]
share = 0.2
[events.scans.columns.day]
type = "integer"
bounds = [0, 1000]
bins = [200, 500]
[privacy]
epsilon = 30.0
delta = 1e-5
seed = 1
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    n = 1200
    pl.DataFrame({"id": [f"p{i}" for i in range(n)], "sex": rng.choice(["f", "m"], n)}).write_csv(
        tmp_path / "patients.csv"
    )
    often = rng.integers(0, 9, n)
    for table, counts in (("visits", often), ("relapses", np.minimum(often + rng.integers(0, 2, n), 9))):
        ids = np.repeat([f"p{i}" for i in range(n)], counts)
        pl.DataFrame({"id": ids, "day": rng.integers(0, 1000, len(ids))}).write_csv(tmp_path / f"{table}.csv")
    return tmp_path


def together(folder, beside):
    study = parse_synthesis_study(STUDY.replace("BESIDE", beside))
    fitted = fit_tables(study, read_coded(study, base=folder), {"all": 30.0})
    panel, events = fitted.sample(2000, np.random.default_rng(0))
    found = np.corrcoef([panel.counts, events["relapses"].counts, events["scans"].counts])
    return float(found[0, 1]), float(found[1, 2]), marginals_of(study, fitted)


def test_who_has_many_visits_has_many_relapses(folder):
    apart, _, _ = together(folder, "[]")
    linked, scans, marginals = together(folder, '["visits"]')
    assert abs(apart) < 0.1
    assert linked > 0.7  # in the data 0.98; the bins of the number of visits double
    assert scans > 0.7
    cells = next(t["cells"] for t in marginals["tables"] if t["columns"] == ["rows in visits"])
    assert cells[0] == ["0", "1", "2 to 3", "4 to 7", "8 or more"]


def test_a_table_that_does_not_stand_before_is_refused():
    with pytest.raises((InputError, ValidationError), match="beside names 'scans'; it may name visits"):
        parse_synthesis_study(STUDY.replace("BESIDE", '["scans"]'))
