"""What a ledger promises, through its public interface."""

from __future__ import annotations

import json
import logging
import os
import sqlite3

import numpy as np
import pytest

from confide.accounting import Gaussian, SampledGaussian, calibrate_rates, compose
from confide.errors import BudgetError, InputError, RunError, VerificationError
from confide.ledger import Ledger, Receipt

from .conftest import gaussian, take

PEOPLE = [f"patient {i}" for i in range(20)]
HASH = "0123456789abcdef" * 4


def test_a_release_is_charged_before_it_runs_and_stays_charged(new):
    ledger = new()
    kept = take(ledger, PEOPLE, 0.5)
    before = ledger.remaining(PEOPLE[0])
    assert kept.admitted.all() and 0 < before.used < 1 and before.releases == 1
    ledger.start(kept.id)
    receipt = ledger.commit(kept.id, release_hash=HASH)
    assert ledger.remaining(PEOPLE[0]) == before
    assert ledger.find(receipt).release_hash == HASH
    assert ledger.find(json.loads(json.dumps(receipt.to_dict()))).id == kept.id
    assert ledger.receipt(kept.id) == receipt
    assert [s.state for s in ledger.history(PEOPLE[3])] == ["committed"]
    assert ledger.remaining("nobody we know").used == 0.0 and ledger.history("nobody we know") == ()
    ledger.verify()


def test_balances_add_up_over_data_sets_that_share_people(new):
    ledger = new()
    take(ledger, PEOPLE[:10], 0.3, data_set="x-rays")
    take(ledger, PEOPLE[5:], 0.4, data_set="laboratory")
    both, one = ledger.remaining(PEOPLE[7]), ledger.remaining(PEOPLE[0])
    assert both.epsilon == pytest.approx(compose([gaussian(0.3), gaussian(0.4)]).epsilon(1e-6))
    assert one.epsilon == pytest.approx(gaussian(0.3).epsilon(1e-6))
    assert [s.data_set for s in ledger.history(PEOPLE[7])] == ["x-rays", "laboratory"]
    used = ledger.used(PEOPLE)
    assert used[7] == pytest.approx(used[0] + used[19], rel=1e-6)


def test_classes_are_charged_by_class(new):
    ledger = new()
    classes = [SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=k).guarantee(steps=200) for k in (1, 2, 4)]
    class_of = np.arange(20) % 3
    ledger.reserve(release="r", contributors=PEOPLE, class_of=class_of, classes=classes, data_set="d")
    used = ledger.used(PEOPLE)
    assert used[0] < used[1] < used[2] and used[0] == used[3]
    assert ledger.history(PEOPLE[2])[0].guarantee.to_dict() == classes[2].to_dict()


def test_people_without_balance_are_dropped_or_the_release_is_refused(new):
    ledger = new()
    rounds = 0
    while True:
        try:
            take(ledger, PEOPLE[:5], 0.5)
            rounds += 1
        except BudgetError:
            break
    full = ledger.used(PEOPLE[:5])
    with pytest.raises(BudgetError, match="nothing was spent") as refused:
        take(ledger, PEOPLE, 0.5, exhausted="refuse")
    assert refused.value.exit_code == 3 and "patient" not in str(refused.value)
    assert ledger.used(PEOPLE)[10] == 0 and len(ledger.reservations()) == rounds
    kept = take(ledger, PEOPLE, 0.5)
    assert kept.admitted.tolist() == [False] * 5 + [True] * 15 and kept.dropped == 5
    assert (ledger.used(PEOPLE[:5]) == full).all()
    assert len(ledger.history(PEOPLE[0])) == rounds and len(ledger.history(PEOPLE[9])) == 1
    assert ledger.remaining(PEOPLE[0]).epsilon <= 8.0
    ledger.verify()


def test_what_is_admitted_stays_below_the_cap_and_uses_most_of_it(new):
    ledger = new()
    plan = SampledGaussian(noise_multiplier=1.0, rate=0.01).guarantee(steps=500)
    price = {"contributors": ["a"], "class_of": np.zeros(1, int), "classes": [plan]}
    count = 0
    while ledger.what_if(**price).admitted.all():
        ledger.reserve(release="r", data_set="d", **price)
        count += 1
    with pytest.raises(BudgetError):
        ledger.reserve(release="r", data_set="d", **price)
    epsilon = plan.__class__(tuple((m, n * count) for m, n in plan.parts)).epsilon(1e-6)
    assert 8.0 / 1.25 <= epsilon <= 8.0


