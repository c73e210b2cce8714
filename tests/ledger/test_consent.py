"""Consent levels, allowances of recipients, erasure: what people agreed to is enforced, and nobody starts afresh."""

from __future__ import annotations

import contextlib
import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.accounting import compose
from confide.errors import BudgetError, InputError, VerificationError
from confide.ledger import Filter, Ledger, _journal

from .conftest import gaussian, take

PEOPLE = [f"p{i}" for i in range(12)]


def until_full(ledger, people, strength=0.2, **more):
    """Reserve until nobody is admitted; return how many releases each person was in."""
    counts = np.zeros(len(people), int)
    for _ in range(500):
        try:
            counts += take(ledger, people, strength, **more).admitted
        except BudgetError:
            return counts
    raise AssertionError("nothing ever filled up")


def admitted_at(epsilon: float, strength: float = 0.2) -> int:
    """How many equal releases a cap admits, by the filter alone."""
    rule, charge = Filter.design(epsilon, 1e-6), Filter.design(epsilon, 1e-6).charge(gaussian(strength))
    return next(n for n in range(1000) if not rule.admits((n + 1) * charge[None, :].astype(np.int64))[0])


def test_a_level_has_a_lifetime_cap_of_its_own(new):
    ledger = new()
    ledger.define_level("basic", cap_epsilon=2.0)
    ledger.set_consent(PEOPLE[:4], "basic")
    counts = until_full(ledger, PEOPLE)
    assert (counts[:4] == admitted_at(2.0)).all() and (counts[4:] == admitted_at(8.0)).all()
    basic, full = ledger.remaining(PEOPLE[0]), ledger.remaining(PEOPLE[5])
    assert basic.level == "basic" and basic.caps[0].epsilon == 2.0 and basic.caps[0].used > 0.8
    assert basic.epsilon <= 2.0 < full.epsilon <= 8.0 and full.level == "default" and full.caps == ()
    ledger.verify()


def test_what_was_spent_before_counts_under_a_new_level(new):
    ledger = new()
    for _ in range(3):
        take(ledger, PEOPLE, 0.2)
    ledger.define_level("basic", cap_epsilon=2.0)
    ledger.set_consent(PEOPLE[:2], "basic")
    counts = until_full(ledger, PEOPLE[:2])
    assert (counts + 3 == admitted_at(2.0)).all()
    # Going to another level and back gives nothing back.
    ledger.set_consent(PEOPLE[:1], "default")
    ledger.set_consent(PEOPLE[:1], "basic")
    with pytest.raises(BudgetError):
        take(ledger, PEOPLE[:1], 0.2)
    ledger.verify()


def test_a_refund_is_a_refund_in_every_account(new):
    ledger = new()
    ledger.define_level("basic", cap_epsilon=2.0)
    ledger.set_allowance("*", cap_epsilon=3.0, cap_delta=1e-6)
    ledger.set_consent(PEOPLE[:2], "basic")
    kept = take(ledger, PEOPLE, 0.2, recipient="x")
    other = take(ledger, PEOPLE, 0.1, recipient="x")
    before = ledger.remaining(PEOPLE[0])
    assert len(before.caps) == 2
    assert ledger.abort(kept.id)
    after = ledger.remaining(PEOPLE[0])
    assert all(b.used > a.used > 0 for b, a in zip(before.caps, after.caps, strict=True))
    assert ledger.abort(other.id)
    assert [cap.used for cap in ledger.remaining(PEOPLE[0]).caps] == [0.0]
    ledger.verify()


def test_the_institutions_policy_for_everybody_who_said_nothing(new):
    ledger = new()
    take(ledger, PEOPLE[:1], 0.2)
    ledger.define_level("default", cap_epsilon=1.5, purposes=["research"])
    ledger.define_level("full", recipients=["registry"])
    ledger.set_consent(PEOPLE[6:], "full")
    kept = take(ledger, PEOPLE, 0.1, purpose="research", recipient="registry")
    assert kept.admitted.all()
    assert take(ledger, PEOPLE, 0.1, purpose="research", recipient="firm").admitted.tolist() == [True] * 6 + [False] * 6
    assert take(ledger, PEOPLE, 0.1, purpose="teaching", recipient="registry").admitted[6:].all()
    with pytest.raises(BudgetError):
        take(ledger, PEOPLE[:6], 0.1, purpose="teaching", recipient="registry")
    counts = until_full(ledger, PEOPLE[:2], 0.2, purpose="research")
    assert counts[1] == counts[0] + 1  # the first had spent one before the policy was declared
    assert [level["name"] for level in ledger.policy()["levels"]] == ["default", "full"]
    ledger.verify()


