"""From declared tables to a release: bad input is refused before anything is spent, good input comes out right."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from confide.errors import BudgetError, InputError
from confide.ledger import Ledger
from confide.release import Release, verify
from confide.studies.synthesis_run import run_synthesis
from confide.synthesis.coding import read_coded
from confide.synthesis.decoding import decode
from confide.synthesis.draft import draft_synthesis
from confide.synthesis.study import parse_synthesis_study


def run_synthesize(path, *, ledger_url, output):
    outcome = run_synthesis(path, accept=lambda lines: None, ledger_url=ledger_url, output=output)
    return outcome.release.path, outcome.lines


STUDY = """
name = "clinic"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[patients.columns.birth]
type = "date"
bounds = ["1930-01-01", "2000-12-31"]
missing = "indicator"
[patients.columns.consent]
role = "attribute"
[visits]
source = "visits.csv"
contributor = "id"
entry = "visit"
time = "day"
max_visits = 12
[visits.columns.day]
type = "integer"
bounds = [0, 1000]
[visits.columns.edss]
type = "ordinal"
categories = [0, 1, 2, 3]
[visits.columns.weight]
type = "real"
bounds = [30, 150]
missing = "indicator"
[[rules]]
column = "edss"
never = "decreases"
[[rules]]
column = "sex"
not = ["m"]
when = {column = "edss", is = [3]}
[privacy]
epsilon = 2.0
delta = 1e-5
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    n = 400
    ids = [f"{i:04d}" for i in range(n)]
    births = [None if i % 9 == 0 else f"19{30 + i % 70}-05-0{1 + i % 9}" for i in range(n)]
    pl.DataFrame(
        {
            "id": ids,
            "sex": ["fm"[i % 2] for i in range(n)],
            "birth": births,
            "consent": [["basic", "full"][i % 2] for i in range(n)],
        }
    ).write_csv(tmp_path / "patients.csv")
    rows = []
    for i in range(0, n, 2):
        for v in range(int(rng.integers(1, 7))):
            weight = None if rng.random() < 0.2 else round(float(rng.uniform(40, 120)), 1)
            rows.append((ids[i], v, int(rng.integers(0, 1001)), int(rng.integers(0, 4)), weight))
    pl.DataFrame(rows, schema=["id", "visit", "day", "edss", "weight"], orient="row").write_csv(tmp_path / "visits.csv")
    (tmp_path / "study.toml").write_text(STUDY)
    Ledger.create(f"sqlite:///{tmp_path}/l.sqlite", cap_epsilon=2.3, cap_delta=1e-5).close()
    return tmp_path


def rewrite(folder, file, change):
    path = folder / file
    path.write_text(change(path.read_text()))


def test_codes_come_back_inside_what_was_declared(folder):
    study = parse_synthesis_study(STUDY)
    coded = read_coded(study, base=folder)
    assert coded.panel.patients == 400 and (coded.panel.counts == 0).sum() == 200
    tables = decode(study, coded.panel, np.random.default_rng(0))
    patients, visits = tables["patients"], tables["visits"]
    source = pl.read_csv(folder / "patients.csv", schema_overrides={"id": pl.String})
    source = pl.DataFrame({"id": coded.ids.tolist()}).join(source, on="id", how="left", maintain_order="left")
    assert patients["sex"].to_list() == source["sex"].to_list()
    assert patients["birth"].null_count() == source["birth"].null_count()
    assert visits["weight"].is_between(30, 150).all() and visits["day"].is_between(0, 1000).all()
    assert (
        visits.group_by("patient", maintain_order=True)
        .agg(pl.col("day").diff().min())
        .filter(pl.col("day") < 0)
        .is_empty()
    )
    again = study.features(study.visits)["weight"].edges()
    truth = pl.read_csv(folder / "visits.csv", schema_overrides={"id": pl.String}).sort("id", "day")["weight"]
    np.testing.assert_array_equal(
        np.histogram(visits["weight"].drop_nulls(), again)[0], np.histogram(truth.drop_nulls(), again)[0]
    )