def test_one_release_may_use_the_whole_balance_and_closes_it(new):
    ledger = new(epsilon=4.0)
    whole = Gaussian(noise_multiplier=1.0).guarantee()
    size = next(s for s in np.arange(1.0, 3, 0.01) if Gaussian(noise_multiplier=s).guarantee().epsilon(1e-6) <= 4.0)
    whole = Gaussian(noise_multiplier=float(size)).guarantee()
    kept = ledger.reserve(release="r", contributors=["a"], class_of=np.zeros(1, int), classes=[whole], data_set="d")
    assert kept.admitted.all() and ledger.remaining("a").used == 1.0
    with pytest.raises(BudgetError):
        take(ledger, ["a"], 1e-3)
    take(ledger, ["b"], 1e-3)
    with pytest.raises(BudgetError):  # with a history, even a short one, the whole cap is no longer there
        ledger.reserve(release="r", contributors=["b"], class_of=np.zeros(1, int), classes=[whole], data_set="d")
    ledger.verify()
    assert ledger.abort(kept.id) and ledger.remaining("a").used == 0.0


@pytest.mark.parametrize("entries", [1, 13])
def test_a_plan_at_the_cap_is_admitted_once_however_many_entries(new, entries):
    ledger = new(epsilon=4.0)
    rate = float(calibrate_rates([entries], 4.0, delta=1e-6, noise_multiplier=1.0, steps=200)[0])
    plan = SampledGaussian(noise_multiplier=1.0, rate=rate, entries=entries).guarantee(steps=200)
    price = {"class_of": np.zeros(1, int), "classes": [plan], "data_set": "d", "contributors": ["a"]}
    assert ledger.reserve(release="r", **price).admitted.all()
    with pytest.raises(BudgetError):
        ledger.reserve(release="again", **price)


def test_abort_refunds_only_before_the_first_private_batch(new):
    ledger = new()
    one, two = take(ledger, PEOPLE, 0.5), take(ledger, PEOPLE, 0.25)
    assert ledger.abort(one.id) is True
    assert ledger.remaining(PEOPLE[0]).epsilon == pytest.approx(gaussian(0.25).epsilon(1e-6))
    ledger.start(two.id)
    ledger.start(two.id)
    used = ledger.used(PEOPLE)
    assert ledger.abort(two.id) is False
    assert (ledger.used(PEOPLE) == used).all()
    assert [r.state for r in ledger.reservations()] == ["aborted", "abandoned"]
    assert [s.counts for s in ledger.history(PEOPLE[0])] == [False, True]
    ledger.verify()


def test_moves_that_make_no_sense_are_refused_and_journalled(new):
    ledger = new()
    done, gone = take(ledger, PEOPLE), take(ledger, PEOPLE)
    ledger.commit(done.id, release_hash=HASH)
    ledger.abort(gone.id)
    for move in (
        lambda: ledger.commit(done.id, release_hash=HASH),
        lambda: ledger.abort(done.id),
        lambda: ledger.start(done.id),
        lambda: ledger.commit(gone.id, release_hash=HASH),
        lambda: ledger.abort(gone.id),
        lambda: ledger.resume(gone.id, PEOPLE),
        lambda: ledger.receipt(gone.id),
        lambda: ledger.reservation("'; DROP TABLE reservation; --"),
        lambda: ledger.commit(done.id, release_hash="not a hash"),
    ):
        with pytest.raises(InputError):
            move()
    used = ledger.used(PEOPLE)
    assert (used == used[0]).all() and ledger.status().journal == 1 + 1 + 2 + 2 + 5
    ledger.verify()


def test_a_killed_run_finds_its_reservation_again(new, url, key):
    ledger = new()
    take(ledger, PEOPLE[:3], 1.2)
    kept = take(ledger, PEOPLE, 1.0)
    assert kept.dropped == 3
    ledger.start(kept.id)
    ledger.close()
    again = Ledger.open(url, key=key)
    back = again.resume(kept.id, PEOPLE[::-1])
    assert back.state == "started" and (back.admitted[::-1] == kept.admitted).all()
    assert len(again.reservations()) == 2
    again.commit(kept.id, release_hash=HASH)
    again.verify()


def test_a_retry_with_the_same_key_is_not_charged_twice(new):
    ledger = new()
    one = take(ledger, PEOPLE, idempotency_key="job 7")
    two = take(ledger, PEOPLE, idempotency_key="job 7")
    assert one.id == two.id and (one.admitted == two.admitted).all()
    with pytest.raises(InputError, match="idempotency"):
        take(ledger, PEOPLE[:3], idempotency_key="job 7")
    with pytest.raises(InputError, match="idempotency"):
        take(ledger, PEOPLE, 0.1, idempotency_key="job 7")
    assert len(ledger.history(PEOPLE[0])) == 1


