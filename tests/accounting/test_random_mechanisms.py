"""A few hundred random mechanisms: the certified interval holds the value of a ten times finer grid."""

import numpy as np
import pytest

from confide.accounting import SampledGaussian


def random_case(rng):
    sigma, rate = 0.5 * 40 ** rng.uniform(), 1e-4 * 4e3 ** rng.uniform()
    k, steps, delta = int(60 ** rng.uniform()), int(3000 ** rng.uniform()), 1e-12 * 1e8 ** rng.uniform()
    return SampledGaussian(float(sigma), float(rate), k), steps, float(delta)


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
            coarse = composition._place(remove, at, delta, 1e-2)
            for upper in (True, False):
                finer = composition.curve(
                    remove,
                    upper,
                    step=composition.coarsest(delta, coarse.step / 10),
                    tilt=at.tilt,
                    read=delta,
                    aliasing=1e-14,
                ).epsilon(delta)
                if upper:
                    assert low <= finer * (1 + 1e-9) + 1e-12
                else:
                    assert finer <= high * (1 + 1e-9) + 1e-12
        checked += 1
