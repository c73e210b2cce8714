"""Whatever is changed behind the ledger's back, `verify` says so."""

from __future__ import annotations

import json
import shutil
import sqlite3

import numpy as np
import pytest

from confide.errors import ConfideError, VerificationError
from confide.ledger import Ledger

from .conftest import gaussian, take

PEOPLE = [f"p{i}" for i in range(30)]
HASH = "ab" * 32


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "ledger.sqlite"
    with Ledger.create(file, cap_epsilon=8, cap_delta=1e-6) as ledger:
        first = take(ledger, PEOPLE[:20], 0.5)
        ledger.commit(first.id, release_hash=HASH)
        second = ledger.reserve(
            release="two",
            contributors=PEOPLE,
            class_of=np.arange(30) % 2,
            classes=[gaussian(0.2), gaussian(0.3)],
            data_set="d",
        )
        ledger.start(second.id)
        ledger.abort(take(ledger, PEOPLE[:2], 0.1).id)
        ledger.verify()
    return file


def change(file, *statements):
    with sqlite3.connect(file) as connection:
        for statement in statements:
            connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(statement)
    connection.close()


def zeroed(file):
    with sqlite3.connect(file) as connection:
        raw = bytearray(connection.execute("SELECT counters FROM balance").fetchone()[0])
    raw[:4] = bytes(4)
    raw[len(raw) // 3 : len(raw) // 3 + 4] = bytes(4)
    change(file, ("UPDATE balance SET counters = ?", (bytes(raw),)))


def swapped(file):
    """Give one person another's number, and with it another's balance."""
    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT bucket, numbers FROM token ORDER BY bucket LIMIT 2").fetchall()
    (a, x), (b, y) = rows
    change(
        file,
        ("UPDATE token SET numbers = ? WHERE bucket = ?", (y, a)),
        ("UPDATE token SET numbers = ? WHERE bucket = ?", (x, b)),
    )


def recoded(file):
    import hashlib
    import zlib

    with sqlite3.connect(file) as connection:
        digest, packed = connection.execute("SELECT digest, packed FROM codes LIMIT 1").fetchone()
    raw = bytearray(zlib.decompress(packed))
    raw[0] = 0
    new = hashlib.sha256(b"\1" + bytes(raw)).hexdigest()[:40]
    change(
        file,
        ("UPDATE codes SET digest = ?, packed = ? WHERE digest = ?", (new, zlib.compress(bytes(raw)), digest)),
        ("UPDATE membership SET digest = ? WHERE digest = ?", (new, digest)),
    )


CHANGES = {
    "balance zeroed": zeroed,
    "balance removed": lambda f: change(f, "DELETE FROM balance"),
    "balance of strangers": lambda f: change(f, "INSERT INTO balance SELECT 9, counters FROM balance"),
    "balance cut": lambda f: change(f, "UPDATE balance SET counters = x'010203'"),
    "numbers swapped": swapped,
    "contributor removed": lambda f: change(f, "DELETE FROM token WHERE bucket = (SELECT min(bucket) FROM token)"),
    "contributor copied": lambda f: change(
        f, "INSERT INTO token SELECT bucket + 1, tokens, numbers FROM token LIMIT 1"
    ),
    "member removed": recoded,
    "codes damaged": lambda f: change(f, "UPDATE codes SET packed = x'00'"),
    "membership removed": lambda f: change(f, "DELETE FROM membership WHERE reservation = 1"),
    "membership without reservation": lambda f: change(
        f, "INSERT INTO membership SELECT 99, 0, digest FROM codes LIMIT 1"
    ),
    "price lowered": lambda f: change(f, "UPDATE spend SET charge = '[1,1,0]'"),
    "guarantee changed": lambda f: change(f, "UPDATE spend SET guarantee = replace(guarantee, '2.0', '9.0')"),
    "state changed": lambda f: change(f, "UPDATE reservation SET state = 'aborted' WHERE seq = 2"),
    "release hash changed": lambda f: change(f, "UPDATE reservation SET release_hash = 'x' WHERE seq = 1"),
    "reservation removed": lambda f: change(
        f,
        "DELETE FROM spend WHERE reservation = 2",
        "DELETE FROM membership WHERE reservation = 2",
        "DELETE FROM reservation WHERE seq = 2",
    ),
    "cap raised": lambda f: change(
        f, "UPDATE meta SET value = replace(value, '\"epsilon\":8', '\"epsilon\":80') WHERE name = 'rule'"
    ),
    "journal entry changed": lambda f: change(f, "UPDATE journal SET body = replace(body, 'two', 'six') WHERE seq = 6"),
    "journal entry removed": lambda f: change(f, "DELETE FROM journal WHERE seq = 4"),
    "journal entry re-dated": lambda f: change(f, "UPDATE journal SET at = '1999-01-01T00:00:00+00:00' WHERE seq = 3"),
    "journal cut": lambda f: change(f, "DELETE FROM journal WHERE seq > 7"),
    "journal emptied": lambda f: change(f, "DELETE FROM journal"),
    "number of contributors": lambda f: change(f, "UPDATE meta SET value = '31' WHERE name = 'contributors'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_found(file, name):
    CHANGES[name](file)
    with pytest.raises(VerificationError) as caught, Ledger.open(file) as ledger:
        ledger.verify()
    assert caught.value.exit_code == 4


def test_a_journal_forged_without_the_key_is_found(file):
    """Recomputing the hashes after a change is easy; the seals need the key file."""
    from confide.ledger import _journal

    with sqlite3.connect(file) as connection:
        connection.row_factory = sqlite3.Row
        previous = _journal.START
        for row in connection.execute("SELECT * FROM journal ORDER BY seq").fetchall():
            body = row["body"].replace("two", "six")
            digest = _journal._hash(row["seq"], row["at"], row["action"], body, previous)
            connection.execute(
                "UPDATE journal SET body = ?, previous = ?, hash = ? WHERE seq = ?",
                (body, previous, digest, row["seq"]),
            )
            previous = digest
        connection.execute("UPDATE reservation SET release = 'six' WHERE release = 'two'")
    connection.close()
    (file.parent / "ledger.sqlite.key.head").unlink()
    with pytest.raises(VerificationError, match="key"), Ledger.open(file) as ledger:
        ledger.verify()


def test_a_database_put_back_to_an_old_state_is_found(file, tmp_path):
    shutil.copy(file, tmp_path / "old")
    with Ledger.open(file) as ledger:
        take(ledger, PEOPLE, 0.3)
        ledger.verify()
    for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "old", file)
    with pytest.raises(VerificationError, match="newer backup"), Ledger.open(file) as ledger:
        ledger.verify()


def test_a_damaged_head_note_is_found(file):
    (file.parent / "ledger.sqlite.key.head").write_text("{")
    with pytest.raises(VerificationError), Ledger.open(file) as ledger:
        ledger.verify()


def test_a_clock_that_jumps_harms_nothing(file, monkeypatch):
    from confide.ledger import _journal

    with Ledger.open(file) as ledger:
        for at in ("2100-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"):
            monkeypatch.setattr(_journal, "now", lambda at=at: at)
            take(ledger, PEOPLE, 0.1)
        assert [s.created[:4] for s in ledger.history(PEOPLE[0])][-2:] == ["2100", "1970"]
        ledger.verify()


def test_a_page_of_noise_is_an_error_never_a_wrong_answer(file):
    content = bytearray(file.read_bytes())
    content[8192:] = bytes([7]) * (len(content) - 8192)
    file.write_bytes(content)
    with pytest.raises(ConfideError), Ledger.open(file) as ledger:
        ledger.verify()


def test_the_journal_holds_no_key_and_no_id(file):
    with sqlite3.connect(file) as connection:
        text = json.dumps(connection.execute("SELECT body, seal FROM journal").fetchall())
    key = json.loads((file.parent / "ledger.sqlite.key").read_text())["keys"][0]
    assert key not in text and not any(f'"{p}"' in text for p in PEOPLE)
