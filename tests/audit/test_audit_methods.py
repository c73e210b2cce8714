"""The canary audit of every method of training: right as it is, rejected each way it is broken."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from confide.accounting import Correlation, SampledGaussian
from confide.audit import clopper_pearson, run_canaries
from confide.audit.scores import correlated_scores
from confide.audit.simulation import views
from confide.mechanisms import SeededNoise
from confide.planning import plan
from confide.training import Methods
from confide.training.methods.temperature import fit_temperature

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("audit_methods", ROOT / "benchmarks" / "audit" / "methods.py")
assert _SPEC is not None and _SPEC.loader is not None
methods = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(methods)
CASES, audit = methods.CASES, methods.audit
BROKEN = [(name, way) for name, case in CASES.items() for way in case.broken]
FAST = ("views", "banded", "langevin")


@pytest.mark.parametrize("name", FAST)
def test_a_method_passes_and_its_broken_form_fails(name):
    assert not audit(name, canaries=800).rejected
    assert audit(name, canaries=800, tamper=list(CASES[name].broken.values())[-1]).violation.rejected


def test_views_leave_the_inclusion_count_alone():
    p = plan({2: 1000}, epsilon=6.0, delta=1e-5, noise_multiplier=2.5, steps=4, strategy="individual")
    kwargs: dict[str, Any] = {"entries": 2, "present": 50, "absent": 50, "seed": 3}
    plain, many = run_canaries(p, **kwargs), run_canaries(p, **kwargs, methods=Methods(augmentation=views(3)))
    assert (plain.draws, plain.chances) == (many.draws, many.chances)


@pytest.mark.parametrize("text", ["banded(3)", "blt(3)"])
def test_the_score_of_a_run_with_correlated_noise_is_the_ratio_of_its_densities(text):
    factor, steps, sigma, group = Correlation.make(text, steps=7), 7, 1.7, 1
    c = np.array([[factor.column(steps)[t - s] if t >= s else 0.0 for s in range(steps)] for t in range(steps)])
    rng = np.random.default_rng(0)
    hits = np.zeros(steps)
    hits[group :: factor.separation] = 1.0
    y = np.linalg.solve(c, sigma * rng.normal(size=(steps, 5))) + hits[:, None] * rng.integers(0, 2, 5)
    found = correlated_scores(
        y,
        np.full(5, group),
        factor,
        mechanism=SampledGaussian(noise_multiplier=sigma, rate=1.0),
        noise=sigma,
    )
    covariance = np.linalg.inv(c) @ np.linalg.inv(c).T * sigma**2
    there, gone = (multivariate_normal(mean, covariance).logpdf(y.T) for mean in (hits, np.zeros(steps)))
    want = there - gone
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-8)


GRID = (0.25, 16.0)


def _temperatures(epsilon: float, people: int, draws: int, seed: int) -> Any:
    """How often each temperature is chosen for people who are sure and wrong; the grid is one of two."""
    z, y = np.full(people, 9.0), np.zeros(people, dtype=np.int64)
    noise = SeededNoise(seed)
    found = [
        fit_temperature(z, y, np.arange(people), epsilon=epsilon, noise=noise, grid=GRID).value for _ in range(draws)
    ]
    return Counter(found)


def _contradicted(spent: float, claimed: float, draws: int = 4000) -> bool:
    """Whether the frequencies with and without the person lie further apart than exp(claimed), beyond chance."""
    counts = [_temperatures(spent, people, draws, people) for people in (0, 1)]
    bound = np.exp(claimed)
    for temperature in GRID:
        a, b = (clopper_pearson(found[temperature], draws, error=1e-4) for found in counts)
        if a[0] > bound * b[1] or b[0] > bound * a[1]:
            return True
    return False


@pytest.mark.slow
def test_a_private_temperature_spends_its_epsilon_and_no_more():
    """One person against nobody: the likelihoods of the two temperatures differ by at most exp(epsilon)."""
    assert not _contradicted(2.0, 2.0)
    assert _contradicted(8.0, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_no_method_contradicts_its_claim(name):
    report = audit(name, canaries=6000)
    assert not report.rejected and 0.7 <= report.ratio <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), BROKEN)
def test_every_way_of_breaking_a_method_is_rejected(name, way):
    report = audit(name, canaries=2000, tamper=CASES[name].broken[way])
    assert report.violation.rejected and report.violation.error == 1e-4


def test_the_table_of_the_page_is_what_was_measured():
    document = json.loads(methods.RESULTS.read_text())
    assert methods.table(document) in methods.PAGE.read_text()
    assert {row["method"] for row in document["rows"]} == set(CASES)
    for row in document["rows"]:
        assert row["ratio"] <= 1 and not row["violation"]["rejected"] and all(row["broken"].values())
