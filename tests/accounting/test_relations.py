"""A mechanism is priced only under a relation that its pair belongs to."""

from __future__ import annotations

import pytest

from confide.accounting import Gaussian, LocalGaussian, ReplaceSampledGaussian, SampledGaussian, mechanism_from_dict
from confide.errors import InputError


def test_sampled_gaussian_refuses_replace_one() -> None:
    # exchanging a person of norm 1 moves the sum by 2: epsilon 9.997 at mu = 2, not 4.377 at mu = 1
    with pytest.raises(InputError, match="replace-one"):
        SampledGaussian(1.0, 1.0, relation="replace-one")
    facts = SampledGaussian(1.0, 1.0).to_dict() | {"relation": "replace-one"}
    with pytest.raises(InputError, match="replace-one"):
        mechanism_from_dict(facts)


def test_replace_one_is_priced_by_its_own_pair() -> None:
    whole = ReplaceSampledGaussian(noise_multiplier=1.0, rate=1.0, entries=1).guarantee().epsilon(1e-5)
    assert whole == pytest.approx(Gaussian(noise_multiplier=0.5).guarantee().epsilon(1e-5), rel=2e-3)
    assert whole > 9.9


def test_local_mechanisms_are_replace_one_only() -> None:
    with pytest.raises(InputError, match="add/remove"):
        LocalGaussian(1.0, relation="add/remove")