def test_withdrawn_people_are_dropped_and_keep_their_past(new):
    ledger = new()
    take(ledger, PEOPLE, 0.4)
    ledger.withdraw(PEOPLE[:3])
    kept = take(ledger, PEOPLE, 0.4)
    assert kept.admitted.tolist() == [False] * 3 + [True] * 9
    assert ledger.remaining(PEOPLE[0]).releases == 1 and ledger.consent(PEOPLE[0]) == "withdrawn"
    ledger.set_consent(PEOPLE[:1], "default")
    assert take(ledger, PEOPLE[:1], 0.4).admitted.all()
    ledger.verify()


def test_allowances_renew_and_the_lifetime_cap_holds_over_all_recipients(new, monkeypatch):
    ledger = new()
    ledger.set_allowance("university", cap_epsilon=2.0, cap_delta=1e-6, period="year")
    ledger.set_allowance("*", cap_epsilon=1.0, cap_delta=1e-6, period="once")
    with pytest.raises(BudgetError) as refused:
        take(ledger, PEOPLE, 3.0, recipient="university")
    assert refused.value.exit_code == 3
    per_year = admitted_at(2.0)
    total = np.zeros(len(PEOPLE), int)
    years = []
    for year in range(2027, 2090):
        monkeypatch.setattr(_journal, "now", lambda year=year: f"{year}-03-01T00:00:00+00:00")
        years.append(int(until_full(ledger, PEOPLE, recipient="university")[0]))
        total += years[-1]
        if years[-1] == 0:
            break
    assert years[0] == per_year and years[-1] == 0 and sum(years) == total[0] == admitted_at(8.0)
    left = ledger.remaining(PEOPLE[0])
    assert left.epsilon <= 8.0 and len(left.caps) >= 3 and all(cap.used <= 1 for cap in left.caps)
    assert left.epsilon == pytest.approx(compose([gaussian(0.2)] * int(total[0])).epsilon(1e-6), rel=1e-3)
    ledger.verify()


def test_a_clock_that_jumps_renews_nothing_twice(new, monkeypatch):
    ledger = new()
    ledger.set_allowance("*", cap_epsilon=2.0, cap_delta=1e-6, period="month")

    def at(time: str) -> int:
        monkeypatch.setattr(_journal, "now", lambda: time)
        return int(until_full(ledger, PEOPLE[:1], 0.2, recipient="x")[0])

    assert at("2027-01-10T00:00:00+00:00") == admitted_at(2.0)
    assert at("2026-12-10T00:00:00+00:00") == 0  # set back: the period does not go back
    assert at("2027-02-10T00:00:00+00:00") > 0
    assert at("2027-01-10T00:00:00+00:00") == 0
    assert ledger.remaining(PEOPLE[0]).epsilon <= 8.0
    ledger.verify()


def test_undeclared_recipients_are_refused_once_allowances_exist(new):
    ledger = new()
    take(ledger, PEOPLE, 0.1)
    ledger.set_allowance("university", cap_epsilon=2.0, cap_delta=1e-6)
    for recipient in ("", "University", "university "):
        with pytest.raises(BudgetError, match="recipient"):
            take(ledger, PEOPLE, 0.1, recipient=recipient)
    what = ledger.what_if(
        contributors=PEOPLE, class_of=np.zeros(12, int), classes=[gaussian(1.0)], recipient="university"
    )
    assert what.dropped == 12  # within the lifetime cap, beyond the allowance
    assert take(ledger, PEOPLE, 0.1, recipient="university").admitted.all()
    ledger.verify()


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.define_level("big", cap_epsilon=9.0),
        lambda ledger: ledger.define_level("big", cap_epsilon=-1.0),
        lambda ledger: ledger.define_level("big", cap_epsilon=1.0, cap_delta=1e-3),
        lambda ledger: ledger.define_level("withdrawn"),
        lambda ledger: ledger.define_level(""),
        lambda ledger: ledger.define_level("x", purposes="research"),
        lambda ledger: ledger.set_consent(PEOPLE, "unknown"),
        lambda ledger: ledger.set_consent(PEOPLE, "erased"),
        lambda ledger: ledger.set_consent(["a", ""], "default"),
        lambda ledger: ledger.set_allowance("", cap_epsilon=1.0, cap_delta=1e-6),
        lambda ledger: ledger.set_allowance("x", cap_epsilon=float("nan"), cap_delta=1e-6),
        lambda ledger: ledger.set_allowance("x", cap_epsilon=1e9, cap_delta=1e-6),
        lambda ledger: ledger.set_allowance("x", cap_epsilon=1.0, cap_delta=1e-6, period="week"),
        lambda ledger: ledger.erase(PEOPLE, override="  "),
    ],
)
def test_senseless_changes_are_refused(new, change):
    ledger = new()
    take(ledger, PEOPLE, 0.1)
    before = ledger.status()
    with pytest.raises(InputError):
        change(ledger)
    assert ledger.status() == before


