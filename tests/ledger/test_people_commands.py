"""Commands for people, policy and flows, run in this process."""

from __future__ import annotations

import json

import polars as pl
import pytest

from confide.cli import main
from confide.ledger import Ledger

from .conftest import take

PEOPLE = [f"p{i}" for i in range(6)]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CONFIDE_LEDGER", f"sqlite:///{tmp_path}/l.sqlite")
    monkeypatch.setenv("COLUMNS", "220")

    def command(*words: object, code: int = 0) -> str:
        found = main(["ledger", *map(str, words)])
        out = capsys.readouterr()
        assert found == code, out.err
        return out.out + out.err

    command("init", "--cap-epsilon", 8, "--cap-delta", 1e-6)
    return command


def test_a_hospital_from_the_first_data_set_to_erasure(run, tmp_path):
    pl.DataFrame({"patient": PEOPLE, "images": [1, 1, 2, 2, 3, 3]}).write_parquet(tmp_path / "ids.parquet")
    run("data-set", "x-rays", tmp_path / "ids.parquet", "--contributor", "patient", "--entries", "images")
    pl.DataFrame({"patient": ["p0", "later"], "images": [1, 2]}).write_parquet(tmp_path / "more.parquet")
    add = ("--contributor", "patient", "--entries", "images", "--add")
    assert "no data set" in run("data-set", "absent", tmp_path / "more.parquet", *add, code=2)
    run("data-set", "x-rays", tmp_path / "more.parquet", *add)
    assert "version 2" in run("data-set")
    run("erase", "later", "--yes", "--override", "never was a patient")
    assert json.loads(run("data-set", "--json"))[0]["contributors"] == 6
    run("level", "basic", "--cap-epsilon", 2, "--purpose", "research", "--recipient", "university")
    (tmp_path / "ids.txt").write_text("p0\np1\n")
    run("consent", "basic", "--ids", tmp_path / "ids.txt")
    run("allowance", "university", "--cap-epsilon", 4, "--cap-delta", 1e-6, "--period", "year")
    policy = json.loads(run("policy"))
    assert policy["levels"][0]["cap_epsilon"] == 2 and policy["allowances"][0]["period"] == "year"
    with Ledger.open(f"sqlite:///{tmp_path}/l.sqlite") as ledger:
        cohort = ledger.data_set("x-rays")
        kept = take(ledger, cohort, 0.2, release="[b]m1", recipient="university", purpose="research", data_set=None)
        ledger.commit(kept.id, release_hash="ab" * 32)
    shown = run("history", "p0")
    assert "level:basic" in shown and "university:" in shown and "consent level: basic" in shown
    assert json.loads(run("history", "p0", "--json"))["remaining"]["caps"][0]["kind"] == "level"
    (tmp_path / "ids.txt").write_text("p1\np5\nnobody\n")
    each = run("balance", "--each", "--ids", tmp_path / "ids.txt")
    assert "basic" in each and "nobody  unknown" in each and "--ids FILE" in run("balance", "--each", code=2)
    rows = json.loads(run("balance", "--each", "--ids", tmp_path / "ids.txt", "--json"))
    assert [row["contributor"] for row in rows] == ["p1", "p5", "nobody"] and rows[0]["releases"] == 1
    assert rows[0]["epsilon"] == json.loads(run("history", "p1", "--json"))["remaining"]["epsilon"]
    assert "[b]m1" in run("flows") and json.loads(run("flows", "--json"))[0]["bits"] > 0
    assert json.loads(run("flows", "--recipient", "nobody", "--json")) == []
    assert "1 of 2 were known" in run("erase", "p0", "p9", "--yes")
    assert "erased" in run("history", "p0")
    run("erase", "p1", "--yes", "--override", "court order")
    assert "never seen this id" in run("history", "p1")
    run("verify")


def test_an_unknown_id_does_not_look_like_an_unused_one(run, tmp_path):
    with Ledger.open(f"sqlite:///{tmp_path}/l.sqlite") as ledger:
        ledger.register(["known"])
    assert "never seen" in run("history", "unknown") and "never seen" not in run("history", "known")
    assert json.loads(run("history", "unknown", "--json"))["known"] is False
    assert json.loads(run("history", "known", "--json"))["known"] is True


def test_a_missing_folder_is_named_with_the_remedy(run, tmp_path):
    for place in (
        ("--ledger", f"sqlite:///{tmp_path}/no/l.sqlite"),
        ("--key", f"{tmp_path}/no/k", "--ledger", f"{tmp_path}/x"),
    ):
        assert "mkdir -p" in run("init", "--cap-epsilon", 8, "--cap-delta", 1e-6, *place, code=2)


def test_bad_words(run, tmp_path):
    assert "no contributor" in run("consent", "default", code=2)
    assert "cannot be read" in run("consent", "default", "--ids", tmp_path / "none", code=2)
    assert "no consent level" in run("consent", "gold", "p0", code=2)
    assert "file of ids" in run("data-set", "x", code=2)
    assert "no such file" in run("data-set", "x", tmp_path / "none.parquet", code=2)
    assert "period" in run("allowance", "x", "--cap-epsilon", 1, "--cap-delta", 1e-7, "--period", "week", code=2)
