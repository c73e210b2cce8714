"""A database that an older version made: refused, backed up, brought up and down with everything in it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from confide.errors import InputError, RunError
from confide.ledger import Ledger, _migrate
from confide.ledger import _schema as schema
from confide.ledger._store import Store, parse_url

from .conftest import take

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "schema_1.json").read_text())
EXPECTED = FIXTURE["expected"]
HASH = "cd" * 32


def make_old(url: str | Path, key: Path) -> None:
    """Make the database of version 1, on either store."""
    store = Store(parse_url(url))
    with store.write() as connection:
        _migrate._run_alembic(connection, 0, 1)
        connection.execute(sa.text("DROP TABLE alembic_version"))  # version 1 had none
        found = sa.MetaData()
        found.reflect(connection)
        for name in ("meta", "token", "balance", "codes", "reservation", "spend", "membership", "journal"):
            columns, rows = FIXTURE["tables"][name]["columns"], FIXTURE["tables"][name]["rows"]
            # The migration that stands for version 1 must make exactly the tables that version 1 made.
            assert [column.name for column in found.tables[name].columns] == columns
            plain = [[base64.b64decode(v["b64"]) if isinstance(v, dict) else v for v in row] for row in rows]
            connection.execute(sa.insert(found.tables[name]), [dict(zip(columns, r, strict=True)) for r in plain])
    store.engine.dispose()
    key.write_text(json.dumps(FIXTURE["key"]))
    key.chmod(0o600)


@pytest.fixture
def old(url: str, key: Path) -> str:
    make_old(url, key)
    return url


def check(ledger: Ledger) -> None:
    people = EXPECTED["people"]
    assert ledger.used(people).tolist() == EXPECTED["used"]
    assert [ledger.remaining(p).epsilon for p in people[::10]] == pytest.approx(EXPECTED["epsilon"], rel=1e-3)
    assert {p: [s.release for s in ledger.history(p)] for p in people} == EXPECTED["history"]
    shown = [record.to_dict() for record in ledger.reservations()]
    assert [{name: row[name] for name in EXPECTED["records"][0]} for row in shown] == EXPECTED["records"]
    assert ledger.find(EXPECTED["receipt"]).id == EXPECTED["receipt"]["reservation"]
    ledger.verify()


def test_an_old_ledger_is_refused_with_the_remedy(old, key):
    with pytest.raises(InputError, match="schema version 1") as refused:
        Ledger.open(old, key=key)
    assert "confide ledger migrate" in str(refused.value) and refused.value.exit_code == 2


def test_up_and_down_keep_everything(old, key, tmp_path):
    done = Ledger.migrate(old, key=key, backup=tmp_path / "before")
    assert (done.before, done.after) == (1, schema.SCHEMA_VERSION) and Path(done.backup).stat().st_size > 0
    assert Path(done.backup).stat().st_mode & 0o777 == 0o600
    assert Ledger.migrate(old, key=key).backup is None  # nothing to do, nothing copied
    with Ledger.open(old, key=key) as ledger:
        check(ledger)
        assert ledger.commit(EXPECTED["going"], release_hash=HASH).release_hash == HASH
        assert ledger.resume(EXPECTED["open"], EXPECTED["people"][:60:2]).admitted.any()
        assert take(ledger, ["one", "another"], 0.1, recipient="x", purpose="p").admitted.all()
        ledger.create_data_set("d", ["one", "another"])
        ledger.verify()
        used = ledger.used(EXPECTED["people"])
    assert Ledger.migrate(old, key=key, to=1, backup=tmp_path / "down").after == 1
    with pytest.raises(InputError, match="schema version 1"):
        Ledger.open(old, key=key)
    Ledger.migrate(old, key=key, backup=tmp_path / "again")
    with Ledger.open(old, key=key) as ledger:
        assert (ledger.used(EXPECTED["people"]) == used).all()
        # What version 1 cannot hold, and no promise rests on, is gone: names of data sets and the register of flows.
        assert ledger.flows() == () and ledger.data_sets() == []
        take(ledger, ["one"], 0.1, recipient="x")
        ledger.verify()
    # A database that was migrated is laid out like one that was made new.
    assert layout(old) == layout_of_new(tmp_path)


def layout(url: str) -> dict[str, set[str]]:
    store = Store(parse_url(url))
    with store.read() as connection:
        found = sa.inspect(connection)
        out = {name: {c["name"] for c in found.get_columns(name)} for name in found.get_table_names()}
    store.engine.dispose()
    return out


def layout_of_new(folder: Path) -> dict[str, set[str]]:
    Ledger.create(folder / "new.sqlite", cap_epsilon=1, cap_delta=1e-6).close()
    return layout(f"sqlite:///{folder}/new.sqlite")


def test_a_backup_can_take_the_place_of_the_database(tmp_path, key):
    file = tmp_path / "ledger.sqlite"
    make_old(file, key)
    done = Ledger.migrate(file, key=key)
    assert Path(done.backup).name.startswith("ledger.sqlite.schema-1-")
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(done.backup, file)
    with pytest.raises(InputError, match="schema version 1"):
        Ledger.open(file, key=key)
    # The note of the journal's head is newer than the backup: verify says so until it is removed on purpose.
    Path(f"{key}.head").unlink()
    Ledger.migrate(file, key=key, backup=tmp_path / "second")
    with Ledger.open(file, key=key) as ledger:
        check(ledger)


def test_a_migration_that_fails_changes_nothing(tmp_path, key, monkeypatch):
    file = tmp_path / "l.sqlite"
    make_old(file, key)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_migrate._journal, "append", die)  # the last thing before the end of the transaction
        with pytest.raises(KeyboardInterrupt):
            Ledger.migrate(file, key=key, backup=tmp_path / "b")
    with pytest.raises(InputError, match="schema version 1"):
        Ledger.open(file, key=key)
    with pytest.raises(RunError, match="unharmed"):
        Ledger.migrate(file, key=key, backup=tmp_path / "no folder" / "b")
    with pytest.raises(InputError, match="already"):
        Ledger.migrate(file, key=key, backup=tmp_path / "b")
    Ledger.migrate(file, key=key)
    with Ledger.open(file, key=key) as ledger:
        check(ledger)


def test_a_ledger_of_the_future_is_refused(tmp_path):
    file = tmp_path / "l.sqlite"
    ledger = Ledger.create(file, cap_epsilon=8, cap_delta=1e-6)
    with ledger._store.write() as connection:
        connection.execute(sa.text("UPDATE meta SET value = '99' WHERE name = 'schema'"))
    with pytest.raises(InputError, match="migrated"):  # a run that was open while somebody migrated
        take(ledger, ["a"])
    with pytest.raises(InputError, match="version 99") as refused:
        Ledger.open(file)
    assert "newer confide" in str(refused.value)
    with pytest.raises(InputError, match="version 99"):
        Ledger.migrate(file)
    for to in (0, 3, True, "2"):
        with pytest.raises(InputError, match="schema version"):
            Ledger.migrate(file, to=to)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no ledger here"):
        Ledger.migrate(tmp_path / "none.sqlite")


def test_the_command(tmp_path, key):
    file = tmp_path / "l.sqlite"
    make_old(file, key)
    code = "import sys; from confide.cli import main; sys.exit(main())"
    command = [
        sys.executable,
        "-c",
        code,
        "ledger",
        "migrate",
        "--ledger",
        f"sqlite:///{file}",
        "--key",
        str(key),
        "--json",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["after"] == schema.SCHEMA_VERSION
