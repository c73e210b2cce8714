"""What is left and what a release would do; tables for the data protection officer."""

from __future__ import annotations

import contextlib
import csv
import io
import json

import numpy as np
import polars as pl
import pytest

from confide.accounting import SampledGaussian
from confide.cli import main
from confide.errors import BudgetError, InputError
from confide.ledger import Ledger, Odometer
from confide.ledger.detail import course_of, release_detail
from confide.ledger.export import export, releases_csv

from .conftest import gaussian, take


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "l.sqlite", cap_epsilon=4.0, cap_delta=1e-6)


def test_one_person_by_id_and_by_pseudonym(ledger):
    take(ledger, ["ann", "bob"], release="first")
    take(ledger, ["ann"], release="second", strength=0.2)
    odometer = Odometer(ledger)
    found = odometer.person("ann")
    assert found.remaining == ledger.remaining("ann") and found.spends == ledger.history("ann")
    assert odometer.person(pseudonym=found.pseudonym) == found and "ann" not in json.dumps(found.to_dict())
    assert odometer.person("nobody").remaining.known is False
    with pytest.raises(InputError, match="one contributor"):
        odometer.person()
    with pytest.raises(InputError, match="not a pseudonym"):
        odometer.person(pseudonym="xyz")


def test_the_course_ends_at_the_balance(ledger):
    ids = [take(ledger, ["ann"], release=f"r{i}", strength=0.2).id for i in range(4)]
    ledger.abort(ids[2])
    used, epsilons = course_of(ledger, Odometer(ledger).person("ann"))
    assert used == sorted(used) and used[1] == used[2] and used[-1] == pytest.approx(ledger.used(["ann"])[0])
    assert epsilons[0] == pytest.approx(gaussian(0.2).epsilon(1e-6))


def test_a_cohort_counts_people_nobody_has_seen(ledger):
    take(ledger, ["ann", "bob"])
    found = Odometer(ledger).cohort(["ann", "bob", "new"])
    assert (found.people, found.known) == (3, 2) and sum(found.counts) == 3 and found.counts[0] == 1
    assert Odometer(ledger).cohort().people == 2
    assert found.quantiles[0] == 0 and found.quantiles[-1] == pytest.approx(ledger.used(["ann"])[0])


def test_what_dropping_out_does_to_a_release(ledger):
    people = [f"p{i}" for i in range(40)]
    for strength in (0.4, 0.2, 0.1, 0.05):  # the first ten have nothing left
        with contextlib.suppress(BudgetError):
            while True:
                take(ledger, people[:10], strength=strength)
    classes = [
        SampledGaussian(noise_multiplier=1.0, rate=r, entries=k).guarantee(steps=200)
        for r, k in ((0.01, 1), (0.005, 4))
    ]
    class_of = np.array([0, 1] * 20)
    effect = Odometer(ledger).planned(contributors=people, class_of=class_of, classes=classes)
    before = ledger.reservations()
    # By hand: a step expects rate * entries draws of everybody; half of the people are in each class.
    planned, lost = 20 * 0.01 + 20 * 0.02, 5 * 0.01 + 5 * 0.02
    found = effect.to_dict()
    assert effect.dropped == 10 and effect.dropped_share == 0.25
    assert found["draws_per_step_planned"] == pytest.approx(planned)
    assert found["draws_per_step_kept"] == pytest.approx(planned - lost)
    assert effect.kept_share == pytest.approx(1 - lost / planned) and found["noise_factor"] == pytest.approx(4 / 3)
    assert found["denominators"] == "unchanged" and found["stamp"] == "internal, must not leave"
    # It says what a reservation then does.
    kept = ledger.reserve(release="r", data_set="d", contributors=people, class_of=class_of, classes=classes)
    assert kept.admitted.tolist() == effect.what_if.admitted.tolist() and len(ledger.reservations()) == len(before) + 1


def test_a_refusal_is_stamped(ledger):
    with pytest.raises(BudgetError, match="internal, must not leave"):
        take(ledger, ["ann"], strength=1.0)


