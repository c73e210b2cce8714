"""Mechanisms beyond the sampled Gaussian: other noise, other sampling, other ways to bound a contributor.

>>> round(RandomisedResponse(epsilon=1.0).guarantee().epsilon(1e-9), 6)
1.0
>>> capped = CappedSampledGaussian(noise_multiplier=1.0, rate=0.05, entries=8, most=1).guarantee(steps=500)
>>> 74.0 < capped.epsilon(1e-5) < 74.4
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import special

from confide.accounting.mechanisms import RELATIONS, Mechanism, _count, _number, binomial
from confide.accounting.pairs import AtomPair, DoubleMixturePair, Floats, MixturePair, Pair
from confide.accounting.renyi import RDP_ORDERS, atoms_rdp, gaussian_rdp, mixture_rdp
from confide.errors import InputError


class _Mixture(Mechanism):
    """Mechanisms whose pair is a mixture of shifted Gaussians against the unshifted one."""

    noise_multiplier: float

    def _mixture(self) -> tuple[Floats, Floats]:
        """Return ascending shifts [m] in units of C and their probabilities [m]."""
        raise AssertionError("every subclass states its mixture")

    @property
    def mu(self) -> float | None:
        """Gaussian-DP parameter where only one shift is possible, else None."""
        s, _ = self._mixture()
        return float(s[0]) / self.noise_multiplier if len(s) == 1 else None

    def pair(self) -> Pair | None:
        """Return the mixture against N(0, s^2)."""
        s, w = self._mixture()
        return MixturePair(float(self.noise_multiplier), s, w) if s.max() > 0 else None

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the Renyi divergences by quadrature, with its error added."""
        if self.mu is not None:
            return gaussian_rdp(self.mu, orders)
        return mixture_rdp(self.noise_multiplier, *self._mixture(), orders)


def _join(shifts: Floats, weights: Floats) -> tuple[Floats, Floats]:
    s, where = np.unique(shifts, return_inverse=True)
    w = np.bincount(where, weights)
    return s[w > 0], w[w > 0]


@dataclass(frozen=True)
class ContributorSampledGaussian(_Mixture):
    """A contributor is drawn with probability `rate`; their entries' weighted sum is clipped as one to norm 1."""

    noise_multiplier: float
    rate: float
    clip_norm: float = 1.0
    relation: str = "add/remove"
    kind: ClassVar[str] = "contributor-sampled-gaussian"

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _number("rate", self.rate, 0, 1, open_low=False)
        _number("clip_norm", self.clip_norm, 0, math.inf, open_low=False)
        self._check_relation()

    def _mixture(self) -> tuple[Floats, Floats]:
        return _join(np.array([0.0, float(self.clip_norm)]), np.array([1 - self.rate, self.rate]))


