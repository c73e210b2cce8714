"""Parts of a plan that change what a step does and are paid for in it: a clipping norm that follows a quantile.

>>> q = QuantileClipping(quantile=0.5, share=0.01)
>>> round(q.gradient_noise(2.0), 4), round(q.count_noise(2.0), 4)
(2.0101, 10.0)
>>> 1 / q.gradient_noise(2.0) ** 2 + q.bound**2 / q.count_noise(2.0) ** 2 - 1 / 2.0**2 < 1e-12
True

Every step also asks how many clip units have a norm of at most the current clip C_t. A unit adds b - quantile to that
count, b = 1 or 0, so at most `bound` = max(quantile, 1 - quantile); a unit whose class clips at c times the plan's
norm adds c times that. Gradient and count together are one vector, of norm at most c after dividing each part by its
noise over the plan's noise multiplier z: (C_t c / (z_g C_t))^2 + (bound c / z_b)^2 = (c / z)^2. So the step costs
what it costs without the count at noise multiplier z, whatever the strategy, and the gradient gets a little more
noise, z_g.

References
----------
Andrew, Thakkar, McMahan, Ramaswamy: Differentially private learning with adaptive clipping. NeurIPS 2021 (there b -
1/2; b - quantile needs no correction for the size of the batch).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from confide.errors import InputError, nearest

__all__ = ["QuantileClipping"]


@dataclass(frozen=True)
class QuantileClipping:
    """The clipping norm follows a quantile of the norms of the clip units.

    Parameters
    ----------
    quantile : float
        Share of clip units that should lie within the norm.
    share : float
        Share of each step's privacy (of 1 / noise multiplier squared) that the count takes.
    rate : float
        Learning rate of the logarithm of the norm.

    Raises
    ------
    InputError
        A value outside its range.
    """

    quantile: float = 0.5
    share: float = 0.01
    rate: float = 0.2

    def __post_init__(self) -> None:
        for name, high in (("quantile", 1.0), ("share", 1.0), ("rate", 10.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < high:
                raise InputError(
                    f"{name} is {value!r}", where="clipping", expected=f"a number above 0 and below {high:g}"
                )
            object.__setattr__(self, name, float(value))

    @property
    def bound(self) -> float:
        """Most that one clip unit adds to the count."""
        return max(self.quantile, 1.0 - self.quantile)

    def gradient_noise(self, noise_multiplier: float) -> float:
        """Return z_g, the noise of the sum over the current clipping norm."""
        return noise_multiplier / math.sqrt(1.0 - self.share)

    def count_noise(self, noise_multiplier: float) -> float:
        """Return z_b, the standard deviation of the noise of the count."""
        return self.bound * noise_multiplier / math.sqrt(self.share)

    def to_dict(self, noise_multiplier: float) -> dict[str, Any]:
        """Return plain values for JSON, with the split of the noise."""
        return {
            **asdict(self),
            "gradient_noise": self.gradient_noise(noise_multiplier),
            "count_noise": self.count_noise(noise_multiplier),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], noise_multiplier: float) -> QuantileClipping:
        """Read what `to_dict` gave.

        Raises
        ------
        InputError
            Missing or unknown keys, or a split of the noise that does not follow from them.
        """
        known = ("quantile", "share", "rate", "gradient_noise", "count_noise")
        if not isinstance(values, Mapping) or set(values) != set(known):
            odd = sorted(set(values) ^ set(known)) if isinstance(values, Mapping) else [type(values).__name__]
            close = nearest(odd[0], known) if odd else None
            raise InputError(
                f"a clipping rule with unknown or missing keys: {', '.join(odd)}",
                where="plan clipping",
                expected=", ".join(known),
                remedy=f"did you mean {close!r}?" if close else None,
            )
        found = cls(values["quantile"], values["share"], values["rate"])
        again = found.to_dict(noise_multiplier)
        for name in ("gradient_noise", "count_noise"):
            if not abs(values[name] - again[name]) <= 1e-9 * again[name]:
                raise InputError(
                    f"{name} is {values[name]:.6g} and the plan's noise is split to {again[name]:.6g}",
                    where="plan clipping",
                    expected="1 / gradient_noise^2 + bound^2 / count_noise^2 = 1 / noise_multiplier^2",
                )
        return found
