"""Tables on disk give the answers that tables in memory give, to the last bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthesis_panels import random_panel

from confide.errors import InputError
from confide.ledger import Ledger
from confide.mechanisms import SeededNoise
from confide.studies import synthesis_draw
from confide.studies.synthesis_people import set_aside
from confide.studies.synthesis_run import run_synthesis
from confide.synthesis import FlatTree, Meter, Panel, PatientUnit, StreamedPanel, domain, spool
from confide.synthesis.coding import read_coded
from confide.synthesis.spool import read_streamed, streams
from confide.synthesis.study import parse_synthesis_study

STUDY = """
name = "ward"
[patients]
source = "patients.parquet"
contributor = "id"
stream = true
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[patients.columns.entry]
type = "date"
bounds = ["2000-01-01", "2010-12-31"]
[patients.columns.consent]
role = "attribute"
[visits]
source = "visits.parquet"
contributor = "id"
entry = "key"
time = "day"
max_visits = 12
[visits.columns.day]
type = "real"
bounds = [0, 365]
bins = 4
since = "entry"
[visits.columns.score]
type = "integer"
bounds = [0, 9]
outside = "clip"
missing = "indicator"
[events.relapses]
source = "relapses.parquet"
contributor = "id"
time = "day"
max_events = 4
given = ["sex"]
beside = ["visits"]
[events.relapses.columns.day]
type = "real"
bounds = [0, 365]
bins = 3
[privacy]
epsilon = 3.0
delta = 1e-5
seed = 3
budget = {column = "consent", levels = {basic = 1.0, full = 3.0}}
[evaluation]
holdout = 0.2
"""


def written(folder, *, patients, seed=0, change=lambda tables: tables):
    """Write the tables of a ward, rows in any order, and return its study."""
    rng = np.random.default_rng(seed)
    ids = [f"p{number}" for number in rng.permutation(patients)]
    start = np.datetime64("2000-01-01") + rng.integers(0, 3000, patients)
    first = {"id": ids, "sex": rng.choice(["f", "m"], patients).tolist(), "entry": start.tolist()}
    first["consent"] = rng.choice(["basic", "full"], patients).tolist()
    owner = rng.integers(0, patients, 3 * patients)
    days = (start[owner] + rng.integers(0, 365, len(owner))).tolist()
    scores = [None if x > 10 else int(x) for x in rng.integers(0, 13, len(owner))]
    visits = {"id": [ids[o] for o in owner], "key": list(range(len(owner))), "day": days, "score": scores}
    whose = rng.integers(0, patients, patients)
    relapses = {"id": [ids[o] for o in whose], "day": rng.uniform(0, 365, len(whose)).tolist()}
    tables = {"patients": first, "visits": visits, "relapses": relapses}
    for name, table in change(tables).items():
        pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")
    return parse_synthesis_study(STUDY)


def streamed(study, folder, spooled, *, part_rows=40, batch_rows=17):
    spooled.mkdir()
    return read_streamed(
        study,
        base=folder,
        folder=spooled,
        set_aside=lambda coded: set_aside(study, coded),
        part_rows=part_rows,
        batch_rows=batch_rows,
    )


def joined(panel):
    return Panel.joined(panel.domain, [block for _, block in panel.blocks(7)])


def assert_same(a, b):
    for name in ("static", "visit", "counts", "keys"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), patients=st.integers(1, 30), part_rows=st.sampled_from([3, 40, 1000]))
def test_tables_coded_a_part_at_a_time_are_those_coded_at_once(seed, patients, part_rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ward")
    study = written(folder, patients=patients, seed=seed)
    everybody = read_coded(study, base=folder)
    taking = everybody.subset(~set_aside(study, everybody))
    found = streamed(study, folder, folder / "spool", part_rows=part_rows)
    assert_same(joined(found.panel), taking.panel)
    assert_same(joined(found.events["relapses"]), taking.events["relapses"])
    assert found.events["relapses"].domain == taking.events["relapses"].domain
    assert pl.read_parquet(found.ids_file)["id"].to_list() == taking.ids.tolist()
    levels = list(study.privacy.budget.levels)
    np.testing.assert_array_equal(found.level_numbers(levels), taking.level_numbers(levels))
    assert (found.aside, found.clipped) == (patients - len(taking.ids), everybody.clipped)
    some = np.random.default_rng(seed).random(len(taking.ids)) < 0.5
    if some.any():
        assert_same(joined(found.subset(some).panel), taking.subset(some).panel)


@pytest.mark.parametrize("method", [PatientUnit(structure="none"), PatientUnit(), FlatTree(cap=3.0)], ids=str)
@pytest.mark.parametrize("seed", [4, 5])
def test_streamed_and_in_memory_answers_are_the_same(method, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(domain, "BLOCK_PATIENTS", 7)
    monkeypatch.setattr("confide.synthesis.stream.BLOCK_PATIENTS", 7)
    panel = random_panel(np.random.default_rng(seed), patients=23)
    on_disk = StreamedPanel.write(tmp_path, panel.domain, (panel.slice(a, min(a + 5, 23)) for a in range(0, 23, 5)))
    meters = [Meter(epsilon=3.0, delta=1e-5, noise=SeededNoise(0), record=True) for _ in range(2)]
    for meter, data in zip(meters, (panel, on_disk), strict=True):
        method.fit(data, meter)
    for a, b in zip(meters[0].looks, meters[1].looks, strict=True):
        np.testing.assert_array_equal(a.exact, b.exact)
        assert a.sensitivity == b.sensitivity
    assert repr(on_disk) == "StreamedPanel(private)"


class Killed(BaseException):
    """Stands for a power cut."""


def die(*_, **__):
    raise Killed


def test_a_streamed_study_makes_the_release_that_one_in_memory_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis_draw, "DRAW_PATIENTS", 60)  # several blocks are drawn
    monkeypatch.setattr(spool, "PART_ROWS", 100)
    made = {}
    for stream in (True, False):
        folder = tmp_path / str(stream)
        folder.mkdir()
        written(folder, patients=200)
        text = STUDY if stream else STUDY.replace("stream = true", "stream = false")
        (folder / "study.toml").write_text(text)
        url = f"sqlite:///{folder}/ledger.sqlite"
        Ledger.create(url, cap_epsilon=8, cap_delta=1e-4).close()
        run = partial(run_synthesis, folder / "study.toml", accept=lambda lines: None, ledger_url=url)
        if stream:  # killed when everything is measured, and gone on with
            with monkeypatch.context() as patch:
                patch.setattr("confide.studies.synthesis_write.draw_tables", die)
                with pytest.raises(Killed):
                    run()
        made[stream] = run(resume=stream).release
        assert not list((folder / "internal").glob(".*"))
        with Ledger.open(url) as ledger:
            (record,) = ledger.reservations()
        made[stream, "charged"] = record.admitted
    assert made[True, "charged"] == made[False, "charged"]
    names = set(made[True].certificate.artefacts)
    assert {"table.parquet", "table.csv", "visits.parquet", "relapses.csv"} <= names
    for name in sorted(names - {"study.toml", "report.html"}):
        a, b = (made[stream].file(name) for stream in (True, False))
        assert a.read_bytes() == b.read_bytes(), name
    drawn = pl.read_parquet(made[True].file("patients.parquet"))
    assert drawn["patient"].to_list() == list(range(1, len(drawn) + 1))
    assert set(pl.read_parquet(made[True].file("visits.parquet"))["patient"]) <= set(drawn["patient"])


def replaced(table, column, row, value):
    def change(tables):
        cells = list(tables[table][column])
        cells[row] = value
        return {**tables, table: {**tables[table], column: cells}}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("visits", "id", 31, "stranger"), "visits.parquet, column 'id', row 32"),
        (replaced("patients", "sex", 11, "x"), "patients.parquet, column 'sex', row 12"),
        (replaced("relapses", "day", 5, 999.0), "relapses.parquet, column 'day', row 6"),
        (lambda tables: {**tables, "visits": {**tables["visits"], "dose": [1] * 150}}, "'dose' is in the table"),
        (lambda tables: {**tables, "patients": {k: [*v, v[0]] for k, v in tables["patients"].items()}}, "stands twice"),
    ],
)
def test_bad_tables_are_refused_with_the_row_of_the_source(change, message, tmp_path):
    study = written(tmp_path, patients=50, change=change)
    with pytest.raises(InputError) as error:
        streamed(study, tmp_path, tmp_path / "spool")
    assert message in str(error.value)


def test_streaming_is_declared_or_follows_the_size_of_parquet_files(tmp_path, monkeypatch):
    study = written(tmp_path, patients=20)
    assert streams(study, base=tmp_path)
    by_size = study.model_copy(update={"patients": study.patients.model_copy(update={"stream": None})})
    assert not streams(by_size, base=tmp_path)
    monkeypatch.setattr(spool, "STREAM_BYTES", 1000)
    assert streams(by_size, base=tmp_path)
    aim = study.method.model_copy(update={"name": "aim"})
    assert not streams(by_size.model_copy(update={"method": aim}), base=tmp_path)
    with pytest.raises(InputError, match="'aim' needs the tables in memory"):
        streams(study.model_copy(update={"method": aim}), base=tmp_path)
    csv = study.visits.model_copy(update={"source": "visits.csv"})
    with pytest.raises(InputError, match="only Parquet"):
        streams(study.model_copy(update={"visits": csv}), base=tmp_path)


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    panel = random_panel(np.random.default_rng(4), patients=23)
    on_disk = StreamedPanel.write(tmp_path, panel.domain, [panel])
    (rows,) = tmp_path.glob("*rows.parquet")
    pl.read_parquet(rows).head(3).write_parquet(rows)
    with pytest.raises(InputError, match="not as many"):
        list(on_disk.blocks(4))
    assert list(replace(on_disk, sizes=()).blocks(4)) == []