@dataclass(frozen=True)
class ReclippedSampledGaussian(_Mixture):
    """Entries are drawn one by one with probability `rate`; the sum of the drawn ones is clipped as one to norm 1.

    The contributor takes part with probability 1 - (1 - rate)^entries, then with norm at most 1.
    """

    noise_multiplier: float
    rate: float
    entries: int = 1
    relation: str = "add/remove"
    kind: ClassVar[str] = "reclipped-sampled-gaussian"
    assumed_public: ClassVar[tuple[str, ...]] = ("number of entries of the contributor",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _number("rate", self.rate, 0, 1, open_low=False)
        _count("entries", self.entries, 0)
        self._check_relation()

    def _mixture(self) -> tuple[Floats, Floats]:
        none = 0.0 if self.rate == 1 and self.entries else math.exp(self.entries * math.log1p(-self.rate))
        return _join(np.array([0.0, 1.0]), np.array([none, 1 - none]))


@dataclass(frozen=True)
class CappedSampledGaussian(_Mixture):
    """As `SampledGaussian`, but at most `most` of a contributor's drawn entries (a uniform subset) count."""

    noise_multiplier: float
    rate: float
    entries: int
    most: int
    clip_norm: float = 1.0
    relation: str = "add/remove"
    kind: ClassVar[str] = "capped-sampled-gaussian"
    assumed_public: ClassVar[tuple[str, ...]] = ("number of entries of the contributor",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _number("rate", self.rate, 0, 1, open_low=False)
        _count("entries", self.entries, 0)
        _count("most", self.most, 1)
        _number("clip_norm", self.clip_norm, 0, math.inf, open_low=False)
        self._check_relation()

    def _mixture(self) -> tuple[Floats, Floats]:
        w = binomial(int(self.entries), float(self.rate))
        return _join(np.minimum(np.arange(len(w)), self.most) * float(self.clip_norm), w)


@dataclass(frozen=True)
class UnequalSampledGaussian(_Mixture):
    """As `SampledGaussian`, with a rate and a clipping norm for each entry (norms rounded up to a grid of 1/1024).

    The shift is the sum of the norms of the entries drawn: a convolution over entries.
    """

    noise_multiplier: float
    rates: tuple[float, ...]
    clip_norms: tuple[float, ...]
    relation: str = "add/remove"
    kind: ClassVar[str] = "unequal-sampled-gaussian"
    assumed_public: ClassVar[tuple[str, ...]] = ("number, rates and clipping norms of the contributor's entries",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        if not self.rates or len(self.rates) != len(self.clip_norms):
            raise InputError(f"{len(self.rates)} rates for {len(self.clip_norms)} clipping norms", expected="one each")
        for rate, norm in zip(self.rates, self.clip_norms, strict=True):
            _number("rate", rate, 0, 1, open_low=False)
            _number("clip_norm", norm, 0, math.inf, open_low=False)
        self._check_relation()

    def _mixture(self) -> tuple[Floats, Floats]:
        norms = sorted(set(self.clip_norms))
        # Few distinct norms that are multiples of the smallest stay exact; otherwise round up on a grid.
        unit = norms[-1] / 1024 if norms[-1] > 0 else 1.0
        smallest = next((c for c in norms if c > 0), 1.0)
        if all(abs(c / smallest - round(c / smallest)) < 1e-12 for c in norms):
            unit = smallest
        counts = [math.ceil(c / unit - 1e-12) for c in self.clip_norms]
        w = np.zeros(sum(counts) + 1)
        w[0] = 1.0
        for rate, count in zip(self.rates, counts, strict=True):
            moved = np.zeros_like(w)
            moved[count:] = w[: len(w) - count]
            w = (1 - rate) * w + rate * moved
        return _join(np.arange(len(w)) * unit, w)


@dataclass(frozen=True)
class ComplexGaussian(Mechanism):
    """A complex-valued sum of norm at most 1 with circular noise of `noise_multiplier` per real component."""

    noise_multiplier: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "complex-gaussian"

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        self._check_relation()

    @property
    def mu(self) -> float:
        """As for a real sum of twice the dimension: 1 / noise per real component."""
        return 1 / self.noise_multiplier

    def pair(self) -> Pair:
        """Return N(1, s^2) against N(0, s^2)."""
        return MixturePair(float(self.noise_multiplier), np.array([1.0]), np.array([1.0]))

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order / (2 s^2)."""
        return gaussian_rdp(self.mu, orders)


@dataclass(frozen=True)
class LocalGaussian(Mechanism):
    """One person's own vector of norm at most 1, noised once before it leaves: two inputs differ by up to 2."""

    noise_multiplier: float
    relation: str = "replace-one"
    kind: ClassVar[str] = "local-gaussian"
    relations: ClassVar[tuple[str, ...]] = ("replace-one",)
    assumed_public: ClassVar[tuple[str, ...]] = ("who takes part",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        self._check_relation()

    @property
    def mu(self) -> float:
        """Gaussian-DP parameter, 2 / noise multiplier."""
        return 2 / self.noise_multiplier

    def pair(self) -> Pair:
        """Return N(2, s^2) against N(0, s^2)."""
        return MixturePair(float(self.noise_multiplier), np.array([2.0]), np.array([1.0]))

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order * mu^2 / 2."""
        return gaussian_rdp(self.mu, orders)


@dataclass(frozen=True)
class GaussianBudget(Mechanism):
    """Anything that is `level`-GDP: a budget rather than a mechanism."""

    level: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "mu-gdp"
    relations: ClassVar[tuple[str, ...]] = RELATIONS

    def __post_init__(self) -> None:
        _number("level", self.level, 0, math.inf)
        self._check_relation()

    @property
    def mu(self) -> float:
        """The budget."""
        return float(self.level)

    def pair(self) -> Pair:
        """Return N(level, 1) against N(0, 1)."""
        return MixturePair(1.0, np.array([float(self.level)]), np.array([1.0]))

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order * level^2 / 2."""
        return gaussian_rdp(self.mu, orders)


class _Atoms(Mechanism):
    """Mechanisms with finitely many outputs."""

    def _atoms(self) -> tuple[Floats, Floats]:
        raise AssertionError("every subclass states its outputs")

    def pair(self) -> Pair:
        """Return the outputs' probabilities with and without."""
        return AtomPair(*self._atoms())

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the Renyi divergences by summation."""
        return atoms_rdp(*self._atoms(), orders)


@dataclass(frozen=True)
class RandomisedResponse(_Atoms):
    """A yes/no answer, told truly with odds exp(epsilon) to 1."""

    epsilon: float
    relation: str = "replace-one"
    kind: ClassVar[str] = "randomised-response"
    relations: ClassVar[tuple[str, ...]] = RELATIONS
    assumed_public: ClassVar[tuple[str, ...]] = ("who takes part",)

    def __post_init__(self) -> None:
        _number("epsilon", self.epsilon, 0, 700)
        self._check_relation()

    def _atoms(self) -> tuple[Floats, Floats]:
        yes, no = -np.log1p(np.exp(-self.epsilon)), -self.epsilon - np.log1p(np.exp(-self.epsilon))
        return np.array([yes, no]), np.array([no, yes])


@dataclass(frozen=True)
class DiscreteGaussian(_Atoms):
    """Noise on the integers with probability proportional to exp(-x^2 / (2 sigma^2)); integer shift `sensitivity`.

    Parameters
    ----------
    noise_multiplier : float
        sigma over the sensitivity, as for continuous noise.
    sensitivity : int
        L2 sensitivity in lattice steps; one-dimensional pair, as for a scalar query.
    """

    noise_multiplier: float
    sensitivity: int = 1
    relation: str = "add/remove"
    kind: ClassVar[str] = "discrete-gaussian"
    relations: ClassVar[tuple[str, ...]] = RELATIONS

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _count("sensitivity", self.sensitivity, 1)
        if self.noise_multiplier * self.sensitivity > 50_000:
            raise InputError("the discrete Gaussian is wider than 50,000 lattice steps", expected="a coarser lattice")
        self._check_relation()

    def _atoms(self) -> tuple[Floats, Floats]:
        sigma = self.noise_multiplier * self.sensitivity
        reach = math.ceil(40 * sigma) + self.sensitivity
        x = np.arange(-reach, reach + self.sensitivity + 1)
        # Both sums run over so many deviations that what is cut off is below 1e-300.
        log_norm = float(special.logsumexp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2))
        log_q = -0.5 * (x / sigma) ** 2 - log_norm
        return -0.5 * ((x - self.sensitivity) / sigma) ** 2 - log_norm, log_q

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order / (2 s^2), a bound for the discrete Gaussian (Canonne, Kamath and Steinke 2020, Theorem 14)."""
        return gaussian_rdp(1 / self.noise_multiplier, orders)


@dataclass(frozen=True)
class ZCDPBudget(Mechanism):
    """Anything that is rho-zCDP: a Renyi curve only, so that epsilon is read by conversion (looser than a pair)."""

    rho: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "zcdp"
    relations: ClassVar[tuple[str, ...]] = RELATIONS
    renyi_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _number("rho", self.rho, 0, math.inf)
        self._check_relation()

    def pair(self) -> Pair | None:
        """There is no single pair that dominates everything rho-zCDP; guarantees convert the Renyi curve instead."""
        return None

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order * rho."""
        return np.asarray(orders, float) * self.rho


@dataclass(frozen=True)
class ReplaceSampledGaussian(Mechanism):
    """All entries of one contributor exchanged for others at once: `entries` removed and `inserted` added.

    The pair is a double mixture, shifts to the left by what is removed and to the right by what is inserted
    (Schuchardt et al. 2024, Theorem 3.8).

    Parameters
    ----------
    noise_multiplier, rate, entries, clip_norm : float, float, int, float
        As in `SampledGaussian`, of what is removed.
    inserted, inserted_rate, inserted_clip_norm : int, float, float, optional
        The same of what is inserted; None: as of what is removed.
    """

    noise_multiplier: float
    rate: float
    entries: int = 1
    inserted: int | None = None
    clip_norm: float = 1.0
    relation: str = "replace-one"
    inserted_rate: float | None = None
    inserted_clip_norm: float | None = None
    kind: ClassVar[str] = "replace-sampled-gaussian"
    relations: ClassVar[tuple[str, ...]] = ("replace-one",)
    assumed_public: ClassVar[tuple[str, ...]] = ("number of entries of the contributor",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _number("rate", self.rate, 0, 1)
        _count("entries", self.entries, 0)
        _count("inserted", self.entries if self.inserted is None else self.inserted, 0)
        _number("clip_norm", self.clip_norm, 0, math.inf)
        if self.inserted_rate is not None:
            _number("inserted_rate", self.inserted_rate, 0, 1)
        if self.inserted_clip_norm is not None:
            _number("inserted_clip_norm", self.inserted_clip_norm, 0, math.inf)
        self._check_relation()

    def _sides(self) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
        """Return (shifts, weights) of what is removed and of what is inserted, shifts in the unit of the clip norms."""
        clip = self.clip_norm if self.inserted_clip_norm is None else self.inserted_clip_norm
        rate = self.rate if self.inserted_rate is None else self.inserted_rate
        count = self.entries if self.inserted is None else self.inserted
        found = []
        for n, p, c in ((self.entries, self.rate, self.clip_norm), (count, rate, clip)):
            w = binomial(int(n), float(p))
            found.append((np.arange(len(w))[w > 0] * float(c), w[w > 0]))
        return found[0], found[1]

    def pair(self) -> Pair:
        """Return sum_j w_j N(j, s^2) against sum_i w_i N(-i, s^2)."""
        (left, left_weights), (right, right_weights) = self._sides()
        noise = self.noise_multiplier
        return DoubleMixturePair(right / noise, right_weights, left / noise, left_weights)

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return a bound by the weak triangle inequality through "absent" (Mironov 2017, Proposition 11)."""
        a = np.asarray(orders, float)
        # D_a(P, R) <= (a - 1/2) / (a - 1) D_2a(P, Q) + D_(2a - 1)(Q, R), in whichever direction is larger
        sides = self._sides() if self.inserted is not None or self._unequal else self._sides()[:1]
        first = np.max([mixture_rdp(self.noise_multiplier, s, w, 2 * a) for s, w in sides], axis=0)
        second = np.max([mixture_rdp(self.noise_multiplier, s, w, 2 * a - 1) for s, w in sides], axis=0)
        return np.asarray((a - 0.5) / (a - 1) * first + second)

    @property
    def _unequal(self) -> bool:
        return self.inserted_rate is not None or self.inserted_clip_norm is not None