def test_what_if_prices_without_writing(new):
    ledger = new()
    take(ledger, PEOPLE[:5], 1.3)
    before = ledger.status()
    price = {"contributors": [*PEOPLE, "new one"], "class_of": np.zeros(21, int), "classes": [gaussian(1.0)]}
    plan = ledger.what_if(**price)
    assert plan.dropped == 5 and plan.admitted.tolist() == [False] * 5 + [True] * 16
    assert plan.classes[0]["contributors"] == 21 and 0 < plan.classes[0]["used"] < 1
    assert (plan.used_after[5:] > plan.used_before[5:]).all() and plan.used_before[20] == 0
    assert ledger.status() == before
    real = ledger.reserve(release="r", data_set="d", **price)
    assert (real.admitted == plan.admitted).all()
    assert np.allclose(ledger.used(price["contributors"]), plan.used_after)
    json.dumps(plan.to_dict())


def test_a_cohort_is_hashed_once(new):
    ledger = new()
    cohort = ledger.register(PEOPLE)
    kept = take(ledger, cohort, 0.5)  # type: ignore[arg-type]
    assert kept.admitted.all() and ledger.remaining(PEOPLE[4]).releases == 1
    assert ledger.status().contributors == 20
    assert sum(ledger.status().used_counts) == 20
    json.dumps(ledger.status().to_dict())


def test_ids_never_reach_database_logs_or_errors(new, url, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    secret = "SECRET-MRN-4711"
    ledger = new()
    kept = take(ledger, [secret, "other"])
    for bad in (lambda: take(ledger, [secret, secret]), lambda: take(ledger, [secret, ""])):
        with pytest.raises(InputError) as caught:
            bad()
        assert secret not in str(caught.value) and secret not in repr(caught.value)
    ledger.history(secret), ledger.remaining(secret), ledger.status(), ledger.resume(kept.id, [secret, "other"])
    ledger.close()
    assert secret not in caplog.text and secret not in repr(kept) and secret not in repr(ledger.register([secret]))
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes()


def test_identifiers_are_values_never_sql(new):
    ledger = new()
    nasty = ["x'; DROP TABLE balance; --", '"; DELETE FROM token; --', "日本語", "a\x00b"]
    take(ledger, nasty, release="'; DROP TABLE reservation; --", data_set="'); DELETE FROM journal; --")
    assert ledger.history(nasty[0])[0].release.startswith("'; DROP")
    assert ledger.status().contributors == 4
    ledger.verify()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"contributors": []}, "at least one"),
        ({"contributors": ["a", "a"], "class_of": np.zeros(2, int)}, "twice"),
        ({"contributors": ["a", None], "class_of": np.zeros(2, int)}, "position 1"),
        ({"contributors": ["a", 5], "class_of": np.zeros(2, int)}, "position 1"),
        ({"contributors": "ab", "class_of": np.zeros(2, int)}, "list"),
        ({"contributors": ["\ud800"]}, "Unicode"),
        ({"class_of": np.array([1])}, "class that is not there"),
        ({"class_of": np.array([-1])}, "class that is not there"),
        ({"class_of": np.array([0.0])}, "class_of does not fit"),
        ({"class_of": np.array([0, 0])}, "class_of does not fit"),
        ({"classes": []}, "at least one"),
        ({"classes": [Gaussian(noise_multiplier=1.0, relation="replace-one").guarantee()]}, "replace-one"),
        ({"exhausted": "maybe"}, "exhausted"),
        ({"release": ""}, "release"),
        ({"data_set": None}, "data_set"),
    ],
)
def test_bad_input_is_named_and_spends_nothing(new, change, text):
    ledger = new()
    values = {
        "release": "r",
        "contributors": ["a"],
        "class_of": np.zeros(1, int),
        "classes": [gaussian(0.5)],
        "data_set": "d",
    }
    with pytest.raises(InputError, match=text):
        ledger.reserve(**{**values, **change})
    assert ledger.status().contributors == 0 and ledger.reservations() == ()


def test_both_relations_with_the_same_pairs_share_a_ledger(new):
    ledger = new()
    zero = Gaussian(noise_multiplier=2.0, relation="zero-out").guarantee()
    take(ledger, ["a"], 0.5)
    ledger.reserve(release="r", contributors=["a"], class_of=np.zeros(1, int), classes=[zero], data_set="d")
    assert ledger.remaining("a").epsilon == pytest.approx(compose([gaussian(0.5), gaussian(0.5)]).epsilon(1e-6))


