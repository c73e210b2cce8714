"""The register of flows, data sets by name, and releases that are made of other releases alone."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest

from confide.accounting import Gaussian, Laplace, SampledGaussian
from confide.errors import InputError, RunError
from confide.ledger import NoPrivateAccess, bits, run_derived

from .conftest import gaussian, take

PEOPLE = [f"p{i}" for i in range(20)]
HASH = "ab" * 32


def test_every_release_is_a_flow_with_a_bound(new):
    ledger = new()
    classes = [SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=k).guarantee(steps=100) for k in (1, 3)]
    kept = ledger.reserve(
        release="model",
        contributors=PEOPLE,
        class_of=np.arange(20) % 2,
        classes=classes,
        data_set="x-rays",
        sender="hospital",
        recipient="registry",
        purpose="research",
        attributes=["image", "finding"],
    )
    ledger.commit(kept.id, release_hash=HASH)
    (flow,) = ledger.flows()
    assert (flow.sender, flow.recipient, flow.purpose) == ("hospital", "registry", "research")
    assert flow.attributes == ("image", "finding") and flow.release_hash == HASH and flow.state == "committed"
    assert flow.bits() == bits(classes[1]) > bits(classes[0]) > 0
    fpr = [0.01, 0.1]
    assert flow.tradeoff(fpr) == pytest.approx(classes[1].tradeoff(np.array(fpr)).tolist())
    shown = json.loads(json.dumps(flow.to_dict()))
    assert shown["mechanisms"] == ["sampled-gaussian"] and shown["tradeoff"]["fnr"][0] <= 0.999


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 2.0])
def test_bits_of_a_gaussian_are_its_divergence(mu):
    """KL(N(mu, 1) || N(0, 1)) = mu^2 / 2 nats; the mutual information of any prior on presence lies below."""
    bound = bits(Gaussian(noise_multiplier=1 / mu).guarantee())
    assert mu**2 / 2 / math.log(2) <= bound <= 1.01 * mu**2 / 2 / math.log(2)
    x = np.linspace(-12, 14, 200_001)
    with_, without = np.exp(-((x - mu) ** 2) / 2), np.exp(-(x**2) / 2)
    for prior in (0.01, 0.3, 0.5):
        mixed = prior * with_ + (1 - prior) * without
        parts = [prior * with_ * np.log(with_ / mixed), (1 - prior) * without * np.log(without / mixed)]
        information = sum(np.trapezoid(np.nan_to_num(p), x) for p in parts) / math.sqrt(2 * math.pi)
        assert information / math.log(2) <= bound


def test_bits_of_pure_epsilon_and_of_steps():
    one = bits(Laplace(noise_multiplier=2.0).guarantee())
    assert one <= 0.5**2 / 2 / math.log(2) * 1.001
    g = SampledGaussian(noise_multiplier=1.0, rate=0.01)
    assert bits(g.guarantee(steps=20)) == pytest.approx(20 * bits(g.guarantee()), rel=1e-6)


@pytest.fixture
def released(new, tmp_path):
    """A committed release in a file, and the ledger."""
    import hashlib

    ledger = new()
    file = tmp_path / "parent.csv"
    file.write_text("a,b\n1,2\n3,4\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    kept = take(ledger, PEOPLE, 0.4)
    ledger.commit(kept.id, release_hash=digest)
    return ledger, file, digest


def script(folder, text):
    file = folder / "job.py"
    file.write_text("import sys\n" + text)
    return file


SUM = "out = open(sys.argv[-1], 'w'); out.write(str(sum(len(l) for l in open(sys.argv[1])))); out.close()"


def test_a_derived_release_costs_nothing(released, tmp_path):
    ledger, parent, digest = released
    used = ledger.used(PEOPLE)
    seen = run_derived(script(tmp_path, SUM), parents=[parent], output=tmp_path / "sum")
    assert seen.parents == (digest,) and seen.opened == 1
    flow = ledger.derive(release="sum", parents=[digest], release_hash=seen.output, checked=seen, recipient="public")
    assert flow.derived and flow.bits() == 0 and flow.tradeoff([0.1]) == [0.9] and flow.state == "derived"
    assert (ledger.used(PEOPLE) == used).all()
    # A release that was derived can be a parent itself.
    again = NoPrivateAccess((seen.output,), "cd" * 32, 1)
    ledger.derive(release="of sum", parents=[seen.output], release_hash="cd" * 32, checked=again)
    assert [f.release for f in ledger.flows()] == ["r", "sum", "of sum"]
    ledger.verify()


def test_a_derived_release_without_its_parents_or_the_check_is_refused(released):
    ledger, _, digest = released
    good = NoPrivateAccess((digest,), HASH, 1)
    unknown = NoPrivateAccess(("11" * 32,), HASH, 1)
    for parents, checked, release_hash in (
        ([digest], None, HASH),
        ([digest], True, HASH),
        (["11" * 32], good, HASH),
        (["11" * 32], unknown, HASH),
        ([digest], good, "22" * 32),
        ([], NoPrivateAccess((), HASH, 0), HASH),
    ):
        with pytest.raises(InputError):
            ledger.derive(release="x", parents=parents, release_hash=release_hash, checked=checked)
    # A reservation that has not committed is nobody's parent.
    kept = take(ledger, PEOPLE, 0.1)
    assert ledger.reservation(kept.id).release_hash is None
    assert len(ledger.flows()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "open(sys.argv[-1], 'w').write(open({secret!r}).read())",
        "import os; os.listdir({folder!r})",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['cat', {secret!r}])",
        "import os; os.system('true')",
        "import sqlite3; sqlite3.connect({secret!r})",
        "open(sys.argv[1], 'a').write('x')",
        "import os; os.rename(sys.argv[1], {secret!r})",
        "raise SystemExit(1)",
        "pass",
    ],
)
def test_a_job_that_reaches_for_anything_else_is_stopped(released, tmp_path, text):
    _, parent, _ = released
    secret = tmp_path / "private.csv"
    secret.write_text("the patient's name")
    before = parent.read_bytes()
    with pytest.raises(RunError) as stopped:
        run_derived(
            script(tmp_path, text.format(secret=str(secret), folder=str(tmp_path))),
            parents=[parent],
            output=tmp_path / "o",
        )
    assert "patient" not in str(stopped.value) and "private.csv" not in str(stopped.value)
    assert parent.read_bytes() == before and not ((tmp_path / "o").exists() and (tmp_path / "o").stat().st_size)


def test_data_sets_have_names_and_members(new, tmp_path, url, key):
    ledger = new()
    entries = np.arange(20) % 3 + 1
    ledger.create_data_set("x-rays", PEOPLE[::-1], entries=entries[::-1], linkage={"method": "pseudonym"})
    again = ledger.open(url, key=key).data_set("x-rays")
    assert len(again) == 20 and again.linkage == {"method": "pseudonym"} and "p1" not in repr(again)
    # Its members come in the order of their numbers, with their entries: a plan's classes follow from these.
    classes = [gaussian(0.1 * k) for k in (1, 2, 3)]
    kept = ledger.reserve(release="r", contributors=again, class_of=again.entries.astype(int) - 1, classes=classes)
    assert kept.data_set == "x-rays" and kept.admitted.all()
    for person, count in zip(PEOPLE, entries.tolist(), strict=True):
        assert ledger.history(person)[0].guarantee == classes[count - 1]
    pl.DataFrame({"id": [*PEOPLE[5:], "new"], "n": [300] * 16}).write_parquet(tmp_path / "ids.parquet")
    lab = ledger.create_data_set_from_parquet("laboratory", tmp_path / "ids.parquet", "id", entries="n")
    assert lab.entries.tolist() == [300] * 16 and ledger.data_set("laboratory").numbers.tolist() == lab.numbers.tolist()
    assert [row["name"] for row in ledger.data_sets()] == ["laboratory", "x-rays"]
    assert sorted(ledger.used(lab)) == sorted([*ledger.used(PEOPLE[5:]), 0.0])
    ledger.verify()


def test_a_data_set_grows_and_what_was_released_stays(new, tmp_path):
    ledger = new()
    first = ledger.create_data_set("x-rays", PEOPLE[:10], entries=[1] * 10, linkage={"method": "pseudonym"})
    classes = [gaussian(0.1 * k) for k in (1, 2, 3)]
    kept = ledger.reserve(release="r1", contributors=first, class_of=first.entries.astype(int) - 1, classes=classes)
    before = [ledger.history(person) for person in PEOPLE]
    used = ledger.used(PEOPLE)
    # Two new people, and two known ones with more entries than before.
    grown = ledger.extend_data_set("x-rays", [PEOPLE[0], PEOPLE[1], PEOPLE[12], "new"], entries=[2, 3, 1, 300])
    assert len(grown) == 12 and sorted(grown.entries.tolist()) == [1] * 9 + [2, 3, 300]
    assert grown.linkage == {"method": "pseudonym"} and ledger.data_set("x-rays").entries.dtype == np.uint16
    assert [ledger.history(person) for person in PEOPLE] == before and (ledger.used(PEOPLE) == used).all()
    ledger.start(kept.id)
    assert ledger.resume(kept.id, first).admitted.all()
    ledger.commit(kept.id, release_hash="ab" * 32)
    # The next release is charged by the new version.
    of = np.minimum(grown.entries.astype(int), 3) - 1
    again = ledger.reserve(release="r2", contributors=grown, class_of=of, classes=classes)
    assert again.admitted.all()
    assert [spend.guarantee for spend in ledger.history(PEOPLE[1])] == [classes[0], classes[2]]
    assert len(ledger.history(PEOPLE[12])) == 1 and len(ledger.history(PEOPLE[2])) == 2
    (row,) = ledger.data_sets()
    assert (row["contributors"], row["version"]) == (12, 2)
    # The same again changes nothing, from a file as well.
    pl.DataFrame({"id": ["new", PEOPLE[0]], "n": [300, 2]}).write_parquet(tmp_path / "ids.parquet")
    ledger.extend_data_set_from_parquet("x-rays", tmp_path / "ids.parquet", "id", entries="n")
    assert ledger.data_sets()[0]["version"] == 2
    ledger.verify()
    ledger.erase([PEOPLE[0], "new"])
    assert ledger.data_sets()[0]["contributors"] == 10 and len(ledger.data_set("x-rays")) == 10
    ledger.extend_data_set("x-rays", ["later"])
    assert ledger.data_sets()[0] | {"created": ""} == {
        "name": "x-rays",
        "contributors": 11,
        "linkage": {"method": "pseudonym"},
        "created": "",
        "version": 3,
    }
    ledger.verify()


@pytest.mark.parametrize(
    ("name", "people", "entries", "text"),
    [
        ("absent", ["a"], None, "no data set"),
        ("d", [], None, "at least one"),
        ("d", ["b", "b"], None, "twice"),
        ("d", ["a"], [2], "fewer entries"),
        ("d", ["a"], [0], "entries"),
    ],
)
def test_a_data_set_never_shrinks(new, name, people, entries, text):
    ledger = new()
    ledger.create_data_set("d", ["a"], entries=[3])
    with pytest.raises(InputError, match=text):
        ledger.extend_data_set(name, people, entries=entries)
    assert ledger.data_set("d").entries.tolist() == [3] and ledger.status().journal == 3
    ledger.verify()


@pytest.mark.parametrize(
    ("name", "people", "entries", "text"),
    [
        ("", ["a"], None, "no name"),
        ("d", ["a"], None, "already"),
        ("e", [], None, "at least one"),
        ("e", ["a", "a"], None, "twice"),
        ("e", ["a", ""], None, "position 1"),
        ("e", ["a"], [0], "entries"),
        ("e", ["a"], [1.5], "entries"),
        ("e", ["a"], [1, 2], "entries"),
    ],
)
def test_bad_data_sets(new, name, people, entries, text):
    ledger = new()
    ledger.create_data_set("d", ["z"])
    with pytest.raises(InputError, match=text):
        ledger.create_data_set(name, people, entries=entries)
    with pytest.raises(InputError, match="no data set"):
        ledger.data_set("e")
    assert ledger.status().contributors == 1
