"""Key rotation, backups, exports and the commands for them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest

from confide.errors import InputError, RunError
from confide.ledger import Ledger

from .conftest import gaussian, take

PEOPLE = [f"p{i}" for i in range(40)]


def test_rotation_changes_every_pseudonym_and_no_balance(new, url, key):
    ledger = new()
    kept = take(ledger, PEOPLE[:20], 0.5)
    before, pseudonyms = ledger.used(PEOPLE), set(ledger.export_balances()["pseudonym"])
    other = Ledger.open(url, key=key)
    ledger.rotate_key()
    ledger.rotate_key()
    assert not pseudonyms & set(ledger.export_balances()["pseudonym"])
    for again in (ledger, Ledger.open(url, key=key)):
        assert (again.used(PEOPLE) == before).all()
        assert len(again.history(PEOPLE[3])) == 1 and again.resume(kept.id, PEOPLE[:20]).admitted.all()
        again.verify()
    take(ledger, PEOPLE, 0.5)
    assert ledger.status().contributors == 40
    # A run that was open during the rotation may not add people under the old key: they would come back unspent.
    with pytest.raises(InputError, match="rotated"):
        take(other, PEOPLE, 0.5)
    ledger.verify()


def test_a_rotation_that_dies_leaves_keys_that_fit(tmp_path, monkeypatch):
    file = tmp_path / "l.sqlite"
    ledger = Ledger.create(file, cap_epsilon=8, cap_delta=1e-6)
    take(ledger, PEOPLE, 0.5)
    old = (tmp_path / "l.sqlite.key").read_text()

    def die(*_):
        raise KeyboardInterrupt

    import confide.ledger._upkeep as module

    # After the database has switched, before the key file has: opening finishes the switch.
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", lambda a, b: die() if str(a).endswith(".next") else shutil.move(a, b))
        with pytest.raises(KeyboardInterrupt):
            ledger.rotate_key()
    assert (tmp_path / "l.sqlite.key").read_text() == old
    with Ledger.open(file) as again:
        assert len(again.history("p3")) == 1
        again.verify()
    assert (tmp_path / "l.sqlite.key").read_text() != old and not (tmp_path / "l.sqlite.key.next").exists()
    # Before the database has switched: the old key stays right.
    now = (tmp_path / "l.sqlite.key").read_text()
    with Ledger.open(file) as again, monkeypatch.context() as patch:
        patch.setattr(module._tokens, "replace_all", die)
        with pytest.raises(KeyboardInterrupt):
            again.rotate_key()
    with Ledger.open(file) as again:
        assert len(again.history("p3")) == 1 and (tmp_path / "l.sqlite.key").read_text() == now
        again.verify()


def test_a_backup_while_others_write_is_whole(tmp_path):
    ledger = Ledger.create(tmp_path / "l.sqlite", cap_epsilon=40, cap_delta=1e-6)
    stop = threading.Event()

    def write():
        with Ledger.open(tmp_path / "l.sqlite") as mine:
            while not stop.is_set():
                take(mine, PEOPLE, 0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = [tmp_path / f"copy{i}" for i in range(4)]
        for copy in copies:
            ledger.backup(copy)
    finally:
        stop.set()
        writer.join()
    for copy in copies:
        # The head note belongs to the original; a copy is judged by itself.
        shutil.copy(tmp_path / "l.sqlite.key", tmp_path / "copied.key")
        with Ledger.open(copy, key=tmp_path / "copied.key") as restored:
            found = restored.verify()
            assert found.reservations == len(restored.reservations())
    assert copies[0].stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="already"):
        ledger.backup(copies[0])
    with pytest.raises(RunError, match="unharmed"):
        ledger.backup(tmp_path / "no folder" / "copy")


def test_exports_hold_pseudonyms_and_mechanisms_only(new):
    ledger = new()
    take(ledger, PEOPLE, 0.5, release="r1")
    rows = ledger.export_releases()
    assert rows[0]["release"] == "r1" and rows[0]["in_class"] == 40
    assert json.loads(rows[0]["guarantee"]) == gaussian(0.5).to_dict()
    balances = pl.DataFrame(ledger.export_balances())
    assert len(balances) == 40 and balances["pseudonym"].n_unique() == 40
    assert np.allclose(balances["used"], ledger.used(["p0"])[0])


def test_ids_from_a_parquet_file(new, tmp_path):
    ledger = new()
    pl.DataFrame({"patient": PEOPLE, "age": range(40)}).write_parquet(tmp_path / "ids.parquet")
    cohort = ledger.register_parquet(tmp_path / "ids.parquet", "patient")
    assert len(cohort) == 40 and ledger.register(PEOPLE).numbers.tolist() == cohort.numbers.tolist()
    for column, text in (("age", "no text column"), ("none", "no text column")):
        with pytest.raises(InputError, match=text):
            ledger.register_parquet(tmp_path / "ids.parquet", column)
    with pytest.raises(InputError, match="no such file"):
        ledger.register_parquet(tmp_path / "none", "patient")
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(InputError, match="Parquet"):
        ledger.register_parquet(tmp_path / "bad", "patient")
    for ids in (["a", None], ["a", "a"]):
        pl.DataFrame({"patient": ids}).write_parquet(tmp_path / "x.parquet")
        with pytest.raises(InputError):
            ledger.register_parquet(tmp_path / "x.parquet", "patient")
    ledger.verify()


def test_many_people_over_several_chunks(new):
    """More than one chunk, more than one slice of the index, classes wider than a byte."""
    ledger = new()
    people = [f"x{i}" for i in range(70_000)]
    classes = [gaussian(0.1 + 0.001 * i) for i in range(300)]
    class_of = np.arange(70_000) % 300
    kept = ledger.reserve(release="r", contributors=people, class_of=class_of, classes=classes, data_set="d")
    part = take(ledger, people[69_990:] + ["new"], 0.2)
    used = ledger.used(people)
    assert kept.admitted.all() and part.admitted.all()
    assert used[299] > used[0] == used[300] and used[69_995] > used[69_995 - 300]
    assert ledger.history(people[69_998])[0].guarantee.to_dict() == classes[69_998 % 300].to_dict()
    assert ledger.resume(kept.id, people[:5]).admitted.all()
    some = [
        people[69_998],
        "nobody",
        people[65_535],
        "new",
        *people[:3],
        people[65_536],
    ]  # of both chunks, in any order
    assert list(ledger.remaining_of(some)) == [ledger.remaining(one) for one in some]
    assert ledger.abort(kept.id) and ledger.used(people[:3]).tolist() == [0, 0, 0]
    ledger.verify()


def confide(*arguments, **more):
    code = "import sys; from confide.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, **more
    )


@pytest.mark.slow
def test_commands(tmp_path):
    url = f"sqlite:///{tmp_path}/l.sqlite"
    made = confide("ledger", "init", "--ledger", url, "--cap-epsilon", 8, "--cap-delta", 1e-6)
    assert made.returncode == 0, made.stderr
    with Ledger.open(url) as ledger:
        take(ledger, PEOPLE, 0.5, release="[red]r1")
    assert confide("ledger", "rotate-key", "--ledger", url).returncode == 0
    assert confide("ledger", "backup", tmp_path / "copy", "--ledger", url).returncode == 0
    state = json.loads(confide("ledger", "status", "--ledger", url, "--json").stdout)
    assert state["contributors"] == 40 and state["releases"][0]["release"] == "[red]r1"
    assert "[red]r1" in confide("ledger", "status", "--ledger", url).stdout
    left = json.loads(confide("ledger", "history", "p3", "--ledger", url, "--json").stdout)["remaining"]
    assert left["releases"] == 1
    assert confide("ledger", "verify", "--ledger", url).returncode == 0
    export = confide("ledger", "export", "--ledger", url).stdout.splitlines()
    assert len(list(csv.DictReader(export))) == 1
    bad = confide(
        "ledger", "init", "--ledger", f"sqlite:///{tmp_path}/m.sqlite", "--cap-epsilon", -1, "--cap-delta", 1e-6
    )
    assert bad.returncode == 2 and "epsilon" in bad.stderr
    assert confide("ledger", "status", "--ledger", f"sqlite:///{tmp_path}/none").returncode == 2
    import sqlite3

    with sqlite3.connect(tmp_path / "l.sqlite") as connection:
        connection.execute("DELETE FROM balance")
    connection.close()
    tampered = confide("ledger", "verify", "--ledger", url)
    assert tampered.returncode == 4 and "balances" in tampered.stderr
