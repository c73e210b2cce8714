"""What a schema can say, what a draft took from the data, and how bad input is met."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from confide.errors import InputError, UnreachableError
from confide.ledger import Ledger
from confide.mechanisms import SeededNoise
from confide.studies.schema_estimate import estimate_schema, marked_values
from confide.studies.synthesis_run import run_synthesis
from confide.synthesis.coding import read_coded
from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.decoding import decode
from confide.synthesis.draft import draft_synthesis
from confide.synthesis.study import parse_synthesis_study

STUDY = """
name = "ms"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[patients.columns.onset]
role = "ignore"
[patients.columns.death]
type = "integer"
bounds = [0, 1000]
bins = [100, 300, 600]
missing = "indicator"
[patients.columns.diagnosis]
type = "categorical"
categories = ["G35", "G3", "other"]
roll_up = "prefix"
other = "other"
[visits]
source = "visits.csv"
contributor = "id"
time = "date"
max_visits = 8
[visits.columns.date]
type = "integer"
bounds = [0, 1000]
bins = [100, 300, 600]
since = "onset"
outside = "clip"
[visits.columns.edss]
type = "real"
bounds = [0, 10]
step = 0.5
bins = [1.0, 3.0, 6.0]
[events.relapses]
source = "relapses.csv"
contributor = "id"
time = "day"
max_events = 6
given = ["sex"]
share = 0.3
[events.relapses.columns.day]
type = "integer"
bounds = [0, 1000]
[[rules]]
column = "date"
not_after = "death"
[privacy]
epsilon = 3.0
delta = 1e-5
[evaluation]
holdout = 0.25
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(1)
    n = 300
    death = rng.integers(50, 1000, n)
    dies = rng.random(n) < 0.4
    patients = {
        "id": [f"p{i}" for i in range(n)],
        "sex": ["fm"[i % 2] for i in range(n)],
        "onset": ["2010-01-01" if i % 2 else "2012-06-15" for i in range(n)],
        "death": [int(d) if gone else None for d, gone in zip(death, dies, strict=True)],
        "diagnosis": [["G35", "G35.1", "G37", "H46"][i % 4] for i in range(n)],
    }
    pl.DataFrame(patients).write_csv(tmp_path / "patients.csv")
    visits, relapses = [], []
    for i in range(n):
        last = int(death[i]) if dies[i] else 1000
        start = np.datetime64(patients["onset"][i])
        for day in sorted(rng.integers(0, last + 1, rng.integers(0, 6)).tolist()):
            visits.append((f"p{i}", str(start + day), float(rng.integers(0, 21)) / 2))
        relapses += [
            (f"p{i}", int(day)) for day in rng.integers(0, last + 1, rng.poisson(2 if i % 2 else 0.3)).tolist()
        ]
    pl.DataFrame(visits, schema=["id", "date", "edss"], orient="row").write_csv(tmp_path / "visits.csv")
    pl.DataFrame(relapses, schema=["id", "day"], orient="row").write_csv(tmp_path / "relapses.csv")
    (tmp_path / "study.toml").write_text(STUDY)
    Ledger.create(f"sqlite:///{tmp_path}/l.sqlite", cap_epsilon=50, cap_delta=1e-4).close()
    return tmp_path


def run(folder, **more):
    url = f"sqlite:///{folder}/l.sqlite"
    return run_synthesis(folder / "study.toml", accept=lambda lines: None, ledger_url=url, **more)


def test_codes_roll_up_and_dates_become_time_since_the_index(folder):
    coded = read_coded(parse_synthesis_study(STUDY), base=folder)
    diagnosis = coded.cells["patients"]["diagnosis"].to_list()
    assert set(diagnosis) == {"G35", "G3", "other"}
    assert diagnosis.count("G35") == 150 and diagnosis.count("other") == 75
    visits = coded.cells["visits"]
    assert visits["date"].dtype == pl.Int64 and visits["date"].min() >= 0
    assert coded.events["relapses"].patients == 300 and len(coded.events["relapses"].domain.static) == 1


def test_a_hierarchy_from_a_file_and_codes_without_a_place(tmp_path):
    column = SynthesisColumn(type="categorical", categories=("liver", "heart"), roll_up="tree.csv")
    parents = {"K74": "fibrosis", "fibrosis": "liver", "loop": "pool", "pool": "loop"}
    assert column.place("K74", parents) == "liver"
    assert column.place("loop", parents) is None and column.place("I21", parents) is None