def test_balances_of_many_are_those_of_each(new):
    ledger = new()
    ledger.define_level("basic", cap_epsilon=4.0)
    ledger.set_allowance("x", cap_epsilon=3.0, cap_delta=1e-6)
    ledger.set_allowance("*", cap_epsilon=6.0, cap_delta=1e-6, period="month")
    ledger.set_consent(PEOPLE[:6], "basic")
    take(ledger, PEOPLE, 0.3, recipient="x")
    take(ledger, PEOPLE[2:9], 0.2, recipient="y")
    ledger.abort(take(ledger, PEOPLE[3:5], 0.4, recipient="y").id)
    ledger.start(take(ledger, PEOPLE[7:], 0.1, recipient="y").id)
    ledger.withdraw(PEOPLE[5:7])
    ledger.erase([PEOPLE[1], PEOPLE[8]])
    ledger.register(["known, never used"])
    asked = [*PEOPLE[::-1], "known, never used", "never seen"]
    found = ledger.remaining_of(asked)
    assert list(found) == [ledger.remaining(one) for one in asked]
    assert len({one.epsilon for one in found}) > 4 and len({len(one.caps) for one in found}) > 2
    assert {one.level for one in found} == {"default", "basic", "withdrawn", "erased"}
    assert [one.known for one in found[-2:]] == [True, False] and sum(one.erased for one in found) == 2
    assert ledger.remaining_of(["never seen"]) == (ledger.remaining("never seen"),)
    assert ledger.remaining_of(ledger.register(PEOPLE[3:5])) == tuple(map(ledger.remaining, PEOPLE[3:5]))


def test_erasure_removes_what_can_go_and_keeps_the_balance(new):
    ledger = new()
    ledger.define_level("basic", cap_epsilon=4.0)
    ledger.set_allowance("*", cap_epsilon=6.0, cap_delta=1e-6)
    ledger.create_data_set("x-rays", PEOPLE, entries=np.arange(1, 13))
    ledger.set_consent(PEOPLE[:6], "basic")
    first = take(ledger, PEOPLE, 0.4, recipient="x")
    take(ledger, PEOPLE[1:4], 0.3, recipient="x")
    before, others = ledger.remaining(PEOPLE[2]), ledger.used(PEOPLE[3:])
    assert ledger.erase([PEOPLE[2], "never seen"]) == 1
    after = ledger.remaining(PEOPLE[2])
    assert ledger.history(PEOPLE[2]) == () and after.erased and after.known and after.level == "erased"
    assert after.used == before.used and before.epsilon <= after.epsilon <= 8.0
    assert len(ledger.data_set("x-rays")) == 11 and ledger.data_sets()[0]["contributors"] == 11
    assert (ledger.used(PEOPLE[3:]) == others).all() and len(ledger.history(PEOPLE[3])) == 2
    assert not take(ledger, PEOPLE, 0.1, recipient="x").admitted[2]
    assert not ledger.resume(first.id, PEOPLE).admitted[2]
    ledger.verify()
    # Whoever returns finds the balance they left, at any level.
    for level in ("default", "basic"):
        ledger.set_consent([PEOPLE[2]], level)
        assert ledger.remaining(PEOPLE[2]).used == before.used
        ledger.verify()
    assert ledger.remaining(PEOPLE[2]).caps[0].used == before.caps[0].used
    ledger.define_level("late", cap_epsilon=7.0)
    ledger.set_consent([PEOPLE[2]], "late")
    with pytest.raises(BudgetError):  # sums fit no rule that was declared later: closed, never fresh
        take(ledger, [PEOPLE[2]], 0.01, recipient="x")
    assert ledger.abort(first.id)
    assert ledger.remaining(PEOPLE[2]).used == before.used  # what was carried over is not refunded
    ledger.rotate_key()
    assert ledger.remaining(PEOPLE[2]).used == before.used
    ledger.verify()


def test_erased_twice_and_spending_between(new):
    ledger = new()
    take(ledger, PEOPLE, 0.4)
    ledger.erase(PEOPLE[:2])
    ledger.set_consent(PEOPLE[:1], "default")
    take(ledger, PEOPLE[:1], 0.4)
    used = ledger.remaining(PEOPLE[0]).used
    ledger.erase(PEOPLE[:2])
    assert ledger.remaining(PEOPLE[0]).used == used > ledger.remaining(PEOPLE[1]).used > 0
    ledger.verify()


