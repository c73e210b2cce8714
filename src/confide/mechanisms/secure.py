"""Noise without floating-point gaps: exact discrete distributions on a lattice, from a cryptographic key stream.

>>> noise = SecureNoise()
>>> released = noise.add_normal([1.0, 2.0, 3.0], scale=0.5)
>>> lattice = noise.lattice(scale=0.5)
>>> bool((released / lattice == (released / lattice).round()).all())
True

How it works. For a noise scale s the lattice is s / 2^20. The sum is rounded to the lattice, an integer from the exact
discrete Gaussian (or Laplace) of scale 2^20 is added as an integer, and the result is multiplied by the lattice once:
what leaves is a function of an integer, so no low bit says anything. Samples are exact: only integer comparisons with
bits of ChaCha20, no exponential or logarithm in floating point. It costs about 2 microseconds a number on one core.

The rounding rule. Rounding the sum moves each coordinate's change by at most one lattice step, so one contributor with
clipped norm c changes the rounded sum by at most c + sqrt(d) lattice in L2 (c + d lattice in L1). Contributions must
therefore be clipped to C - `margin`, and the accounted sensitivity stays C: see `SecureNoise.clip_for`. This counts on
a sum whose own floating-point error is below the lattice: sum in float64.

What the accountant may say. The discrete Gaussian satisfies the same Renyi (concentrated) bound as the continuous one
(Canonne et al., Theorem 4); its (epsilon, delta) curve differs from the continuous one by a relative amount of order
2^-40 at this lattice (a Riemann sum with step 2^-20), far below the accountant's own rounding.

References
----------
Canonne, Kamath, Steinke: The discrete Gaussian for differential privacy. NeurIPS 2020, Algorithms 1 to 3.
Mironov: On significance of the least significant bits for differential privacy. CCS 2012.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from confide.errors import InputError, MissingExtraError
from confide.mechanisms.noise import F64, Size, check_scale, check_secret

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
LATTICE_BITS = 20
_CHUNK = 1 << 15


class KeyStream:
    """64-bit words of ChaCha20 under a secret key."""

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        except ImportError as error:
            raise MissingExtraError(
                "secure noise needs the cryptography package, which is not installed", "secure"
            ) from error
        self._cipher = Cipher(algorithms.ChaCha20(check_secret(key), bytes(16)), mode=None).encryptor()
        self._zeros = bytes(8 * _CHUNK)

    def words(self, count: int) -> U64:
        """Return the next `count` words."""
        parts = [self._cipher.update(self._zeros) for _ in range(count // _CHUNK)]
        parts.append(self._cipher.update(self._zeros[: 8 * (count % _CHUNK)]))
        return np.frombuffer(b"".join(parts), dtype="<u8").astype(np.uint64, copy=False)

    def one_in(self, k: int, count: int) -> Bools:
        """Return exact Bernoulli(1/k) coins."""
        share = (1 << 64) // k
        words = self.words(count)
        while True:
            # Words above k * share belong to no outcome and are drawn again, so that the coin is exactly 1/k.
            again = np.flatnonzero(words > np.uint64(k * share - 1)) if k & (k - 1) else np.empty(0, dtype=np.int64)
            if not len(again):
                return words < np.uint64(share)
            words = words.copy()
            words[again] = self.words(len(again))


def _exp_fraction(stream: KeyStream, numerator: U64, bits: int) -> Bools:
    """Return exact Bernoulli(exp(-numerator / 2^bits)) coins for numerators up to 2^bits (Algorithm 1, gamma <= 1)."""
    result = np.zeros(len(numerator), dtype=bool)
    active = np.arange(len(numerator))
    k = 1
    while len(active):
        go_on = (stream.words(len(active)) >> np.uint64(64 - bits)) < numerator[active]
        if k > 1:
            go_on &= stream.one_in(k, len(active))
        result[active[~go_on]] = k % 2 == 1
        active = active[go_on]
        k += 1
    return result


def _exp(stream: KeyStream, numerator: U64, bits: int) -> Bools:
    """Return exact Bernoulli(exp(-numerator / 2^bits)) coins for any numerator (Algorithm 1)."""
    one = np.uint64(1) << np.uint64(bits)
    result = _exp_fraction(stream, numerator & (one - np.uint64(1)), bits)
    whole = (numerator >> np.uint64(bits)).astype(np.int64)
    active = np.flatnonzero(result & (whole > 0))
    while len(active):
        stays = _exp_fraction(stream, np.full(len(active), one), bits)
        result[active[~stays]] = False
        whole[active] -= 1
        active = active[stays & (whole[active] > 0)]
    return result


def discrete_laplace(stream: KeyStream, count: int, bits: int) -> I64:
    """Return exact samples of P(x) proportional to exp(-|x| / 2^bits) on the integers (Algorithm 2)."""
    out, have = np.empty(count, dtype=np.int64), 0
    while have < count:
        tries = int((count - have) * 1.7) + 16
        low = stream.words(tries) >> np.uint64(64 - bits) if bits else np.zeros(tries, dtype=np.uint64)
        low = low[_exp_fraction(stream, low, bits)] if bits else low
        high = np.zeros(len(low), dtype=np.int64)
        active = np.arange(len(low))
        while len(active):
            active = active[_exp_fraction(stream, np.full(len(active), 2, dtype=np.uint64), 1)]
            high[active] += 1
        size = low.astype(np.int64) + (high << bits)
        negative = (stream.words(len(size)) & np.uint64(1)).astype(bool)
        found = np.where(negative, -size, size)[~(negative & (size == 0))][: count - have]
        out[have : have + len(found)] = found
        have += len(found)
    return out


def discrete_gaussian(stream: KeyStream, count: int, bits: int) -> I64:
    """Return exact samples of P(x) proportional to exp(-x^2 / 2^(2 bits + 1)) on the integers (Algorithm 3).

    The standard deviation parameter is 2^bits. The proposal is a discrete Laplace of the same scale t = 2^bits (any
    scale is valid), so that every quantity is a multiple of 2^-(2 bits + 1) and fits into 64 bits.
    """
    out, have = np.empty(count, dtype=np.int64), 0
    while have < count:
        tries = min(int((count - have) * 1.4) + 16, _CHUNK)
        proposal = discrete_laplace(stream, tries, bits)
        away = np.abs(np.abs(proposal) - (1 << bits)).astype(np.uint64)
        found = proposal[_exp(stream, away * away, 2 * bits + 1)][: count - have]
        out[have : have + len(found)] = found
        have += len(found)
    return out


class SecureNoise:
    """Floating-point-safe, cryptographic noise on a lattice.

    Parameters
    ----------
    key : bytes, optional
        32 secret bytes; by default from the operating system.

    Raises
    ------
    MissingExtraError
        The package ``cryptography`` is not installed.
    """

    testing_only = False

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = KeyStream(os.urandom(32) if key is None else key)

    def lattice(self, *, scale: float) -> float:
        """Return the lattice step for a noise scale."""
        return check_scale(scale) * 2.0**-LATTICE_BITS

    def margin(self, dimensions: int, *, scale: float, norm: int = 2) -> float:
        """Return by how much rounding may enlarge one contributor's part: sqrt(d) (L2) or d (L1) lattice steps."""
        return (math.sqrt(dimensions) if norm == 2 else dimensions) * self.lattice(scale=scale)

    def clip_for(self, clip_norm: float, *, noise_multiplier: float, dimensions: int) -> float:
        """Return the norm to clip to, so that the accounted sensitivity is `clip_norm` after rounding.

        Raises
        ------
        InputError
            There are so many dimensions that nothing would be left.
        """
        left = clip_norm - self.margin(dimensions, scale=noise_multiplier * clip_norm)
        if left <= 0:
            raise InputError(
                f"secure noise cannot serve {dimensions} dimensions at noise multiplier {noise_multiplier:g}",
                expected=f"sqrt(dimensions) * noise multiplier below 2^{LATTICE_BITS}",
                remedy='use noise = "os", a smaller model or less noise',
            )
        return left

    def normal(self, size: Size, *, scale: float) -> F64:
        """Return lattice points from the discrete Gaussian; `add_normal` is the safe way to add them to values."""
        return self.add_normal(np.zeros(size), scale=scale)

    def laplace(self, size: Size, *, scale: float) -> F64:
        """Return lattice points from the discrete Laplace distribution."""
        return self.add_laplace(np.zeros(size), scale=scale)

    def uniform(self, size: Size) -> F64:
        """Return numbers uniform on (0, 1) with 52 bits."""
        count = size if isinstance(size, int) else math.prod(size)
        words = self._stream.words(count) >> np.uint64(12)
        return np.asarray((words.astype(np.float64) + 0.5) * 2.0**-52).reshape(size)

    def add_normal(self, values: npt.ArrayLike, *, scale: float) -> F64:
        """Round values to the lattice and add discrete Gaussian noise of standard deviation `scale`."""
        steps = self._rounded(values, scale)
        return self._leave(steps, discrete_gaussian(self._stream, steps.size, LATTICE_BITS), scale)

    def add_laplace(self, values: npt.ArrayLike, *, scale: float) -> F64:
        """Round values to the lattice and add discrete Laplace noise of scale `scale`."""
        steps = self._rounded(values, scale)
        return self._leave(steps, discrete_laplace(self._stream, steps.size, LATTICE_BITS), scale)

    def _rounded(self, values: npt.ArrayLike, scale: float) -> I64:
        steps = np.rint(np.asarray(values, dtype=np.float64) / self.lattice(scale=scale))
        # Values are clipped sums; whatever cannot be one is brought into range without a branch on the data.
        return np.asarray(np.clip(np.nan_to_num(steps), -(2.0**52), 2.0**52).astype(np.int64))

    def _leave(self, steps: I64, noise: I64, scale: float) -> F64:
        return np.asarray((steps + noise.reshape(steps.shape)).astype(np.float64) * self.lattice(scale=scale))

    def __repr__(self) -> str:
        return "SecureNoise()"
