"""What cannot be had is refused in words: no silent nan, no crash, no optimistic number."""

from __future__ import annotations

import numpy as np
import pytest

from confide.accounting import SampledGaussian, calibrate_noise
from confide.errors import InputError, UnreachableError


def test_a_target_nobody_can_reach_names_what_can_be_reached():
    with pytest.raises(UnreachableError, match="no noise reaches") as caught:
        calibrate_noise(1e-9, delta=1e-12, rate=0.5, steps=10**6)
    assert "noise 10,000 reaches it" in str(caught.value)


def test_a_mechanism_that_is_too_large_to_certify_is_refused_before_memory_is_used(monkeypatch):
    from confide.accounting import pairs

    monkeypatch.setattr(pairs, "_MOST", 1 << 12)
    with pytest.raises(InputError, match="too much to certify"):
        SampledGaussian(noise_multiplier=3.1, rate=0.01, entries=61).guarantee(100).epsilon(1e-6)


def test_large_mixtures_computed_in_blocks_are_the_same(monkeypatch):
    from confide.accounting import pairs

    rng = np.random.default_rng(0)
    weights, slopes, x = rng.normal(size=60), rng.random(60), np.sort(rng.normal(size=5000) * 10)
    whole = pairs._log_sums(weights, slopes, x)
    monkeypatch.setattr(pairs, "_BLOCK", 1 << 12)
    for a, b in zip(pairs._log_sums(weights, slopes, x), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