def test_events_are_linked_and_rules_hold_down_to_the_value(folder):
    # a budget at which the noise cannot hide that men relapse seven times as often: at epsilon 3 it once did
    rewritten = (folder / "study.toml").read_text().replace("epsilon = 3.0", "epsilon = 20.0")
    rewritten += "[sample]\ntables = 2\n"
    (folder / "study.toml").write_text(rewritten)
    made = run(folder).release.path
    second = pl.read_parquet(made / "visits-2.parquet")
    assert second.columns == pl.read_parquet(made / "visits.parquet").columns
    assert (made / "patients-2.parquet").exists() and (made / "relapses-2.parquet").exists()
    patients, visits, relapses = (pl.read_parquet(made / f"{t}.parquet") for t in ("patients", "visits", "relapses"))
    assert set(relapses["patient"]) <= set(patients["patient"])
    late = visits.join(patients, on="patient").filter(pl.col("date") > pl.col("death"))
    assert late.is_empty()
    assert ((visits["edss"] * 2) % 1 == 0).all()
    by_sex = relapses.join(patients, on="patient").group_by("sex").len().sort("sex")["len"].to_list()
    assert by_sex[1] > 2 * by_sex[0]  # men relapse about seven times as often in these data
    schema = json.loads((made / "schema.json").read_text())
    assert set(schema["tables"]) == {"patients", "visits", "relapses"} and "date is not after death" in schema["rules"]
    report = (made / "report.html").read_text()
    assert "relapses: number of visits" in report and "For a data-sharing board" in report


def test_held_out_patients_are_chosen_by_their_own_id_and_not_charged(folder):
    run(folder)
    url = f"sqlite:///{folder}/l.sqlite"
    with Ledger.open(url) as ledger:
        charged = {f"p{i}" for i in range(300) if ledger.remaining(f"p{i}").used > 0}
    assert 180 < len(charged) < 270
    # somebody else leaves: nobody else changes sides
    rows = (folder / "patients.csv").read_text().splitlines()
    gone = next(i for i in range(300) if f"p{i}" in charged)
    (folder / "patients.csv").write_text("\n".join(r for r in rows if not r.startswith(f"p{gone},")) + "\n")
    for file in ("visits.csv", "relapses.csv"):
        rows = (folder / file).read_text().splitlines()
        (folder / file).write_text("\n".join(r for r in rows if not r.startswith(f"p{gone},")) + "\n")
    with Ledger.open(url) as ledger:
        before = {p: ledger.remaining(p).used for p in charged}
    run(folder)
    with Ledger.open(url) as ledger:
        again = {f"p{i}" for i in range(300) if ledger.remaining(f"p{i}").used > before.get(f"p{i}", 0.0)}
    assert again == charged - {f"p{gone}"}


def test_an_empty_visit_table_is_a_table(folder):
    (folder / "visits.csv").write_text("id,date,edss\n")
    made = run(folder).release.path
    visits = pl.read_parquet(made / "visits.parquet")
    assert visits.columns == ["patient", "date", "edss"]
    empty = decode(parse_synthesis_study(STUDY), read_coded(parse_synthesis_study(STUDY), base=folder).panel,
                   np.random.default_rng(0))  # fmt: skip
    assert empty["visits"].height == 0 and empty["visits"]["edss"].dtype == pl.Float64


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("patients.csv", lambda t: t.replace("id,sex", "id,sx"), "sx"),
        ("visits.csv", lambda t: t.replace("id,date,edss", "id,date,edss,extra").replace("\n", ",1\n"), "schema"),
        ("visits.csv", lambda t: t + "p0,2011-01-01,3.25\n", "grid"),
        ("visits.csv", lambda t: t + "p0,yesterday,3\n", "yesterday"),
        ("visits.csv", lambda t: t + "p0,2011-01-01,11\n", "11"),
        ("visits.csv", lambda t: t + "nobody,2011-01-01,1\n", "nobody"),
        ("patients.csv", lambda t: t.replace("p1,m,2010-01-01", "p1,m,"), "p1|onset"),
        ("study.toml", lambda t: t.replace('other = "other"\n', ""), "H46"),
        ("study.toml", lambda t: t.replace('not_after = "death"', 'not_after = "sex"'), "compare"),
        ("study.toml", lambda t: t.replace('not_after = "death"', 'never = "decreases"'), "time never decreases"),
        ("study.toml", lambda t: t.replace("step = 0.5", "step = 0.3"), "divide"),
        ("study.toml", lambda t: t.replace('given = ["sex"]', 'given = ["sax"]'), "'sex'"),
        ("study.toml", lambda t: t.replace("share = 0.3", "share = 0.95"), "share"),
        ("study.toml", lambda t: t.replace('since = "onset"', 'since = "birth"'), "birth"),
        (
            "study.toml",
            lambda t: t.replace("[privacy]", '[method]\nname = "patient-unti"\n[privacy]'),
            "'patient-unit'",
        ),
        ("study.toml", lambda t: t.replace("max_visits = 8", "max_visit = 8"), "max_visits"),
    ],
)
def test_bad_input_is_refused_in_words_and_spends_nothing(folder, file, change, says):
    path = folder / file
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=says):
        run(folder)
    with Ledger.open(f"sqlite:///{folder}/l.sqlite") as ledger:
        assert not ledger.reservations()


