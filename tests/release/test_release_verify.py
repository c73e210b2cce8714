"""`verify` finds every difference between a release and its certificate."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from confide.accounting import Gaussian, Guarantee, Laplace, SampledGaussian
from confide.errors import InputError, VerificationError
from confide.planning import plan
from confide.release import Release, VerifyReport, certify, crosscheck, verify, write_release


@pytest.fixture
def folder(certificate, tmp_path) -> Path:
    return write_release(
        tmp_path / "releases", "s", certificate, {"model.bin": b"weights", "study.toml": "version = 1"}
    )


def tamper(folder: Path, change) -> None:
    file = folder / "certificate.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def refuse(folder: Path, words: str, **options) -> VerifyReport:
    with pytest.raises(VerificationError, match=words) as caught:
        verify(folder, **{"second_opinions": 0, **options})
    assert caught.value.exit_code == 4
    return caught.value.report


@dataclass
class Receipt:
    release_hash: str


@dataclass
class Book:
    """A ledger, as far as verify looks at one."""

    id: str
    entries: dict[str, str]

    def receipt(self, reservation_id: str) -> Receipt:
        if reservation_id not in self.entries:
            raise InputError("the ledger knows no such reservation")
        return Receipt(self.entries[reservation_id])


def test_an_untouched_release_passes_with_a_second_opinion(folder):
    report = verify(folder, second_opinions=2)
    assert report.ok
    assert report.differences == ()
    assert len(report.second_opinions) == 2
    asked = [check for check in report.checks if check.what.startswith("dp_accounting")]
    assert len(asked) == 2
    assert all("agrees within 1%" in check.detail for check in asked)


def test_a_ledger_that_knows_it(folder):
    digest = Release.load(folder).digest
    report = verify(folder, ledger=Book("ledger-1", {"r-1": digest}), second_opinions=0)
    assert any(check.what == "ledger" and "recorded this certificate" in check.detail for check in report.checks)


@pytest.mark.parametrize(
    ("book", "words"),
    [
        (Book("ledger-1", {}), "no such reservation"),
        (Book("ledger-1", {"r-1": "0" * 64}), "another certificate"),
        (Book("ledger-2", {"r-1": "0" * 64}), "recorded in ledger-1"),
    ],
)
def test_a_ledger_that_does_not(folder, book, words):
    refuse(folder, words, ledger=book)


def test_changed_missing_and_unknown_files(folder):
    (folder / "model.bin").write_bytes(b"other weights")
    (folder / "study.toml").unlink()
    (folder / "notes.txt").write_text("who was in")
    report = refuse(folder, "was changed")
    assert {check.what for check in report.differences} == {"model.bin", "study.toml", "notes.txt"}


def test_a_link_is_not_a_file(folder):
    (folder / "model.bin").rename(folder.parent / "elsewhere.bin")
    (folder / "model.bin").symlink_to(folder.parent / "elsewhere.bin")
    refuse(folder, "model.bin: is missing")


@pytest.mark.parametrize(
    ("key", "factor", "words"),
    [
        ("epsilon", 0.9, "epsilon is stated"),
        ("epsilon", 1.1, "epsilon is stated"),
        ("epsilon_lower", 0.5, None),
        ("membership_advantage", 0.9, "membership_advantage"),
        ("tpr_at_fpr_1pct", 0.9, "tpr_at_fpr_1pct"),
        ("posterior_prior_1pct_fpr_1pct", 0.9, "posterior"),
    ],
)
def test_a_figure_that_was_made_nicer(folder, key, factor, words):
    def change(document):
        row = document["classes"][-1]
        row[key] *= factor
        if key == "epsilon":
            row["epsilon_lower"] = min(row["epsilon_lower"], row["epsilon"])

    tamper(folder, change)
    if words is None:  # a lower end that lies lower is still true
        assert verify(folder, second_opinions=0).ok
    else:
        refuse(folder, words)


def test_a_metric_whose_price_was_made_nicer(folder):
    def change(document):
        document["evaluation"][0]["epsilon"] *= 0.5
        document["evaluation"][0]["epsilon_lower"] = 0.0

    tamper(folder, change)
    refuse(folder, "paid metric AUROC")


def test_an_exchange_that_was_made_cheaper(tmp_path):
    counted = plan({1: 20, 3: 9}, epsilon=2.0, delta=1e-5, noise_multiplier=1.0, steps=50, strategy="individual")
    folder = write_release(tmp_path / "releases", "s", certify(counted, name="s"), {"model.bin": b"w"})
    assert verify(folder, second_opinions=0).ok

    def change(document):
        document["classes"][-1]["replace_one_epsilon"] *= 0.9

    tamper(folder, change)
    refuse(folder, "replace_one_epsilon is stated")


def test_a_mu_that_is_not_exact(folder):
    tamper(folder, lambda document: document["classes"][0].update(mu=0.3))
    refuse(folder, "not exactly Gaussian")


def recomputed(document) -> None:
    """Make every figure fit the (changed) mechanisms, as somebody would who changes more than one place."""
    from confide.release import Part, facts_of, guarantee_of

    for row in document["classes"]:
        parts = [Part(**part) for part in row["parts"]]
        found = facts_of(guarantee_of(parts), delta=document["delta"])
        row.update({key: value for key, value in found.items() if key != "parts"})


def test_a_mechanism_that_does_not_follow_from_the_plan(folder):
    def change(document):
        for row in document["classes"]:
            row["parts"][0]["mechanism"]["noise_multiplier"] = 2.0
        recomputed(document)

    tamper(folder, change)
    refuse(folder, "does not follow from the plan: noise_multiplier 2.0 instead of 1.0")


def test_a_plan_that_was_changed(folder):
    tamper(folder, lambda document: document["plan"].update(steps=59))
    report = refuse(folder, "fingerprint")
    assert any("59 steps" in check.detail for check in report.differences)


def test_a_class_that_was_left_out(folder):
    tamper(folder, lambda document: document["classes"].pop())
    refuse(folder, "1 of its classes are missing")


def test_a_relation_that_was_changed(folder):
    tamper(folder, lambda document: document.update(relation="zero-out"))
    refuse(folder, "classes mix")


def test_a_certificate_of_another_form(folder):
    tamper(folder, lambda document: document.update(surprise=1))
    with pytest.raises(VerificationError, match="published form"):
        verify(folder)


def test_our_figures_lying_together_is_found_by_the_second_opinion(folder, monkeypatch):
    """If our accountant were wrong everywhere, recomputing with it would agree; dp_accounting would not."""
    real = Guarantee.epsilon_interval
    monkeypatch.setattr(
        Guarantee, "epsilon_interval", lambda self, delta, **k: tuple(0.9 * v for v in real(self, delta, **k))
    )

    def change(document):
        for row in document["classes"] + document["evaluation"]:
            row["epsilon"] *= 0.9
            row["epsilon_lower"] *= 0.9
        for row in document["linkage"]["wrong_links"]:
            row["epsilon"] *= 0.9

    tamper(folder, change)
    assert verify(folder, second_opinions=0).ok
    refuse(folder, "dp_accounting", second_opinions=1)


@pytest.mark.parametrize(
    "guarantee",
    [
        SampledGaussian(noise_multiplier=1.0, rate=0.02, entries=5, clip_norm=0.7).guarantee(100),
        SampledGaussian(noise_multiplier=1.0, rate=0.02).guarantee(200),
        Gaussian(noise_multiplier=2.0).guarantee(3),
        Laplace(noise_multiplier=2.0).guarantee(4),
    ],
    ids=["mixture", "sampled", "gaussian", "laplace"],
)
def test_second_opinion_agrees_with_our_accountant(guarantee):
    ours = guarantee.epsilon(1e-5)
    opinion = crosscheck.second_opinion(guarantee, 1e-5, claimed=ours)
    assert opinion.epsilon == pytest.approx(ours, rel=0.01)


def test_the_tail_moved_in_the_second_opinion_weighs_nothing():
    drawn, weights = crosscheck._binomial(184, 1e-3)
    assert drawn[-1] < 20
    assert np.sum(weights) == pytest.approx(1.0, abs=1e-12)


def test_release_never_loads_torch_or_the_ledger():
    code = "import sys, confide.release; print([m for m in ('torch', 'sqlalchemy', 'polars') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
