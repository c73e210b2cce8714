"""Releases of several hospitals: at every site or at none, once for each person, and what a time-out may free."""

from __future__ import annotations

import numpy as np
import pytest

from confide.accounting import SampledGaussian, compose
from confide.errors import BudgetError, InputError
from confide.ledger import JointRelease, Ledger, Site, joint_mechanism, shared_tokens, together

from .conftest import gaussian, take

BASE = SampledGaussian(noise_multiplier=1.0, rate=0.01)
KEY = bytes(range(32))
HASH = "ab" * 32


@pytest.fixture
def ledgers(tmp_path):
    return {n: Ledger.create(tmp_path / f"{n}.sqlite", cap_epsilon=8, cap_delta=1e-6) for n in ("a", "b", "c")}


def sites_of(ledgers, people, *, linked=True):
    return {
        name: Site(
            ledgers[name], [f"{name}:{p}" for p in people[name]], shared_tokens(KEY, people[name]) if linked else None
        )
        for name in people
    }


# Known at: both of a and b (two), a alone (one), all three (three).
PEOPLE = {"a": ["one", "two", "three"], "b": ["two", "three", "b only"], "c": ["three", "c only"]}


@pytest.mark.parametrize(
    ("sites", "rule", "epsilon"),
    [
        (1, "mixture", 1.83),
        (2, "home", 1.83),
        (2, "split", 1.33),
        (2, "mixture", 3.98),
        (3, "mixture", 6.34),
        (3, "split", 1.27),
        (5, "split", 1.23),
        (5, "mixture", 11.6),
    ],
)
def test_the_pair_of_the_joint_event(sites, rule, epsilon):
    found = joint_mechanism(BASE, sites, rule).guarantee(steps=1000).epsilon(1e-5)
    assert found == pytest.approx(epsilon, abs=0.05 if epsilon > 10 else 0.006)


@pytest.mark.slow
def test_the_mixture_against_another_library():
    pytest.importorskip("dp_accounting")
    from dp_accounting.pld import privacy_loss_distribution as pld

    one = pld.from_mixture_gaussian_mechanism(
        1.0, [0, 1, 2], [0.99**2, 2 * 0.99 * 0.01, 0.01**2], value_discretization_interval=1e-3
    )
    theirs = one.self_compose(1000).get_epsilon_for_delta(1e-5)
    ours = joint_mechanism(BASE, 2, "mixture").guarantee(steps=1000).epsilon(1e-5)
    assert ours == pytest.approx(theirs, rel=2e-3)


@pytest.mark.parametrize("rule", ["home", "split", "mixture"])
def test_everybody_is_charged_the_joint_event_once(ledgers, rule):
    joint = JointRelease("model", BASE, steps=300, rule=rule, most_sites=3)
    sites = sites_of(ledgers, PEOPLE)
    parts = joint.reserve(sites)
    for name, people in PEOPLE.items():
        for person in people:
            known = sum(person in others for others in PEOPLE.values())
            (spend,) = ledgers[name].history(f"{name}:{person}")
            assert spend.guarantee == joint.guarantee(known) and spend.joint == joint.id
    over = together([(ledgers[name], f"{name}:three") for name in "abc"])
    assert over == joint.guarantee(3)
    # A local release at one of the hospitals composes with it, there and over all of them.
    take(ledgers["b"], ["b:three"], 0.1)
    assert together([(ledgers[n], f"{n}:three") for n in "abc"]).steps == 301
    assert ledgers["b"].remaining("b:three").epsilon == pytest.approx(
        compose([joint.guarantee(3), gaussian(0.1)]).epsilon(1e-6), rel=1e-3
    )
    seats = {name: part.takes_part.sum() for name, part in parts.items()}
    assert seats == ({"a": 3, "b": 1, "c": 1} if rule == "home" else {"a": 3, "b": 3, "c": 2})
    receipts = joint.commit(sites, parts, release_hash=HASH)
    assert joint.commit(sites, parts, release_hash=HASH) == receipts and set(receipts) == {"a", "b", "c"}
    for ledger in ledgers.values():
        ledger.verify()


def test_unlinked_people_are_charged_the_largest_declared_number_of_sites(ledgers):
    sites = sites_of(ledgers, PEOPLE, linked=False)
    joint = JointRelease("model", BASE, steps=100, rule="mixture", most_sites=2)
    joint.reserve(sites)
    assert ledgers["a"].history("a:one")[0].guarantee == joint.guarantee(2)
    for rule, most in (("home", 2), ("split", 2), ("mixture", None)):
        with pytest.raises(InputError, match="shared tokens"):
            JointRelease("x", BASE, steps=100, rule=rule, most_sites=most).reserve(sites)
    with pytest.raises(InputError, match="more sites than declared"):
        JointRelease("x", BASE, steps=100, rule="split", most_sites=2).reserve(sites_of(ledgers, PEOPLE))