def test_a_budget_too_small_for_the_schema_names_the_smallest_useful_one(folder):
    text = STUDY.replace("epsilon = 3.0", "epsilon = 0.001") + "[public]\nmax_contributors = 500\n"
    (folder / "study.toml").write_text(text)
    with pytest.raises(UnreachableError, match="at least 0"):
        run(folder)
    study = parse_synthesis_study(text)
    with pytest.raises(UnreachableError) as refused:
        study.check_useful()
    least = float(str(refused.value).split("at least ")[1].split()[0])
    parse_synthesis_study(text.replace("epsilon = 0.001", f"epsilon = {least}")).check_useful()


@pytest.fixture
def long_table(tmp_path):
    rng = np.random.default_rng(2)
    rows = []
    for i in range(400):
        sex = "fm"[i % 2]
        for day in sorted(rng.choice(900, rng.integers(1, 8), replace=False).tolist()):
            stage = "rare" if i == 0 else ["one", "two"][int(rng.integers(2))]
            rows.append((f"p{i}", day, sex, stage, round(float(rng.normal(50, 5)), 2)))
    rows[5] = (*rows[5][:4], 49_000.0)  # one monstrous value of one person
    pl.DataFrame(rows, schema=["id", "day", "sex", "stage", "weight"], orient="row").write_csv(tmp_path / "long.csv")
    Ledger.create(f"sqlite:///{tmp_path}/l.sqlite", cap_epsilon=20, cap_delta=1e-4).close()
    return tmp_path


def test_a_draft_runs_only_when_every_value_was_confirmed_or_estimated(long_table):
    text, looked = draft_synthesis(long_table / "long.csv", contributor="id", time="day")
    (long_table / "study.toml").write_text(text)
    assert any("sex: the same at all visits" in line for line in looked)
    assert {m.key for m in marked_values(text)} == {"bounds", "categories", "max_visits", "max_contributors"}
    with pytest.raises(InputError, match="nobody has confirmed"):
        run(long_table)
    url = f"sqlite:///{long_table}/l.sqlite"
    prices: list[str] = []
    # fixed noise: at this price the exponential mechanism would take a bound of 1,000 or more in one of 1,100 runs
    found = estimate_schema(
        long_table / "study.toml",
        epsilon=12.0,
        delta=1e-6,
        accept=prices.extend,
        ledger_url=url,
        noise=SeededNoise(0),
    )
    assert "epsilon 12" in prices[0]
    assert found.guarantee.epsilon(1.01e-6) <= 12.0 * 1.01  # read at the safe end of the accountant
    study = parse_synthesis_study(found.text)
    weight = study.features(study.visits)["weight"]
    assert weight.low_high[1] < 1_000 and weight.outside == "clip"  # not the monstrous one
    assert "rare" not in (study.features(study.visits)["stage"].categories or ())
    assert study.public.paid_schema is not None and "visits.columns.weight" in study.public.paid_schema.values
    with Ledger.open(url) as ledger:
        assert ledger.remaining("p3").used > 0 and ledger.find(ledger.receipt(found.receipt)).state == "committed"
    # the public bound on patients is not estimated: somebody has to know it
    (long_table / "study.toml").write_text(found.text.replace("# CONFIRM:", "#"))
    made = run(long_table).release
    paid = [f for f in made.certificate.assumed_public if "learnt privately" in f.source]
    assert any("weight" in f.what for f in paid)


def test_estimates_of_a_schema_do_not_depend_on_one_person_beyond_the_price(long_table):
    """With noise so small that it cannot hide anything, the quantile still weighs every patient once."""
    from confide.studies.schema_estimate import _round_quantile, round_numbers

    class Quiet:
        def uniform(self, size):
            return np.full(size, 0.5)

    rng = np.random.default_rng(0)
    values, owners = rng.normal(50, 5, 1_000), np.repeat(np.arange(100), 10)
    loud = np.concatenate([values, np.full(5_000, 1e5)])
    who = np.concatenate([owners, np.full(5_000, 100)])
    grid = round_numbers()
    a = _round_quantile(values, owners, 0.95, grid, 1e6, Quiet())
    b = _round_quantile(loud, who, 0.95, grid, 1e6, Quiet())
    assert a == b == 60.0