def test_detail_of_a_release(ledger):
    kept = take(ledger, ["ann", "bob"], recipient="uni", purpose="research")
    ledger.start(kept.id)
    receipt = ledger.commit(kept.id, release_hash="ab" * 32)
    found = release_detail(ledger, kept.id)
    assert found.receipt == receipt and (found.recipient, found.purpose) == ("uni", "research")
    assert found.classes[0].admitted == 2 and found.classes[0].share == pytest.approx(ledger.used(["ann"])[0])
    assert found.epsilon(found.dearest) == pytest.approx(gaussian(0.5).epsilon(1e-6), rel=1e-3)
    fpr, fnr = found.tradeoff()
    assert fnr == sorted(fnr, reverse=True) and fpr[0] == 0 and fpr[-1] == 1


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_exports(ledger, tmp_path, format):
    take(ledger, ["ann", "bob"], release="=HYPERLINK(1)")
    read = pl.read_csv if format == "csv" else pl.read_parquet
    assert export(ledger, "balances", tmp_path / "b", format=format) == 2
    rows = read(tmp_path / "b")
    assert set(rows["pseudonym"]) == {Odometer(ledger).pseudonym(p) for p in ("ann", "bob")}
    assert rows["used_share"][0] == pytest.approx(ledger.used(["ann"])[0])
    assert (rows["used_share"] + rows["left_share"]).to_list() == pytest.approx([1.0, 1.0])
    assert export(ledger, "releases", tmp_path / "r", format=format) == 1
    # A spreadsheet would run the name of the release; Parquet keeps it as it is.
    assert read(tmp_path / "r")["release"][0] == ("'=HYPERLINK(1)" if format == "csv" else "=HYPERLINK(1)")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "b").read_bytes()
    with pytest.raises(InputError, match="there is a file already"):
        export(ledger, "releases", tmp_path / "b", format=format)
    assert (tmp_path / "b").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_exports_that_are_refused(ledger, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="already"):
        export(ledger, "releases", tmp_path / "link")
    for what, format in (("people", "csv"), ("releases", "xlsx")):
        with pytest.raises(InputError, match="unknown"):
            export(ledger, what, tmp_path / "x", format=format)
    assert releases_csv(ledger).count("\n") == 1
    export(ledger, "balances", tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().startswith("pseudonym,")


def test_commands(ledger, tmp_path, capsys, monkeypatch):
    take(ledger, ["ann", "bob"], release="one")
    monkeypatch.setenv("CONFIDE_LEDGER", f"sqlite:///{tmp_path}/l.sqlite")
    assert main(["ledger", "balance", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["people"] == 2
    (tmp_path / "ids").write_text("ann\nnew\n")
    assert main(["ledger", "balance", "--ids", str(tmp_path / "ids")]) == 0
    assert "2 contributors, 1 of them known" in capsys.readouterr().out
    assert main(["ledger", "export"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0]["release"] == "one"
    assert main(["ledger", "export", "balances", "-o", str(tmp_path / "b.parquet")]) == 0
    assert len(pl.read_parquet(tmp_path / "b.parquet")) == 2
    assert main(["ledger", "export", "balances", "-o", str(tmp_path / "b.parquet")]) == 2
    assert main(["ledger", "export", "balances"]) == 2
    pseudonym = Odometer(ledger).pseudonym("ann")
    assert main(["ledger", "history", "--pseudonym", pseudonym, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["history"][0]["release"] == "one"


def test_what_if_of_a_plan_on_a_data_set(ledger, tmp_path, capsys, monkeypatch):
    import confide

    plan = confide.plan(
        entry_counts={1: 30, 2: 10}, epsilon=1.0, delta=1e-6, noise_multiplier=1.0, steps=50, strategy="individual"
    )
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_dict()))
    ledger.create_data_set("clinic", ["ann", "bob", "eve"], entries=[1, 2, 2])
    monkeypatch.setenv("CONFIDE_LEDGER", f"sqlite:///{tmp_path}/l.sqlite")
    assert main(["ledger", "what-if", str(tmp_path / "plan.json"), "--data-set", "clinic", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rates = {c.entries: c.rate * c.entries for c in plan.classes}
    assert found["draws_per_step_planned"] == pytest.approx(rates[1] + 2 * rates[2])
    assert found["dropped"] == 0 and len(ledger.reservations()) == 0
    assert main(["ledger", "what-if", str(tmp_path / "plan.json")]) == 2
    assert main(["ledger", "what-if", str(tmp_path / "plan.json"), "--data-set", "clinic"]) == 0
    assert "INTERNAL, must not leave" in capsys.readouterr().out
