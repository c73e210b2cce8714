"""Noise for the sum of a step, keyed anew in every step, from the sources of `confide.mechanisms`.

>>> source = keyed_noise("default", bytes(32), 0)
>>> source.add_normal([0.0, 0.0, 0.0], scale=2.0).shape
(3,)
"""

from __future__ import annotations

import time

import numpy as np

from confide.errors import InputError, nearest
from confide.mechanisms import NoiseSource, noise_for_step

KINDS = ("default", "device", "secure")


def keyed_noise(kind: str, key: bytes, step: int) -> NoiseSource:
    """Return the noise source of one step.

    Parameters
    ----------
    kind : str
        "default" (a generator with 256 secret bits), "device" (the same on the host; `PrivateRun` draws this one on the
        device of the sums), or "secure" (floating-point-safe and cryptographic, slower).
    key : bytes
        Noise key of the step, 32 bytes.
    step : int

    Raises
    ------
    InputError
        Another kind; for "secure" without its extra, the install command.
    """
    if kind not in KINDS:
        close = nearest(kind, KINDS)
        raise InputError(
            f"unknown noise {kind!r}",
            where="noise",
            expected=" or ".join(map(repr, KINDS)),
            remedy=f"did you mean {close!r}?" if close else None,
        )
    return noise_for_step(key, step, secure=kind == "secure")


def noise_seconds(parameters: int, steps: int, *, noise: str = "secure") -> float:
    """Return about how many seconds the noise of a whole run takes on this machine, from a short measurement.

    Parameters
    ----------
    parameters : int
        Number of trainable values of the model.
    steps : int
    noise : str
    """
    source = keyed_noise(noise, bytes(32), 0)
    values = np.zeros(1 << 14)
    source.add_normal(values[:64], scale=1.0)
    start = time.perf_counter()
    source.add_normal(values, scale=1.0)
    return (time.perf_counter() - start) / len(values) * parameters * steps
