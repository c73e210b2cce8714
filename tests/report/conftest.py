"""One certificate and one set of internal figures for all pages, with nasty names in them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from confide.accounting import Gaussian, SampledGaussian
from confide.planning import plan
from confide.release import AssumedPublic, Certificate, LedgerReference, Spent, certify, paid_metric
from confide.report import (
    BatchSizes,
    ColumnCount,
    Curve,
    DataReport,
    Event,
    InternalFigures,
    Measured,
    Reliability,
    RiskCase,
    Source,
)
from confide.risk import MeanEstimation

NASTY = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def nasty() -> str:
    return NASTY


@pytest.fixture(scope="session")
def certificate() -> Certificate:
    small = plan(
        epsilon=3.0,
        delta=1e-5,
        noise_multiplier=1.0,
        steps=60,
        max_entries=5,
        histogram="none",
        max_contributors=1000,
        strategy="uniform",
    )
    histogram = Gaussian(noise_multiplier=20.0)
    metric = {"delta": 1e-5, "value": 0.81, "low": 0.71, "high": 0.9, "who": "held-out contributors " + NASTY}
    return certify(
        small,
        name="pbc death " + NASTY,
        ledger=LedgerReference(ledger="ledger-1" + NASTY, reservation="r-1"),
        created=datetime(2026, 3, 4, tzinfo=UTC),
        charged=[(Spent(what=NASTY, mechanism=histogram.to_dict(), who=NASTY), histogram.guarantee())],
        assumed_public=[
            AssumedPublic(what="bounds of " + NASTY, value=[100, 1800], source=NASTY),
            AssumedPublic(what="optimizer", value={"name": NASTY, "lr": 0.5, "options": {}}, source="study file"),
        ],
        stamps=["a stamp of mine " + NASTY],
        testing_only=True,
        evaluation=[paid_metric("AUROC " + NASTY, Gaussian(noise_multiplier=8.0).guarantee(), **metric)],
    ).model_copy(update={"artefacts": {"model.safetensors": "ab" * 32, "study.toml": "cd" * 32}})


@pytest.fixture(scope="session")
def internal_figures() -> InternalFigures:
    rng = np.random.default_rng(0)
    steps = list(range(1, 801))
    fpr = np.linspace(0, 1, 30)
    return InternalFigures(
        name="pbc death " + NASTY,
        created="2026-03-04T05:06:07Z",
        release="pbc-death-20260304T050607Z-0f3a21",
        guarantee="Every person is protected " + NASTY,
        learning=[
            Curve(label="loss " + NASTY, x=steps, y=[None if s % 50 == 0 else 1 / s + 0.3 for s in steps]),
            Curve(label="norm", x=steps, y=[float(s) for s in steps], y_label="median gradient norm"),
        ],
        batches=[BatchSizes(expected=42.2, realised=rng.poisson(42.2, 800).tolist())],
        metrics=[
            Measured(model=model, metric=metric, value=value, low=value - 0.05, high=value + 0.05, role=role)
            for metric in ("AUROC", "Brier score " + NASTY)
            for model, value, role in (
                ("this release", 0.72, "release"),
                ("non-private " + NASTY, 0.81, "baseline"),
                ("truncate(1)", 0.66, "baseline"),
            )
        ]
        + [Measured(model="undefined", metric="AUROC", value=None)],
        roc=[Curve(label="this release", x=fpr.tolist(), y=np.sqrt(fpr).tolist())],
        calibration=[
            Reliability(
                model="this release " + NASTY,
                predicted=[0.1, 0.4, None, 0.9],
                observed=[0.2, 0.3, None, 0.8],
                weight=[10, 20, 0, 5],
            )
        ],
        events=[Event(what="contributions that were not finite " + NASTY, count=3, meaning=NASTY)],
        data=DataReport(
            sources=[Source(source="named:pbcseq " + NASTY, rows=1945, used=1945, imputed=821, contributors=312)],
            columns=[ColumnCount(column="chol " + NASTY, kind="real", missing=821, note=NASTY)],
            entry_counts={k: 60 // k for k in range(1, 17)},
            training_contributors=234,
            training_entries=1460,
            held_out_contributors=78,
            held_out_entries=485,
        ),
        timing={"training " + NASTY: 41.2},
        notes=["a note " + NASTY],
    )


@pytest.fixture(scope="session")
def risk_cases_of_three_budgets() -> list[RiskCase]:
    return [
        RiskCase(
            f"noise {noise:g} " + NASTY,
            SampledGaussian(noise_multiplier=noise, rate=0.02).guarantee(300),
            MeanEstimation(noise=noise, norm=2.0, dimension=400),
        )
        for noise in (2.0, 1.0, 0.6)
    ]
