"""Correlated noise from a Toeplitz factor: its coefficients, its sensitivity to a person's pattern, its error.

Step t adds clipped sums x_t. Instead of x_t + z_t, the run releases x + C^-1 z for a lower-triangular Toeplitz matrix
C: noise of one step is partly taken back in later ones, so that the running sums (what a model's weights are) carry
less of it. Releasing x + C^-1 z is as private as releasing C x + z. A contributor who takes part in the steps of a
set S, each time with norm at most 1, moves C x by at most |sum_{i in S} C[:, i]|, as all entries of C are 0 or more.

The pattern: at least `separation` steps b between two participations of one contributor, hence at most ceil(steps /
b) of them. Every contributor belongs to one of b groups, and step t looks at group t mod b alone; all entries of a
contributor that a step uses are one participation.

=========  =====================================  ===========================================  ==================
kind       C                                      largest change                               amplification
=========  =====================================  ===========================================  ==================
banded     b bands                                sqrt(ceil(steps / b)) x norm of a column     yes, in the group
blt        c_0 + sum of decaying exponentials     |sum_j C[:, j b]| (columns fall, >= 0)       none claimed
=========  =====================================  ===========================================  ==================

Both are scaled so that the largest change is at most sqrt(ceil(steps / b)): a plan's noise multiplier then means the
same with and without correlation, noise over what one participation can change.

>>> c = Correlation.make("banded(4)", steps=100)
>>> c.rounds(100), c.amplifies, round(c.sensitivity(100) / 5, 6)
(25, True, 1.0)
>>> c.noise_ratio(100) < Correlation.make("banded(1)", steps=100).noise_ratio(100)
True

References
----------
Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu: (Amplified) banded matrix factorization. NeurIPS 2023
(Theorem 4: b-banded C with b groups is ceil(T / b) sampled Gaussian mechanisms).
Kalinin, Lampert: Banded square root matrix factorization for differentially private model training. NeurIPS 2024
(Theorem 2: for falling, non-negative Toeplitz columns the worst pattern is 0, b, 2b, ...).
McMahan, Xu, Zhang: A hassle-free algorithm for strong differential privacy in federated learning systems (BLT). 2024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from confide.accounting.mechanisms import _count
from confide.accounting.pairs import Floats
from confide.errors import InputError, nearest

KINDS = ("banded", "blt")
# Kept below the claim by this factor, so that rounding in a recomputation cannot lift it above.
_SLACK = 1e-9
_BUFFERS = 3


@dataclass(frozen=True)
class Correlation:
    """A factor C and the participation pattern it is made for.

    Parameters
    ----------
    kind : str
        ``"banded"`` or ``"blt"``.
    separation : int
        b, least number of steps between two participations; also the number of groups.
    coefficients : tuple of float
        banded: c_0, ..., c_(b-1). blt: c_0 alone.
    weights, decays : tuple of float
        blt: c_t = c_0 sum_i weights_i decays_i^(t-1) for t >= 1.
    """

    kind: str
    separation: int
    coefficients: tuple[float, ...]
    weights: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown correlation {self.kind!r}", where="correlation", expected=" or ".join(KINDS))
        _count("separation", self.separation, 1)
        values = np.array([*self.coefficients, *self.weights, *self.decays], float)
        if not len(self.coefficients) or not np.isfinite(values).all() or (values < 0).any():
            raise InputError(
                "the factor's numbers are not finite and at least 0", where="correlation", expected="0 or more"
            )
        if self.coefficients[0] <= 0:
            raise InputError("the factor's first coefficient is 0", where="correlation", expected="a number above 0")
        if self.kind == "banded" and len(self.coefficients) > self.separation:
            raise InputError(
                f"{len(self.coefficients)} bands for a separation of {self.separation}",
                where="correlation",
                expected="at most as many bands as steps between two participations",
            )
        if self.kind == "blt":
            falling = sum(self.weights) <= 1 + 1e-12 and all(d < 1 for d in self.decays)
            if len(self.coefficients) != 1 or len(self.weights) != len(self.decays) or not falling:
                raise InputError(
                    "the factor's columns do not fall",
                    where="correlation",
                    expected="one leading coefficient, weights that add up to 1 at most, decays below 1",
                )

    @classmethod
    def make(cls, text: str, *, steps: int) -> Correlation:
        """Optimise a factor for the running sums of `steps` steps.

        Parameters
        ----------
        text : str
            ``"banded(b)"`` or ``"blt(b)"`` with the separation b.
        steps : int

        Raises
        ------
        InputError
            Another text, or a separation above the number of steps.
        """
        match = re.fullmatch(r"\s*([a-z]+)\s*\(\s*(\d+)\s*\)\s*", str(text).lower())
        if not match or match[1] not in KINDS:
            close = nearest(match[1], KINDS) if match else None
            raise InputError(
                f"{text!r} is no correlation of noise",
                where="correlation",
                expected='"banded(b)" or "blt(b)", b the least number of steps between two participations of a person',
                remedy=f"did you mean {close}({match[2]})?" if match and close else None,
            )
        separation = int(match[2])
        if not 1 <= separation <= steps:
            raise InputError(
                f"a separation of {separation} steps in a run of {steps}",
                where="correlation",
                expected=f"a number from 1 to {steps}",
            )
        return _banded(separation, steps) if match[1] == "banded" else _blt(separation, steps)

    @property
    def amplifies(self) -> bool:
        """True where secret sampling inside the groups may be counted."""
        return self.kind == "banded"

    @property
    def memory(self) -> int:
        """How many vectors of the model's size the noise of a step needs from the steps before."""
        return len(self.coefficients) - 1 if self.kind == "banded" else len(self.decays)

    def rounds(self, steps: int) -> int:
        """Return the largest number of participations of one contributor."""
        return -(-int(steps) // self.separation)

    def column(self, steps: int) -> Floats:
        """Return the first column of C, float64 [steps]."""
        out = np.zeros(steps)
        head = np.array(self.coefficients)[:steps]
        out[: len(head)] = head
        if self.kind == "blt" and steps > 1:
            powers = np.arange(steps - 1)
            for weight, decay in zip(self.weights, self.decays, strict=True):
                out[1:] += self.coefficients[0] * weight * decay**powers
        return out

    def sensitivity(self, steps: int) -> float:
        """Return the largest change of C x by one contributor with contributions of norm at most 1."""
        from scipy import signal

        c = self.column(steps)
        if self.kind == "banded":  # columns b or more apart do not overlap
            return float(np.linalg.norm(c) * math.sqrt(self.rounds(steps)))
        hits = np.zeros(steps)
        hits[:: self.separation] = 1.0
        return float(np.linalg.norm(signal.fftconvolve(hits, c)[:steps]))

    def check(self, steps: int) -> bool:
        """Whether the sensitivity is within what the accounting assumes, sqrt(rounds)."""
        return self.sensitivity(steps) <= math.sqrt(self.rounds(steps)) * (1 + 1e-12)

    def noise(self, steps: int) -> Floats:
        """Return the standard deviation of the noise in each step over the noise multiplier, float64 [steps]."""
        return np.asarray(np.sqrt(np.cumsum(self._inverse(steps) ** 2)))

    def noise_ratio(self, steps: int) -> float:
        """Return the root mean square noise of the running sums over that of independent noise of the same size."""
        w = np.cumsum(self._inverse(steps))
        left = np.arange(steps, 0, -1)
        return float(math.sqrt(float(left @ w**2) / float(left.sum())))

    def _inverse(self, steps: int) -> Floats:
        """Return the first column of C^-1, float64 [steps]."""
        from scipy import signal

        impulse = np.eye(1, steps)[0]
        if self.kind == "banded":
            return np.asarray(signal.lfilter([1.0], self.coefficients, impulse))
        top, bottom = _rational(np.array(self.weights), np.array(self.decays))
        return np.asarray(signal.lfilter(bottom, top, impulse)) / self.coefficients[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "kind": self.kind,
            "separation": self.separation,
            "coefficients": list(self.coefficients),
            "weights": list(self.weights),
            "decays": list(self.decays),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Correlation:
        """Read what `to_dict` gave.

        Raises
        ------
        InputError
            Missing, unknown or impossible values.
        """
        try:
            lists = {k: tuple(float(v) for v in values[k]) for k in ("coefficients", "weights", "decays")}
            if set(values) != {"kind", "separation", *lists}:
                raise ValueError("unknown keys")
            return cls(str(values["kind"]), int(values["separation"]), **lists)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"a correlation that cannot be read: {error}", where="plan correlation") from error


@lru_cache(maxsize=32)
def _banded(bands: int, steps: int) -> Correlation:
    """Minimise |A C^-1|_F |column| over the coefficients; A sums up. Starts at the square root of A, cut to b bands."""
    from scipy import optimize, signal

    root = np.ones(bands)
    for i in range(1, bands):
        root[i] = root[i - 1] * (2 * i - 1) / (2 * i)
    c = root
    if bands > 1:
        left = np.arange(steps, 0, -1, dtype=float)

        def value(tail: Floats) -> tuple[float, Floats]:
            c = np.concatenate([[1.0], tail])
            inverse = signal.lfilter([1.0], c, np.eye(1, steps)[0])
            w = np.cumsum(inverse)
            if not np.isfinite(w).all() or np.abs(w).max() > 1e12:
                return 1e12, np.zeros_like(tail)
            error, norm = float(left @ w**2), float(c @ c)
            # d w_t / d c_j = -(w * inverse)_(t - j): correlate the weighted w with it
            both = signal.fftconvolve(w, inverse)[:steps]
            slope = np.array([-2.0 * float((left * w)[j:] @ both[: steps - j]) for j in range(1, bands)])
            return math.log(error) + math.log(norm), slope / error + 2 * tail / norm

        found = optimize.minimize(value, root[1:], jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * (bands - 1))
        if value(found.x)[0] < value(root[1:])[0]:
            c = np.concatenate([[1.0], found.x])
    c = c / (np.linalg.norm(c) * (1 + _SLACK))
    return Correlation("banded", bands, tuple(float(v) for v in c))


def _rational(weights: Floats, decays: Floats) -> tuple[Floats, Floats]:
    """Return C = top / bottom as polynomials, for 1 + x sum_i w_i / (1 - d_i x)."""
    bottom = np.array([1.0])
    for d in decays:
        bottom = np.convolve(bottom, [1.0, -d])
    top = bottom.copy()
    for i, w in enumerate(weights):
        part = np.array([w])
        for j, d in enumerate(decays):
            if j != i:
                part = np.convolve(part, [1.0, -d])
        top[1 : 1 + len(part)] += part
    return top, bottom


@lru_cache(maxsize=32)
def _blt(separation: int, steps: int) -> Correlation:
    """Minimise |A C^-1|_F x sensitivity over weights and decays (a few numbers, no gradient needed)."""
    from scipy import optimize, signal

    left = np.arange(steps, 0, -1, dtype=float)
    impulse = np.eye(1, steps)[0]

    def parts(x: Floats) -> tuple[Floats, Floats]:
        shares = np.exp(x[:_BUFFERS] - np.logaddexp(0.0, np.logaddexp.reduce(x[:_BUFFERS])))  # below 1 in sum
        return shares, 1 / (1 + np.exp(-x[_BUFFERS:]))

    def make(x: Floats) -> Correlation:
        weights, decays = parts(x)
        one = Correlation("blt", separation, (1.0,), tuple(map(float, weights)), tuple(map(float, decays)))
        scale = math.sqrt(one.rounds(steps)) / (one.sensitivity(steps) * (1 + _SLACK))
        return Correlation("blt", separation, (scale,), one.weights, one.decays)

    def value(x: Floats) -> float:
        if np.abs(x).max() > 20:
            return 1e9
        weights, decays = parts(x)
        top, bottom = _rational(weights, decays)
        w = np.cumsum(signal.lfilter(bottom, top, impulse))
        if not np.isfinite(w).all():
            return 1e9
        one = Correlation("blt", separation, (1.0,), tuple(map(float, weights)), tuple(map(float, decays)))
        return 0.5 * math.log(float(left @ w**2)) + math.log(one.sensitivity(steps))

    starts = []
    for slow in (0.5, 2.0, 8.0):
        near = np.clip(
            np.array([0.4, 1 - 4 / (slow * separation + 5), 1 - 0.7 / (slow * separation + 1)]), 0.05, 0.99999
        )
        starts.append(np.concatenate([[-1.2, -1.2, -1.5], np.log(near / (1 - near))]))
    options = {"maxiter": 60, "maxfun": 700}
    found = [optimize.minimize(value, x, method="L-BFGS-B", options=options) for x in starts]
    return make(min(found, key=lambda one: float(one.fun)).x)
