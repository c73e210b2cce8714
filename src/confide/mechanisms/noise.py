"""Where noise comes from.

>>> noise = OSNoise()                                # seeded by the operating system: what a release uses
>>> noise.normal((2, 3), scale=1.5).shape, noise.testing_only
((2, 3), False)
>>> SeededNoise(7).testing_only                      # a user-set seed: the certificate says "for testing only"
True

A training run takes `noise_for_step(key, step)`: the noise of a step is a function of a secret key and the number of
the step, so a run that was killed and resumed repeats it bit for bit, and two releases never share noise.

`OSNoise` and `SeededNoise` give floating-point normal numbers, whose lowest bits are not those of a real normal
distribution (Mironov 2012). `confide.mechanisms.SecureNoise` closes that gap at a cost; all sources have one interface,
and `add_normal` / `add_laplace` are the calls that are safe with every one of them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt

from confide.errors import InputError

F64 = npt.NDArray[np.float64]
Size = int | tuple[int, ...]


class NoiseSource(Protocol):
    """What every source of noise can do."""

    testing_only: bool

    def normal(self, size: Size, *, scale: float) -> F64:
        """Return normal numbers of standard deviation `scale`."""

    def laplace(self, size: Size, *, scale: float) -> F64:
        """Return Laplace numbers of scale `scale` (standard deviation sqrt(2) scale)."""

    def uniform(self, size: Size) -> F64:
        """Return numbers uniform on (0, 1), never 0 or 1."""

    def add_normal(self, values: npt.ArrayLike, *, scale: float) -> F64:
        """Return values plus normal noise, rounded as the source needs it."""

    def add_laplace(self, values: npt.ArrayLike, *, scale: float) -> F64:
        """Return values plus Laplace noise, rounded as the source needs it."""

    def margin(self, dimensions: int, *, scale: float, norm: int = 2) -> float:
        """Return by how much rounding may enlarge one contributor's part of the sum (L1 or L2 norm); 0 if not at all.

        Whoever clips has to clip to the claimed sensitivity minus this margin.
        """


class _GeneratorNoise:
    """Floating-point noise from a numpy generator."""

    testing_only = False

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def normal(self, size: Size, *, scale: float) -> F64:
        found = np.asarray(self._generator.standard_normal(size))
        found *= check_scale(scale)  # in place: a model's worth of noise is as large as the model
        return found[()]  # a number where one number was asked for

    def laplace(self, size: Size, *, scale: float) -> F64:
        return np.asarray(self._generator.laplace(0.0, check_scale(scale), size))

    def uniform(self, size: Size) -> F64:
        # 52 bits, shifted by half a step: neither 0 nor 1 can occur.
        words = self._generator.integers(0, 2**52, size, dtype=np.uint64)
        return np.asarray((words.astype(np.float64) + 0.5) * 2.0**-52)

    def add_normal(self, values: npt.ArrayLike, *, scale: float) -> F64:
        known = np.asarray(values)
        known = known if known.dtype == np.float32 else known.astype(np.float64, copy=False)
        noise = np.asarray(self.normal(known.shape, scale=scale))
        noise += known
        return noise[()]

    def add_laplace(self, values: npt.ArrayLike, *, scale: float) -> F64:
        values = np.asarray(values, dtype=np.float64)
        return values + self.laplace(values.shape, scale=scale)

    def margin(self, dimensions: int, *, scale: float, norm: int = 2) -> float:
        return 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def _generator(entropy: bytes) -> np.random.Generator:
    # A pool of eight 32-bit words keeps 256 bits of the entropy; the default keeps 128.
    seeds = np.random.SeedSequence(int.from_bytes(entropy, "little"), pool_size=8)
    return np.random.Generator(np.random.SFC64(seeds))


class OSNoise(_GeneratorNoise):
    """Noise from a generator with 256 bits of state, seeded by the operating system; cannot be repeated."""

    def __init__(self) -> None:
        super().__init__(_generator(os.urandom(32)))


class SeededNoise(_GeneratorNoise):
    """Noise that anyone who knows the seed can repeat and subtract: for tests only, and marked so."""

    testing_only = True

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, pool_size=8))))


class KeyedNoise(_GeneratorNoise):
    """Noise that is a function of 32 secret bytes: repeatable for those who hold the key, random for everybody else."""

    def __init__(self, key: bytes) -> None:
        super().__init__(_generator(check_secret(key)))


def noise_for_step(key: bytes, step: int, *, secure: bool = False, stream: str = "gradient") -> NoiseSource:
    """Return the noise of one step of a run.

    Parameters
    ----------
    key : bytes
        32 secret bytes of the run. With a ratcheted key, earlier noise cannot be recomputed from a checkpoint.
    step : int
        Number of the step.
    secure : bool
        Floating-point-safe, cryptographic noise (extra ``secure``).
    stream : str
        What the noise is for; different streams are independent.
    """
    message = b"confide/noise/1\x00" + int(step).to_bytes(8, "big") + stream.encode()
    secret = hmac.new(check_secret(key), message, hashlib.sha256).digest()
    if secure:
        from confide.mechanisms.secure import SecureNoise

        return SecureNoise(secret)
    return KeyedNoise(secret)


def complex_normal(noise: NoiseSource, size: Size, *, scale: float) -> npt.NDArray[np.complex128]:
    """Return circular complex normal numbers: real and imaginary part each have standard deviation `scale`.

    A complex sum with L2 sensitivity C (modulus) plus such noise of scale s C is a Gaussian mechanism with noise
    multiplier s: real and imaginary parts are one real vector of twice the length.
    """
    shape = (size,) if isinstance(size, int) else tuple(size)
    parts = noise.normal((2, *shape), scale=scale)
    return np.asarray(parts[0] + 1j * parts[1])


def check_scale(scale: float) -> float:
    """Return a noise scale, or refuse one that adds no noise."""
    if not 0 < scale < float("inf"):
        raise InputError(f"the noise scale is {scale}", expected="a finite number above 0")
    return float(scale)


def check_secret(key: bytes) -> bytes:
    """Return 32 secret bytes, or refuse anything else."""
    if not isinstance(key, bytes) or len(key) != 32:
        raise InputError("a noise key has the wrong shape", expected="32 secret bytes")
    return key