def test_one_site_that_refuses_frees_all_others(ledgers):
    ledgers["c"].withdraw(["c:three", "c:c only"])
    before = [ledgers[n].used([f"{n}:{p}" for p in PEOPLE[n]]).tolist() for n in "ab"]
    with pytest.raises(BudgetError):
        JointRelease("m", BASE, steps=100, rule="split").reserve(sites_of(ledgers, PEOPLE))
    assert [ledgers[n].used([f"{n}:{p}" for p in PEOPLE[n]]).tolist() for n in "ab"] == before


def test_a_person_dropped_at_one_site_is_dropped_at_all(ledgers):
    ledgers["c"].withdraw(["c:three"])
    parts = JointRelease("m", BASE, steps=100, rule="split").reserve(sites_of(ledgers, PEOPLE))
    assert parts["a"].takes_part.tolist() == [True, True, False] and ledgers["a"].history("a:three") == ()
    assert parts["c"].takes_part.tolist() == [False, True]


@pytest.fixture
def held(new):
    ledger = new()
    return ledger, take(ledger, ["p", "q"], 0.5, joint="j").id


def test_a_time_out_frees_a_site_that_has_sent_nothing(held):
    ledger, which = held
    ledger.begin_round(which, 1, mask="m1")
    assert ledger.time_out(which, 1) and ledger.free(which)
    assert ledger.used(["p"])[0] == 0 and ledger.reservation(which).state == "aborted"
    ledger.verify()


def test_what_was_sent_in_clear_stays_charged(held):
    ledger, which = held
    ledger.begin_round(which, 1)
    ledger.note_sent(which, 1)
    assert not ledger.time_out(which, 1) and not ledger.free(which)
    assert ledger.used(["p"])[0] > 0 and ledger.reservation(which).state == "abandoned"
    ledger.verify()


def test_a_masked_round_that_nobody_opened_is_tried_again_with_fresh_masks_only(held):
    ledger, which = held
    ledger.begin_round(which, 1, mask="m1")
    ledger.note_sent(which, 1)
    with pytest.raises(InputError, match="sent"):
        ledger.begin_round(which, 1, mask="m2")  # the first attempt may still be opened
    assert ledger.time_out(which, 1)
    with pytest.raises(InputError, match="used before"):
        ledger.begin_round(which, 1, mask="m1")
    assert ledger.begin_round(which, 1, mask="m2") == 2
    ledger.note_sent(which, 1)
    used = ledger.used(["p"])[0]
    ledger.note_opened(which, 1)
    assert ledger.used(["p"])[0] == used and not ledger.time_out(which, 1)  # charged once for both attempts
    ledger.begin_round(which, 2, mask="m3")
    assert not ledger.free(which) and ledger.used(["p"])[0] == used
    ledger.verify()


def test_a_masked_round_that_timed_out_is_refunded_if_the_release_is_given_up(held):
    ledger, which = held
    ledger.begin_round(which, 1, mask="m1")
    ledger.note_sent(which, 1)
    assert ledger.free(which) and ledger.used(["p"])[0] == 0
    with pytest.raises(InputError, match="aborted"):
        ledger.note_opened(which, 1)  # a message that was declared void can never be opened
    ledger.verify()


def test_rounds_out_of_order(held):
    ledger, which = held
    local = take(ledger, ["p"], 0.1).id
    for act in (
        lambda: ledger.begin_round(local, 1),
        lambda: ledger.note_sent(which, 1),
        lambda: ledger.note_opened(which, 1),
        lambda: ledger.begin_round(which, 1, mask=""),
        lambda: ledger.free(local),
    ):
        with pytest.raises(InputError):
            act()
    ledger.begin_round(which, 1, mask="m")
    with pytest.raises(InputError, match="open"):
        ledger.note_opened(which, 1)
    ledger.verify()


def test_bad_joint_releases(ledgers):
    with pytest.raises(InputError):
        JointRelease("x", BASE, steps=1, rule="both")
    with pytest.raises(InputError):
        joint_mechanism(BASE, 0, "home")
    with pytest.raises(InputError):
        shared_tokens(b"short", ["a"])
    with pytest.raises(InputError):
        shared_tokens(KEY, ["a", ""])
    with pytest.raises(InputError):
        JointRelease("x", BASE, steps=1).reserve({})
    doubled = {"a": Site(ledgers["a"], ["x", "y"], ["t", "t"])}
    with pytest.raises(InputError, match="tokens"):
        JointRelease("x", BASE, steps=1).reserve(doubled)
    assert np.all(ledgers["a"].used(["x"]) == 0)


def test_a_part_that_was_started_like_a_local_run_is_never_refunded(held):
    ledger, which = held
    ledger.start(which)
    assert not ledger.free(which) and ledger.used(["p"])[0] > 0
    assert ledger.reservation(which).state == "abandoned"
    ledger.verify()
