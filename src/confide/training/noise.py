"""Noise for the sum of a step, from a generator keyed anew in every step.

>>> source = keyed_noise("default", bytes(32))
>>> source.normal(3, scale=2.0).shape
(3,)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from confide.contributors import derive
from confide.errors import InputError, nearest

KINDS = ("default", "secure")


class NoiseSource(Protocol):
    """What gives normal noise; `confide.mechanisms` has several."""

    def normal(self, size: int, *, scale: float) -> npt.NDArray[np.float64]:
        """Return `size` values of mean 0 and standard deviation `scale`."""
        ...


class PhiloxNoise:
    """Normal noise in double precision from Philox 4x64 with a secret 128-bit key.

    Parameters
    ----------
    key : bytes
        32 secret bytes, used once.
    """

    def __init__(self, key: bytes) -> None:
        secret = int.from_bytes(derive(key, "philox", 16), "little")
        self._generator = np.random.Generator(np.random.Philox(key=secret))

    def normal(self, size: int, *, scale: float) -> npt.NDArray[np.float64]:
        """Return `size` values of mean 0 and standard deviation `scale`."""
        return self._generator.normal(0.0, scale, size)


def keyed_noise(kind: str, key: bytes) -> NoiseSource:
    """Return the noise source of one step.

    Parameters
    ----------
    kind : str
        "default" (Philox) or "secure" (floating-point-safe and cryptographic, slower).
    key : bytes
        Noise key of the step, 32 bytes.
    """
    if kind == "default":
        return PhiloxNoise(key)
    if kind == "secure":
        from confide.mechanisms import SecureNoise

        source: NoiseSource = SecureNoise(key=key)
        return source
    raise InputError(
        f"unknown noise {kind!r}",
        where="noise",
        expected=" or ".join(KINDS),
        remedy=f"did you mean {nearest(kind, KINDS)!r}?" if nearest(kind, KINDS) else None,
    )