def test_a_study_runs_to_a_committed_release(folder):
    url = f"sqlite:///{folder}/l.sqlite"
    made, lines = run_synthesize(folder / "study.toml", ledger_url=url, output=folder / "releases")
    certificate = Release.load(made).certificate
    assert certificate.kind == "table" and certificate.worst.epsilon <= 2.0
    assert "epsilon at most 2.00" in lines[0]
    with Ledger.open(url) as ledger:
        assert verify(made, ledger=ledger).ok
        record = ledger.find(ledger.receipt(certificate.ledger.reservation))
        assert record.state == "committed"
    visits = pl.read_parquet(made / "visits.parquet")
    order = visits.with_columns(pl.col("edss").cast(pl.Int64).diff().over("patient").alias("d"))
    assert order.filter(pl.col("d") < 0).is_empty()
    joined = pl.read_parquet(made / "table.parquet")
    assert joined.filter((pl.col("edss").cast(pl.String) == "3") & (pl.col("sex") == "m")).is_empty()
    marginals = json.loads((made / "marginals.json").read_text())
    assert all(m["standard_error"] > 0 for m in marginals["tables"])
    assert json.loads((folder / "internal" / made.name / "figures.json").read_text())["internal"]
    # the lifetime cap is 2.3: the same again does not fit
    with pytest.raises(BudgetError):
        run_synthesize(folder / "study.toml", ledger_url=url, output=folder / "releases")


def test_consent_levels_are_charged_and_honoured(folder):
    rewrite(folder, "study.toml", lambda t: t + 'budget = {column = "consent", levels = {basic = 0.5, full = 2.0}}\n')
    url = f"sqlite:///{folder}/l.sqlite"
    made, _ = run_synthesize(folder / "study.toml", ledger_url=url, output=folder / "releases")
    certificate = Release.load(made).certificate
    assert sorted(round(c.epsilon, 2) for c in certificate.classes) == [0.5, 2.0]
    with Ledger.open(url) as ledger:
        assert ledger.remaining("0000").used < ledger.remaining("0001").used


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("patients.csv", lambda t: t.replace("0001,m", "0001,x"), "'x'"),
        ("patients.csv", lambda t: t.replace("0001,", "0000,"), "twice"),
        ("patients.csv", lambda t: t.replace("id,sex", "pid,sex"), "no column 'id'"),
        ("visits.csv", lambda t: t + "9999,0,5,1,50\n", "nobody in the patient table"),
        ("visits.csv", lambda t: t + "0000,0,5,1,50\n", "same key"),
        ("visits.csv", lambda t: t + "0000,77,5000,1,50\n", "5000"),
        ("visits.csv", lambda t: t.replace("edss", "eds"), "edss"),
        ("study.toml", lambda t: t.replace('column = "edss"\nnever', 'column = "eds"\nnever'), "edss"),
        ("study.toml", lambda t: t.replace("is = [3]", "is = [0, 1, 2, 3]"), "never hold"),
        ("study.toml", lambda t: t.replace("max_visits", "max_visit"), "max_visits"),
        ("study.toml", lambda t: t.replace("epsilon = 2.0", "epsilon = -1"), "epsilon"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(folder, file, change, says):
    rewrite(folder, file, change)
    url = f"sqlite:///{folder}/l.sqlite"
    with pytest.raises(InputError, match=says):
        run_synthesize(folder / "study.toml", ledger_url=url, output=folder / "releases")
    with Ledger.open(url) as ledger:
        assert not ledger.reservations()
    assert not (folder / "releases").exists()


def test_a_draft_says_what_it_read(folder):
    text, looked = draft_synthesis(folder / "visits.csv", contributor="id", time="day")
    assert any("max_visits" in line for line in looked) and any(
        "weight" in line and "missing" in line for line in looked
    )
    assert "CONFIRM:" in text
    with pytest.raises(InputError, match="day"):
        draft_synthesis(folder / "visits.csv", contributor="id", time="dya")


def test_a_draft_of_one_table_can_be_read_back(folder):
    text, _ = draft_synthesis(folder / "patients.csv", contributor="id", time=None)
    study = parse_synthesis_study(text)
    assert {column.name for column in study.domain().static} == {"sex", "birth", "consent"}


def test_a_patients_number_does_not_depend_on_who_else_is_there():
    from confide.synthesis.coding import numbers_of

    ids = np.array(["A001", "A002", "B7", "Z9"])
    assert numbers_of(ids[1:]).tolist() == numbers_of(ids)[1:].tolist()
    assert len(set(numbers_of(np.array([str(i) for i in range(2000)])).tolist())) > 1990
