"""The figures on a real histogram: ChestX-ray14, 30,805 patients, 112,120 images, up to 184 a patient."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from confide.planning import Comparison, compare, plan

NIH = Path(str(files("confide.data") / "sets" / "nih14_entry_counts.csv"))
CONSTANTS = {"epsilon": 4.0, "delta": 1e-6, "noise_multiplier": 1.0, "steps": 2000}
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "planning" / "results.json"


@pytest.fixture(scope="module")
def nih() -> Comparison:
    return compare(NIH, **CONSTANTS)


@pytest.mark.slow
def test_the_figures_of_the_page(nih: Comparison) -> None:
    individual, uniform, reference = (nih.row(name) for name in ("individual", "uniform", "truncate(1)"))
    assert sum(c.contributors or 0 for c in individual.classes) == 30805
    assert individual.entries_used == 1.0
    assert reference.entries_used == pytest.approx(0.27, abs=0.005)
    assert (individual.expected_entries or 0) / (reference.expected_entries or 1) == pytest.approx(0.991, abs=0.002)
    assert (uniform.expected_entries or 0) / (reference.expected_entries or 1) == pytest.approx(0.019, abs=0.002)
    assert all(0.99 <= c.epsilon / c.budget <= 1 for c in individual.classes)
    assert nih.recommended == "scale"
    recorded = {row["strategy"]: row for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    for row in nih:
        assert recorded[row.strategy]["effective_noise"] == pytest.approx(row.effective_noise, rel=2e-3)
        assert recorded[row.strategy]["epsilon_max"] == pytest.approx(row.epsilon_max, rel=2e-3)


@pytest.mark.slow
def test_rates_and_clips_fall_with_k_over_the_whole_histogram(nih: Comparison) -> None:
    rates = [c.rate for c in nih.row("individual").classes]
    clips = [c.clip_norm for c in nih.row("scale").classes]
    assert rates == sorted(rates, reverse=True) and clips == sorted(clips, reverse=True)


def test_the_largest_patient_keeps_the_budget() -> None:
    made = plan({1: 30000, 184: 1}, **CONSTANTS)  # type: ignore[arg-type]
    assert 0.99 * 4 <= made.class_of(184).epsilon <= 4
    assert made.class_of(184).rate * 184 / made.class_of(1).rate == pytest.approx(0.97, abs=0.01)
