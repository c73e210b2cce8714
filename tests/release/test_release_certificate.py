"""A certificate states public facts, all of them, and refuses what is private."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

import confide.release
from confide.accounting import Gaussian, SampledGaussian, compose
from confide.contributors import ContributorIndex
from confide.errors import InputError
from confide.planning import plan
from confide.release import (
    NOT_RECORDED,
    PER_ENTRY,
    PREVIEW,
    TESTING_ONLY,
    Certificate,
    certify,
    guarantee_of,
    json_schema,
    restate,
    write_release,
)

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def changed(certificate: Certificate, **update: object) -> dict[str, object]:
    return json.loads(certificate.to_json()) | update


def test_every_figure_is_the_accountants_and_on_the_safe_side(certificate, small_plan):
    for row, c in zip(certificate.classes, small_plan.classes, strict=True):
        own = compose([small_plan.guarantee(c), Gaussian(noise_multiplier=5.0).guarantee()])
        # an accountant that has seen other questions before may answer from another grid within its interval
        assert row.epsilon == pytest.approx(own.epsilon(1e-5), rel=2e-3)
        assert row.epsilon_lower <= row.epsilon
        assert row.membership_advantage == pytest.approx(own.advantage(), rel=2e-3)
        assert row.tpr_at_fpr_1pct == pytest.approx(1 - float(own.tradeoff(0.01)), rel=2e-3)
        assert row.posterior_prior_1pct_fpr_1pct == pytest.approx(own.posterior(prior=0.01, fpr=0.01), rel=2e-3)
        assert (row.entries, row.rate, row.clip_norm) == (c.entries, c.rate, c.clip_norm)
        assert guarantee_of(row).epsilon(1e-5) == pytest.approx(row.epsilon, rel=2e-3)


def test_a_charge_raises_the_price_of_every_class(certificate, small_plan):
    for row, c in zip(certificate.classes, small_plan.classes, strict=True):
        assert row.epsilon > small_plan.guarantee(c).epsilon(1e-5)
    assert certificate.spent[0].who == "all contributors"


def test_mu_stands_only_where_it_is_exact(certificate):
    assert all(row.mu is None for row in certificate.classes)
    assert certificate.evaluation[0].mu == pytest.approx(1 / 8)


def test_under_zero_out_exchanging_a_person_is_stated_beside_it():
    counted = plan({1: 20, 3: 9}, epsilon=2.0, delta=1e-5, noise_multiplier=1.0, steps=50, strategy="individual")
    c = certify(counted, name="x", created=WHEN)
    assert c.relation == "zero-out"
    for row in c.classes:
        # worse than taking out, better than taking out and putting in one after the other
        one = guarantee_of(row)
        twice = 2 * max(one.epsilon(1e-5 / (1 + np.exp(row.epsilon + 1))), row.epsilon)
        assert row.epsilon < row.replace_one_epsilon <= twice


def test_worst_and_best_class(certificate):
    epsilons = [row.epsilon for row in certificate.classes]
    assert certificate.worst.epsilon == max(epsilons)
    assert certificate.best.epsilon == min(epsilons)


def test_json_round_trip_and_published_schema(certificate):
    text = certificate.to_json()
    assert Certificate.model_validate_json(text) == certificate
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(json.loads(text) | {"unheard_of": 1})


@pytest.mark.parametrize(
    "place",
    [
        Path(confide.release.__file__).with_name("certificate.schema.json"),
        Path(__file__).parents[2] / "docs" / "certificate.schema.json",
    ],
)
def test_shipped_and_documented_schema_are_the_generated_one(place):
    assert json.loads(place.read_text(encoding="utf-8")) == json_schema(), "run scripts/write_certificate_schema.py"


def test_a_class_without_a_finite_guarantee_survives_json(certificate):
    row = certificate.classes[0].model_copy(update={"epsilon": math.inf})
    text = certificate.model_copy(update={"classes": (row,)}).to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    jsonschema.Draft202012Validator(json_schema()).validate(json.loads(text))
    assert math.isinf(Certificate.model_validate_json(text).classes[0].epsilon)


def test_it_is_frozen_and_refuses_unknown_keys(certificate):
    with pytest.raises(ValidationError):
        certificate.name = "other"
    with pytest.raises(ValidationError, match="surprise"):
        Certificate.model_validate(changed(certificate, surprise=1))


@pytest.mark.parametrize(
    "key", ["seed", "torch_seed", "rng_state", "generator", "sampling_coins", "run_secret", "key", "nonce", "salt"]
)
def test_private_state_is_refused_wherever_it_hides(certificate, key):
    for plan_dict in (
        certificate.plan | {key: 1},
        certificate.plan | {"options": {"noise": [{key: "x"}]}},
    ):
        with pytest.raises(ValidationError, match="private state"):
            Certificate.model_validate(changed(certificate, plan=plan_dict))


def test_counts_are_refused_unless_declared_or_paid(certificate):
    rows = [dict(row) | {"contributors": 312} for row in certificate.plan["classes"]]
    with pytest.raises(ValidationError, match="neither declared public nor paid"):
        Certificate.model_validate(changed(certificate, plan=certificate.plan | {"classes": rows}))
    declared = certificate.plan | {"classes": rows, "histogram": "public"}
    Certificate.model_validate(changed(certificate, plan=declared))


def test_stamps_cannot_be_left_out(certificate, small_plan):
    assert NOT_RECORDED not in certificate.stamps
    assert NOT_RECORDED in certify(small_plan, name="x", created=WHEN).stamps
    for update, stamp in (
        ({"ledger": None}, NOT_RECORDED),
        ({"unit": "entry"}, PER_ENTRY),
        ({"plan": certificate.plan | {"histogram": "preview"}}, PREVIEW),
    ):
        with pytest.raises(ValidationError, match=stamp):
            Certificate.model_validate(changed(certificate, **update))
        Certificate.model_validate(changed(certificate, **update, stamps=[stamp]))


def test_stamps_of_tests_and_entries_are_added(small_plan):
    c = certify(small_plan, name="x", unit="entry", testing_only=True, stamps=["mine"], created=WHEN)
    assert set(c.stamps) == {"mine", TESTING_ONLY, PER_ENTRY, NOT_RECORDED}


class RunOfAStudy:
    """What a runner does around a certificate: data decide about the artefact, public facts about the certificate."""

    def __init__(self, people: list[str]) -> None:
        self.index = ContributorIndex.from_labels(people)

    def certificate(self, declared) -> Certificate:
        return certify(declared, name="study", created=WHEN)

    def model(self) -> bytes:
        return np.sort(np.asarray(self.index.counts)).tobytes()


def test_one_contributor_more_or_less_leaves_the_certificate_as_it_is(small_plan, tmp_path):
    people = ["ann", "ann", "bob", "cat", "cat", "cat", "dan"]
    with_cat, without = RunOfAStudy(people), RunOfAStudy([one for one in people if one != "cat"])
    assert with_cat.model() != without.model()
    # the plan is made anew in both worlds, from what was declared
    planned = [
        plan(
            epsilon=3.0,
            delta=1e-5,
            noise_multiplier=1.0,
            steps=60,
            max_entries=3,
            histogram="none",
            max_contributors=1000,
            strategy="individual",
        )
        for _ in range(2)
    ]
    first, second = with_cat.certificate(planned[0]), without.certificate(planned[1])
    assert first.to_json() == second.to_json()
    files = [
        json.loads((write_release(tmp_path, "s", c, {"model": run.model()}) / "certificate.json").read_text())
        for c, run in ((first, with_cat), (second, without))
    ]
    assert files[0].pop("artefacts") != files[1].pop("artefacts"), "the artefact is what carries the noise"
    assert files[0] == files[1]


def test_restating_keeps_figures_and_refuses_other_pairs():
    one = SampledGaussian(noise_multiplier=1.0, rate=0.1, entries=2).guarantee(10)
    other = restate(one, "zero-out")
    assert other.relation == "zero-out"
    assert other.epsilon(1e-5) == pytest.approx(one.epsilon(1e-5))
    with pytest.raises(InputError, match="replace-one"):
        restate(one, "replace-one")


def test_the_linkage_assumption_is_printed_with_its_figures():
    """A person of the plan at epsilon 4 split into two pieces of 8: about 8.8."""
    nih = plan(
        epsilon=4.0, delta=1e-6, noise_multiplier=1.0, steps=2000, max_entries=16, histogram="none", denominator=100.0
    )
    made = certify(nih, name="s")
    assert made.linkage is not None and "split into several contributors" in made.linkage.assumption
    (row,) = [row for row in made.linkage.wrong_links if row.entries == 8]
    assert row.epsilon == pytest.approx(4.0, abs=0.02) and row.split_in_2 == pytest.approx(8.8, abs=0.15)
    assert row.split_in_3 > 13.5 and row.merged is not None and row.merged < row.epsilon
    assert certify(nih, name="s", unit="entry").linkage is None