class TestOpening:
    def test_no_ledger_here(self, tmp_path):
        with pytest.raises(InputError, match="confide ledger init"):
            Ledger.open(tmp_path / "none.sqlite")
        assert not (tmp_path / "none.sqlite").exists()

    def test_another_database(self, tmp_path):
        with sqlite3.connect(tmp_path / "other.sqlite") as other:
            other.execute("CREATE TABLE t (x)")
        with pytest.raises(InputError, match="holds no ledger"):
            Ledger.open(tmp_path / "other.sqlite")

    def test_not_twice(self, new, url, key, tmp_path):
        new().close()
        with pytest.raises(InputError, match="already"):
            Ledger.create(url, cap_epsilon=1, cap_delta=1e-6, key=key)
        with pytest.raises(InputError, match="already"):
            Ledger.create(url, cap_epsilon=1, cap_delta=1e-6, key=tmp_path / "k2")
        assert not (tmp_path / "k2").exists()
        assert Ledger.open(url, key=key).rule.epsilon == 8.0

    @pytest.mark.parametrize("content", ["{}", '{"keys": ["ab"]}', "\x00\x01", '{"keys": []}', '{"keys": "zz"}'])
    def test_not_a_key_file(self, new, url, key, tmp_path, content):
        new().close()
        (tmp_path / "k").write_text(content)
        os.chmod(tmp_path / "k", 0o600)
        with pytest.raises(InputError, match="not a key file"):
            Ledger.open(url, key=tmp_path / "k")

    def test_the_wrong_key_file(self, new, url, key, tmp_path):
        new().close()
        Ledger.create(tmp_path / "second.sqlite", cap_epsilon=1, cap_delta=1e-6)
        with pytest.raises(InputError, match="another ledger"):
            Ledger.open(url, key=tmp_path / "second.sqlite.key")
        with pytest.raises(InputError, match="cannot be read"):
            Ledger.open(url, key=tmp_path / "missing")
        os.chmod(key, 0o644)
        with pytest.raises(InputError, match="chmod 600"):
            Ledger.open(url, key=key)

    def test_a_damaged_database(self, tmp_path):
        file = tmp_path / "l.sqlite"
        ledger = Ledger.create(file, cap_epsilon=8, cap_delta=1e-6)
        take(ledger, PEOPLE)
        ledger.close()
        content = bytearray(file.read_bytes())
        content[:100] = b"\xff" * 100
        file.write_bytes(content)
        with pytest.raises(RunError, match="damaged") as caught:
            Ledger.open(file)
        assert caught.value.exit_code == 1

    @pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "://"])
    def test_unusable_urls(self, url):
        with pytest.raises(InputError):
            Ledger.create(url, cap_epsilon=1, cap_delta=1e-6)

    def test_files_are_private(self, tmp_path):
        Ledger.create(tmp_path / "l.sqlite", cap_epsilon=8, cap_delta=1e-6)
        for name in ("l.sqlite", "l.sqlite.key"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600

    def test_an_unreachable_server(self, key):
        with pytest.raises(RunError, match="cannot be reached"):
            Ledger.create("postgresql://u:hidden@127.0.0.1:1/x", cap_epsilon=8, cap_delta=1e-6, key=key)
        assert not key.exists()

    @pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
    def test_a_senseless_cap(self, tmp_path, cap):
        with pytest.raises(InputError):
            Ledger.create(tmp_path / "l.sqlite", cap_epsilon=cap, cap_delta=1e-6)
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_changes_nothing(tmp_path):
    ledger = Ledger.create(tmp_path / "l.sqlite", cap_epsilon=8, cap_delta=1e-6)
    take(ledger, PEOPLE)
    import sqlalchemy as sa

    # SQLite's own limit stands in for the disk: the driver reports it with the same error.
    def limit(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    sa.event.listen(ledger._store.engine, "connect", limit)
    with pytest.raises(RunError, match="disk is full") as caught:
        take(ledger, [f"another {i}" for i in range(50_000)])
    assert caught.value.exit_code == 1
    sa.event.remove(ledger._store.engine, "connect", limit)
    assert ledger.status().contributors == 20
    ledger.verify()


def test_a_receipt_that_the_ledger_does_not_hold(new, tmp_path):
    ledger = new()
    kept = take(ledger, PEOPLE)
    good = ledger.commit(kept.id, release_hash=HASH).to_dict()
    for name, value in {
        "ledger": "0" * 32,
        "reservation": "x",
        "seq": 1,
        "hash": "0" * 64,
        "seal": "0" * 64,
        "release_hash": "1" * 64,
    }.items():
        with pytest.raises(VerificationError):
            ledger.find({**good, name: value})
    with pytest.raises(VerificationError):
        ledger.find({"seq": 1})
    assert ledger.find(Receipt.from_dict(good)).id == kept.id
