"""A real ledger: the release is committed after it stands, and `verify` asks for it by its reservation."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from confide.errors import VerificationError
from confide.ledger import Ledger
from confide.release import LedgerReference, Release, certify, verify, write_release


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger.create(f"sqlite:///{tmp_path / 'ledger.sqlite'}", cap_epsilon=20.0, cap_delta=1e-4)


def released(plan, ledger: Ledger, folder):
    reservation = ledger.reserve(
        release="s",
        contributors=["ann", "bob", "cat"],
        class_of=np.array([0, 1, 2]),
        classes=[plan.guarantee(c) for c in plan.classes],
        data_set="d",
    )
    ledger.start(reservation.id)
    reference = LedgerReference(ledger=ledger.id, reservation=reservation.id)
    certificate = certify(plan, name="s", ledger=reference, created=datetime(2026, 1, 1, tzinfo=UTC))
    return reservation.id, write_release(folder / "releases", "s", certificate, {"model.bin": b"w"})


def test_a_committed_release_is_found(small_plan, ledger, tmp_path):
    reservation, folder = released(small_plan, ledger, tmp_path)
    ledger.commit(reservation, release_hash=Release.load(folder).digest)
    report = verify(folder, ledger=ledger, second_opinions=0)
    assert any("recorded this certificate" in check.detail for check in report.checks)


def test_a_release_that_was_never_committed_is_refused(small_plan, ledger, tmp_path):
    _, folder = released(small_plan, ledger, tmp_path)
    with pytest.raises(VerificationError, match="started"):
        verify(folder, ledger=ledger, second_opinions=0)


def test_another_release_under_the_same_reservation_is_refused(small_plan, ledger, tmp_path):
    reservation, folder = released(small_plan, ledger, tmp_path)
    ledger.commit(reservation, release_hash="0" * 64)
    with pytest.raises(VerificationError, match="another certificate"):
        verify(folder, ledger=ledger, second_opinions=0)


def test_another_ledger_is_refused(small_plan, ledger, tmp_path):
    reservation, folder = released(small_plan, ledger, tmp_path)
    ledger.commit(reservation, release_hash=Release.load(folder).digest)
    other = Ledger.create(f"sqlite:///{tmp_path / 'other.sqlite'}", cap_epsilon=20.0, cap_delta=1e-4)
    with pytest.raises(VerificationError, match="recorded in"):
        verify(folder, ledger=other, second_opinions=0)
