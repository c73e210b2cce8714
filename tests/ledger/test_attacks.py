"""Bad input and attacks beyond those of the other modules: each refused, nothing spent, nothing told."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3

import numpy as np
import pytest

from confide.accounting import Gaussian
from confide.errors import BudgetError, ConfideError, InputError, VerificationError
from confide.ledger import Ledger, NoPrivateAccess, _journal

from .conftest import gaussian, take

PEOPLE = [f"p{i}" for i in range(10)]
HASH = "ab" * 32
NASTY = [
    "'; DROP TABLE journal; --",
    '"); DELETE FROM balance; --',
    "%s %(x)s :x ?",
    "a\x1b[2Jb",
    "日本 🏥",
    "x" * 5000,
]


@pytest.mark.parametrize("text", NASTY)
def test_every_name_is_a_value_never_code(new, text):
    ledger = new()
    ledger.create_data_set(text, [*PEOPLE[1:], text], linkage={"method": text})
    assert len(ledger.extend_data_set(text, [PEOPLE[0], text], entries=[1, 2])) == 11
    ledger.define_level(text, cap_epsilon=4.0, purposes=[text], recipients=[text])
    ledger.set_allowance(text, cap_epsilon=4.0, cap_delta=1e-6)
    ledger.set_consent([text], text)
    kept = take(
        ledger,
        ledger.data_set(text),
        0.1,
        release=text,
        data_set=text,
        recipient=text,
        purpose=text,
        sender=text,
        attributes=[text],
        idempotency_key=text,
        joint=text,
    )
    ledger.begin_round(kept.id, 1, mask=text)
    assert ledger.time_out(kept.id, 1)
    ledger.commit(kept.id, release_hash=HASH)
    derived = NoPrivateAccess((HASH,), "cd" * 32, 1)
    ledger.derive(release=text, parents=[HASH], release_hash="cd" * 32, checked=derived, recipient=text)
    assert ledger.flows()[0].recipient == text and ledger.remaining(text).level == text
    assert ledger.erase([text], override=text) == 1
    assert ledger.status().contributors == 11
    for probe in (ledger.reservation, ledger.receipt, ledger.start, ledger.abort, ledger.free):
        with pytest.raises(InputError):
            probe(text)
    with pytest.raises(InputError):
        ledger.derive(release="x", parents=[text], release_hash=HASH, checked=NoPrivateAccess((text,), HASH, 1))
    ledger.verify()


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_negative_and_absurd_spends(new, noise):
    ledger = new()

    def spend():
        price = Gaussian(noise_multiplier=noise).guarantee(steps=10**6)
        ledger.reserve(release="r", contributors=PEOPLE, class_of=np.zeros(10, int), classes=[price], data_set="d")

    with pytest.raises((ConfideError, ValueError)):
        spend()
    assert ledger.reservations() == () and not ledger.used(PEOPLE).any()


@pytest.mark.parametrize("steps", [0, -5, 10**400])
def test_absurd_numbers_of_steps(steps):
    with pytest.raises((InputError, OverflowError)):
        Gaussian(noise_multiplier=1.0).guarantee(steps=steps).epsilon(1e-6)


def test_a_counter_never_wraps_around(new):
    """A huge charge after a small one must not overflow to a small sum."""
    ledger = new()
    take(ledger, PEOPLE, 0.1)
    used = ledger.used(PEOPLE)
    for strength in (10.0, 1e3, 1e6):
        with pytest.raises(BudgetError):
            take(ledger, PEOPLE, strength)
    assert (ledger.used(PEOPLE) == used).all()
    ledger.verify()


def test_a_receipt_of_another_reservation_buys_nothing(new):
    ledger = new()
    one, two = take(ledger, PEOPLE, 0.1), take(ledger, PEOPLE, 0.1)
    receipt = ledger.commit(one.id, release_hash=HASH)
    with pytest.raises(InputError):
        ledger.commit(one.id, release_hash="cd" * 32)  # replayed for another output
    with pytest.raises(VerificationError):
        ledger.find({**receipt.to_dict(), "reservation": two.id})
    ledger.abort(two.id)
    with pytest.raises(InputError):
        ledger.commit(two.id, release_hash=HASH)
    with ledger._store.read() as connection:
        refused = [e.body for e in _journal.replay(connection, ledger._keys) if e.action == "refused"]
    assert [(r["wanted"], r["state"]) for r in refused] == [("commit", "committed"), ("commit", "aborted")]
    ledger.verify()


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_a_truncated_journal(tmp_path, keep):
    file = tmp_path / "l.sqlite"
    with Ledger.create(file, cap_epsilon=8, cap_delta=1e-6) as ledger:
        for _ in range(3):
            ledger.commit(take(ledger, PEOPLE, 0.1).id, release_hash=HASH)
        with sqlite3.connect(file) as raw:
            raw.execute("DELETE FROM journal WHERE seq > ?", (keep,))
        raw.close()
        with pytest.raises(VerificationError):
            ledger.verify()
        # Cutting what follows from the tables as well does not help: the head was noted elsewhere.
        (tmp_path / "l.sqlite.key.head").unlink()
        with pytest.raises(VerificationError):
            ledger.verify()


def test_no_token_reaches_a_log_or_an_error(new, caplog, capsys):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.DEBUG)
    try:
        ledger = new()
        ledger.create_data_set("d", PEOPLE)
        kept = take(ledger, PEOPLE, 0.1)
        ledger.set_consent(PEOPLE[:2], "withdrawn")
        ledger.erase(PEOPLE[:1])
        pseudonyms = ledger.export_balances()["pseudonym"]
        told = []
        for bad in (
            lambda: take(ledger, [PEOPLE[1]] * 2, 0.1),
            lambda: take(ledger, PEOPLE[1:2], 0.1),
            lambda: ledger.commit(kept.id, release_hash="x"),
        ):
            with pytest.raises(ConfideError) as caught:
                bad()
            told.append(str(caught.value) + repr(caught.value))
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    said = caplog.text + "".join(told) + "".join(capsys.readouterr())
    for pseudonym in pseudonyms:
        raw = bytes.fromhex(pseudonym)
        assert pseudonym not in said and repr(raw)[2:-1] not in said
    assert not any(f"'{person}'" in said for person in PEOPLE)


def test_a_clock_in_the_future_gives_no_lifetime_balance(new, monkeypatch):
    ledger = new(epsilon=2.0)
    take(ledger, PEOPLE, 0.2)
    monkeypatch.setattr(_journal, "now", lambda: "9999-12-31T23:59:59+00:00")
    admitted = 0
    with contextlib.suppress(BudgetError):
        while admitted < 100:
            take(ledger, PEOPLE, 0.2)
            admitted += 1
    monkeypatch.setattr(_journal, "now", lambda: "1970-01-01T00:00:00+00:00")
    with pytest.raises(BudgetError):
        take(ledger, PEOPLE, 0.2)
    assert admitted < 8 and ledger.remaining(PEOPLE[0]).epsilon <= 2.0
    ledger.verify()
    assert gaussian(0.2).epsilon(1e-6) > 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE data_set_member SET digest = (SELECT digest FROM membership LIMIT 1)",
        "UPDATE data_set SET contributors = 10",
        "DELETE FROM journal WHERE action = 'data_set_grow'",
        "UPDATE journal SET body = replace(body, '\"added\":2', '\"added\":3') WHERE action = 'data_set_grow'",
    ],
)
def test_a_data_set_put_back_to_an_earlier_version_is_found(tmp_path, statement):
    file = tmp_path / "l.sqlite"
    with Ledger.create(file, cap_epsilon=8, cap_delta=1e-6) as ledger:
        ledger.create_data_set("d", PEOPLE, entries=[3] * len(PEOPLE))
        take(ledger, PEOPLE, 0.1)  # keeps the packed list of the first version, or one like it, in use
        ledger.extend_data_set("d", ["new", "newer"])
        ledger.verify()
        with sqlite3.connect(file) as raw:
            assert raw.execute(statement).rowcount > 0
        raw.close()
        with pytest.raises(VerificationError):
            ledger.verify()
