"""A few hundred random mechanisms: the certified interval holds the value of a ten times finer grid."""

import numpy as np
import pytest

from confide.accounting import SampledGaussian
from confide.errors import InputError


def random_case(rng):
    sigma, rate = 0.5 * 40 ** rng.uniform(), 1e-4 * 4e3 ** rng.uniform()
    k, steps, delta = int(60 ** rng.uniform()), int(3000 ** rng.uniform()), 1e-12 * 1e8 ** rng.uniform()
    return SampledGaussian(float(sigma), float(rate), k), steps, float(delta)


def read(composition, remove, upper, step, tilt, delta):
    """Epsilon on this grid, or on the finest that fits."""
    while True:
        try:
            curve = composition.curve(remove, upper, step=step, tilt=tilt, read=delta, aliasing=1e-14)
            return curve.epsilon(delta)
        except InputError:
            step *= 2


@pytest.mark.parametrize("chunk", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 21))])
def test_the_interval_holds_the_value_of_a_ten_times_finer_grid(chunk):
    rng = np.random.default_rng(100 + chunk)
    checked = 0
    while checked < 15:
        mechanism, steps, delta = random_case(rng)
        composition = mechanism.guarantee(steps)._composition
        if max(composition.sizing(remove, delta=delta).loss for remove in (True, False)) > 60:
            continue
        for remove in (True, False):
            low, high = composition._epsilon(remove, delta, 1e-2, 1e-5, 0.0)
            if not 0 < high < np.inf:
                continue
            at = composition.sizing(remove, epsilon=high)
            finer = composition._place(remove, at, delta, 1e-2).step / 10
            for upper in (True, False):
                value = read(composition, remove, upper, finer, at.tilt, delta)
                if upper:
                    assert low <= value * (1 + 1e-9) + 1e-12
                else:
                    assert value <= high * (1 + 1e-9) + 1e-12
        checked += 1