def test_losing_the_history_needs_a_reason_and_stays_in_the_journal(new):
    ledger = new()
    take(ledger, PEOPLE, 0.4)
    pseudonyms = ledger.export_balances()["pseudonym"]
    ledger.erase(PEOPLE[:1], override="court order 12/26")
    assert not ledger.remaining(PEOPLE[0]).known and ledger.remaining(PEOPLE[0]).used == 0
    assert pseudonyms[0] not in ledger.export_balances()["pseudonym"]
    assert take(ledger, PEOPLE[:2], 0.4).admitted.all()
    with ledger._store.read() as connection:
        entries = [e for e in _journal.replay(connection, ledger._keys) if e.action == "erase"]
    assert entries[0].body["note"] == "budget history lost" and entries[0].body["override"] == "court order 12/26"
    ledger.verify()


def test_an_erased_person_leaves_no_trace_in_the_file(tmp_path):
    """The packed list that held the person is gone, not only unlinked."""
    file = tmp_path / "l.sqlite"
    with Ledger.create(file, cap_epsilon=8, cap_delta=1e-6) as ledger:
        take(ledger, PEOPLE, 0.4)
        with sqlite3.connect(file) as raw:
            old = {row[0] for row in raw.execute("SELECT packed FROM codes")}
        ledger.erase(PEOPLE[:1])
        with sqlite3.connect(file) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            assert not old & {row[0] for row in raw.execute("SELECT packed FROM codes")}
        assert not any(blob in file.read_bytes() for blob in old)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE consent SET packed = x'789c0300000000010000'",
        "DELETE FROM consent",
        "DELETE FROM carried",
        "UPDATE carried SET counters = zeroblob(12)",
        "UPDATE level SET closed = 1",
        "UPDATE level SET purposes = NULL",
        "UPDATE account SET rule = replace(rule, '2.0', '7.0')",
        "UPDATE allowance SET period = 'month'",
        "DELETE FROM account_spend WHERE reservation = 1",
        "UPDATE account_spend SET charge = '[0,0,0]'",
        "DELETE FROM account_balance",
        "UPDATE data_set SET contributors = 3",
        "DELETE FROM data_set_member",
        "UPDATE flow SET recipient = 'nobody'",
        "DELETE FROM flow",
        "UPDATE reservation SET recipient = 'somebody'",
    ],
)
def test_changed_behind_the_ledgers_back(tmp_path, statement):
    file = tmp_path / "l.sqlite"
    with Ledger.create(file, cap_epsilon=8, cap_delta=1e-6) as ledger:
        ledger.create_data_set("d", PEOPLE)
        ledger.define_level("basic", cap_epsilon=2.0, purposes=["p"])
        ledger.set_allowance("*", cap_epsilon=6.0, cap_delta=1e-6)
        ledger.set_consent(PEOPLE[:6], "basic")
        take(ledger, PEOPLE, 0.4, recipient="x", purpose="p")
        ledger.erase(PEOPLE[:1])
        ledger.verify()
        with sqlite3.connect(file) as raw:
            assert raw.execute(statement).rowcount > 0
        raw.close()
        with pytest.raises(VerificationError):
            ledger.verify()


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 5), st.sampled_from([0.3, 0.6])),
            st.tuples(st.just("level"), st.integers(0, 5), st.sampled_from(["default", "low", "withdrawn"])),
            st.tuples(st.just("erase"), st.integers(0, 5), st.just(0)),
        ),
        max_size=12,
    )
)
def test_no_order_of_changes_gives_anybody_balance_back(tmp_path_factory, steps):
    """Whatever is done, one person's used share of the lifetime balance never falls, and the books add up."""
    folder = tmp_path_factory.mktemp("l")
    with Ledger.create(folder / "l.sqlite", cap_epsilon=8, cap_delta=1e-6) as ledger:
        ledger.define_level("low", cap_epsilon=2.0)
        used = np.zeros(6)
        for what, who, how in steps:
            if what == "take":
                with contextlib.suppress(BudgetError):
                    take(ledger, PEOPLE[who : who + 3], how)
            elif what == "level":
                ledger.set_consent(PEOPLE[who : who + 2], how)
            else:
                ledger.erase(PEOPLE[who : who + 1])
            now = ledger.used(PEOPLE[:6])
            assert (now >= used).all()
            used = now
        ledger.verify()
