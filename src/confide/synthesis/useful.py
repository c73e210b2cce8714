"""How small a budget can be before noise says more than the data: a public rule, read before anything is spent."""

from __future__ import annotations

import math

from confide.synthesis.domain import Domain
from confide.synthesis.meter import gaussian_mu

# Half the mean absolute value of a standard normal: total variation of a cell's noise per standard deviation.
_HALF_MEAN_ABSOLUTE = 0.4
# With noise of this size in its one-way tables a synthetic table is made of noise.
USELESS = 0.4


def predicted_error(domain: Domain, patients: float, epsilon: float, delta: float) -> float:
    """Return the mean total variation that noise alone gives one-way tables measured together at full budget.

    Parameters
    ----------
    domain : Domain
    patients : float
        Public number or upper bound.
    epsilon, delta : float
    """
    cells = [column.cells for column in (*domain.static, *domain.visit)] + (
        [len(domain.count_starts)] if domain.visit else []
    )
    joint = math.sqrt(sum(1 - 1 / n for n in cells)) or 1.0
    deviation = joint / gaussian_mu(epsilon, delta) / max(patients, 1.0)
    return _HALF_MEAN_ABSOLUTE * sum(cells) / len(cells) * deviation


def smallest_useful_epsilon(domain: Domain, patients: float, delta: float) -> float:
    """Return the epsilon below which the predicted error of one-way tables is above `USELESS`."""
    low, high = 1e-4, 1e4
    if predicted_error(domain, patients, low, delta) <= USELESS:
        return 0.0
    for _ in range(50):
        middle = math.sqrt(low * high)
        if predicted_error(domain, patients, middle, delta) > USELESS:
            low = middle
        else:
            high = middle
        if high / low < 1.01:
            break
    # rounded up to two digits, so that the figure in the message is itself enough
    scale = 10.0 ** (math.floor(math.log10(high)) - 1)
    return math.ceil(high / scale - 1e-9) * scale
