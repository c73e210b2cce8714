"""Multiple sclerosis: progression as pymsprog finds it, cycles that see no future, a simulation with known effects."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from confide.data import load
from confide.data.ms import (
    COEFFICIENTS,
    Registry,
    confirmed_progression,
    linked_tables,
    read_registry,
    simulate_registry,
    smallest_change,
    therapy_cycles,
    write_registry,
)
from confide.errors import InputError

ORACLE = json.loads((Path(__file__).parent / "fixtures" / "pymsprog.json").read_text())


@pytest.mark.parametrize("confirm", ["84", "168"])
def test_progression_is_what_pymsprog_finds(confirm):
    expected = ORACLE["day_of_event"][confirm]
    found = {}
    for person in ORACLE["people"]:
        event = confirmed_progression(person["days"], person["edss"], person["relapses"], confirm_days=float(confirm))
        if event is not None:
            found[person["patient"]] = person["days"][event.event]
    assert len(expected) > 30 and found == expected


def test_progression_needs_confirmation_and_no_relapse():
    days = [0, 90, 180, 270]
    assert smallest_change(0) == 1.5 and smallest_change(5) == 1.0 and smallest_change(5.5) == 0.5
    assert confirmed_progression(days, [2, 3, 3, 3]) is not None
    assert confirmed_progression(days, [2, 3, 2, 3]) is None  # not held
    assert confirmed_progression(days[:2], [2, 3]) is None  # nobody confirmed it
    late = confirmed_progression(days, [2, 3, 3, 3], relapses=[170])
    assert late is not None and late.confirmed == 3  # a visit during a relapse confirms nothing
    assert confirmed_progression(days, [2, 3, 3, 2], relapses=[170]) is None


@pytest.fixture(scope="module")
def registry():
    return simulate_registry(700, seed=5)


def test_a_cycle_does_not_see_its_future(registry):
    cycles = therapy_cycles(registry)
    who = cycles["patient_id"][0]
    start = cycles.filter(pl.col("patient_id") == who)["start"][0]
    changed = Registry(
        registry.patients,
        registry.visits.with_columns(
            pl.when((pl.col("patient_id") == who) & (pl.col("date") > start))
            .then(9.5)
            .otherwise(pl.col("edss"))
            .alias("edss")
        ),
        registry.relapses,
        registry.treatments,
        registry.mri,
    )
    known = ["line", "dmt", "age", "duration", "edss", "relapses_before"]
    before, after = (f.filter(pl.col("patient_id") == who).head(1) for f in (cycles, therapy_cycles(changed)))
    assert before.select(known).equals(after.select(known))


def test_the_simulation_has_the_effects_it_declares(registry):
    sm = pytest.importorskip("statsmodels.api")
    many = simulate_registry(2_500, seed=6)
    cycles = therapy_cycles(many).filter(pl.col("line") == 1)
    months = np.maximum(cycles["months"].to_numpy(), 1)
    x = np.column_stack(
        [
            np.ones(cycles.height),
            cycles["age"].to_numpy() / 10,
            cycles["relapses_before"].to_numpy(),
            (cycles["dmt"] == "natalizumab").to_numpy(),
            (cycles["dmt"] == "dimethyl fumarate").to_numpy(),
        ]
    ).astype(float)
    family = sm.families.NegativeBinomial(alpha=0.5)
    fitted = sm.GLM(cycles["n_relapses"].to_numpy(), x, family=family, offset=np.log(months / 12)).fit()
    truth = COEFFICIENTS["relapse"]
    assert fitted.params[1] < 0 < fitted.params[2]
    assert abs(fitted.params[1] - truth["age, per 10 years above 40"]) < 4 * fitted.bse[1]
    assert fitted.params[3] < fitted.params[4] < 0  # natalizumab works better than dimethyl fumarate
    rate = cycles["n_relapses"].sum() / (months.sum() / 12)
    assert 0.15 < rate < 0.5


def test_an_export_is_read_back_and_checked(registry, tmp_path):
    write_registry(registry, tmp_path)
    again = read_registry(tmp_path)
    assert again.visits.equals(registry.visits) and repr(again) == "Registry(private)"
    assert repr(registry) == "Registry(simulation)"
    visits = (tmp_path / "visits.csv").read_text()
    for bad, says in (
        (visits + "nobody,2010-01-01,2.0\n", "nobody"),
        (visits + "sim00000,2010-01-01,2.25\n", "scale"),
        (visits + "sim00000,1.1.2010,2.0\n", "1.1.2010"),
        (visits.replace("patient_id", "patient"), "patient_id"),
    ):
        (tmp_path / "visits.csv").write_text(bad)
        with pytest.raises(InputError, match=says):
            read_registry(tmp_path)
    (tmp_path / "visits.csv").unlink()
    with pytest.raises(InputError, match=r"visits\.csv"):
        read_registry(tmp_path)


def test_linked_tables_begin_at_the_index_date(registry):
    tables = linked_tables(registry)
    assert set(tables["cycles"]["patient_id"]) == set(tables["patients"]["patient_id"])
    late = tables["visits"].join(tables["patients"], on="patient_id").filter(pl.col("date") < pl.col("index_date"))
    assert late.is_empty()
    assert (tables["cycles"].group_by("patient_id").agg(pl.col("since_first").min())["since_first"] == 0).all()


def test_the_named_set_says_that_it_is_a_simulation():
    assert load("ms_simulated_patients")["patient_id"].str.starts_with("sim").all()
    assert isinstance(datetime.date.fromisoformat(load("ms_simulated_visits")["date"][0]), datetime.date)
