"""One small plan and its certificate, made once: accounting takes a second or two."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from confide.accounting import Gaussian
from confide.planning import Plan, plan
from confide.release import AssumedPublic, Certificate, LedgerReference, Spent, certify, paid_metric

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LEDGER = LedgerReference(ledger="ledger-1", reservation="r-1")


@pytest.fixture(scope="session")
def small_plan() -> Plan:
    return plan(
        epsilon=3.0,
        delta=1e-5,
        noise_multiplier=1.0,
        steps=60,
        max_entries=3,
        histogram="none",
        max_contributors=1000,
        strategy="individual",
    )


@pytest.fixture(scope="session")
def certificate(small_plan: Plan) -> Certificate:
    histogram = Gaussian(noise_multiplier=5.0)
    score_table = Gaussian(noise_multiplier=8.0)
    return certify(
        small_plan,
        name="pbc death",
        ledger=LEDGER,
        created=WHEN,
        charged=[
            (
                Spent(what="noisy histogram of entry counts", mechanism=histogram.to_dict(), who="all contributors"),
                histogram.guarantee(),
            )
        ],
        assumed_public=[AssumedPublic(what="bounds of chol", value=[100, 1800], source="study.toml, [columns.chol]")],
        evaluation=[
            paid_metric(
                "AUROC",
                score_table.guarantee(),
                delta=1e-5,
                value=0.81,
                low=0.71,
                high=0.9,
                who="held-out contributors",
            )
        ],
    )
