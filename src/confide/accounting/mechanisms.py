"""Mechanisms: what was done, with its parameters, and the pair of distributions that dominates it.

>>> from confide.accounting import SampledGaussian
>>> g = SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=4).guarantee(steps=1000)
>>> round(g.epsilon(delta=1e-5), 2)
8.9
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from confide.accounting.pairs import Floats, LaplacePair, MixturePair, Pair
from confide.accounting.renyi import RDP_ORDERS, gaussian_rdp, laplace_rdp, mixture_rdp
from confide.errors import InputError, nearest

if TYPE_CHECKING:
    from confide.accounting.guarantee import Guarantee

#: Neighbouring relations; a composition never mixes them.
RELATIONS = ("add/remove", "zero-out", "replace-one")
_KINDS: dict[str, type[Mechanism]] = {}


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = True) -> float:
    """Return `value` as a float inside the range, or refuse it in the user's words."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (low < number <= high or (not open_low and number == low)) or math.isinf(number):
        bracket = "(" if open_low else "["
        end = f"{high:g}]" if math.isfinite(high) else "infinity)"
        raise InputError(f"{name} is {value!r}", expected=f"a number in {bracket}{low:g}, {end}")
    return number


def _count(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer, float)) or int(value) != value or value < low:
        raise InputError(f"{name} is {value!r}", expected=f"a whole number, at least {low}")
    return int(value)


def binomial(n: int, p: float) -> Floats:
    """Return the binomial probabilities of 0, 1, ... draws, each within a few units of rounding.

    Large numbers whose probability is below the smallest positive float are left out: at most n + 1 values.
    """
    if p in (0.0, 1.0):
        return np.asarray(np.arange(n + 1) == (n if p else 0), float)
    last = n
    if n > 64:
        # Far above the mean a term is at most exp(-(i log(i / mean) - i + mean)) (Chernoff): stop below 1e-330.
        mean, last = n * p, min(n, math.ceil(n * p) + 1)
        while last < n and last * math.log(last / mean) - last + mean < 760:
            last = min(n, last + 8 + last // 16)
    i = np.arange(last + 1)
    if n <= 1000:
        choose = np.array(_log_choose(n)[: last + 1])
        return np.asarray(np.exp(choose + i * math.log(p) + (n - i) * math.log1p(-p)))
    # Ratios of neighbours, summed outwards from the mode where all the mass is, then made to sum to one.
    ratio = np.log((n - i[:-1]) / (1.0 + i[:-1]) * (p / (1 - p)))
    mode = min(int((n + 1) * p), last)
    logs = np.concatenate([-np.cumsum(ratio[:mode][::-1])[::-1], [0.0], np.cumsum(ratio[mode:])])
    w = np.exp(logs)
    return np.asarray(w / w.sum())


@lru_cache(maxsize=256)
def _log_choose(n: int) -> tuple[float, ...]:
    out, value = [], 1
    for i in range(n + 1):
        out.append(math.log(value))
        value = value * (n - i) // (i + 1)
    return tuple(out)


class Mechanism(ABC):
    """One invocation of a mechanism on one contributor; frozen, comparable and hashable.

    Subclasses are frozen dataclasses. ``relation`` names what neighbouring data sets are; ``assumed_public`` says what
    the guarantee takes for granted.
    """

    kind: ClassVar[str]
    assumed_public: ClassVar[tuple[str, ...]] = ()
    #: True where no pair dominates and only the Renyi curve is known.
    renyi_only: ClassVar[bool] = False
    #: True where the pair covers a whole family, so that over many uses the Renyi curve can be the tighter of the two.
    renyi_too: ClassVar[bool] = False
    relation: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    #: Relations whose pair this mechanism's `pair` is. Exchanging a person moves a sum by up to twice the norm.
    relations: ClassVar[tuple[str, ...]] = ("add/remove", "zero-out")

    def _check_relation(self) -> None:
        if self.relation in RELATIONS and self.relation not in self.relations:
            raise InputError(
                f"{type(self).__name__} has no pair under {self.relation}",
                where="relation",
                expected=" or ".join(self.relations),
                remedy="exchanging a person moves a sum by up to twice its norm: use ReplaceSampledGaussian, or half "
                "the noise multiplier under add/remove",
            )
        if self.relation not in RELATIONS:
            close = nearest(str(self.relation), RELATIONS)
            raise InputError(
                f"unknown neighbouring relation {self.relation!r}",
                expected=", ".join(RELATIONS),
                remedy=f"did you mean {close!r}?" if close else None,
            )

    @property
    def mu(self) -> float | None:
        """Gaussian-DP parameter where the mechanism is exactly a Gaussian shift, else None."""
        return None

    @abstractmethod
    def pair(self) -> Pair | None:
        """Return the dominating pair of one invocation; None if nothing about the contributor is used."""

    @abstractmethod
    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return an upper bound on the Renyi divergence [orders] of one invocation, larger of both directions."""

    def guarantee(self, steps: int = 1) -> Guarantee:
        """Return the guarantee of `steps` invocations, which may be chosen adaptively.

        Raises
        ------
        InputError
            If `steps` is not a whole number, at least 1.
        """
        from confide.accounting.guarantee import Guarantee

        return Guarantee(((self, _count("steps", steps, 1)),))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that `mechanism_from_dict` reads back."""
        out: dict[str, Any] = {"mechanism": self.kind}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            out[f.name] = list(value) if isinstance(value, tuple) else value
        return out


def mechanism_from_dict(description: Mapping[str, Any]) -> Mechanism:
    """Rebuild a mechanism from `Mechanism.to_dict`.

    Raises
    ------
    InputError
        If the kind is unknown or a parameter is missing, unknown or out of range.
    """
    values = dict(description)
    kind = values.pop("mechanism", None)
    if kind not in _KINDS:
        close = nearest(str(kind), _KINDS)
        raise InputError(
            f"unknown mechanism {kind!r}",
            expected=", ".join(sorted(_KINDS)),
            remedy=f"did you mean {close!r}?" if close else None,
        )
    build: Callable[..., Mechanism] = _KINDS[kind]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return build(**values)
    except TypeError as error:
        raise InputError(f"the description of {kind!r} does not fit: {error}") from error


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """Anything of known L2 sensitivity plus normal noise: exactly Gaussian DP.

    Parameters
    ----------
    noise_multiplier : float
        Noise standard deviation over the L2 sensitivity *under `relation`*: a sum to which each contributor adds at
        most norm 1 has sensitivity 1 under add/remove and zero-out, and 2 under replace-one.
    """

    noise_multiplier: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "gaussian"
    relations: ClassVar[tuple[str, ...]] = RELATIONS

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        self._check_relation()

    @property
    def mu(self) -> float:
        """Gaussian-DP parameter, 1 / noise multiplier."""
        return 1 / self.noise_multiplier

    def pair(self) -> Pair:
        """Return N(1, s^2) against N(0, s^2)."""
        return MixturePair(float(self.noise_multiplier), np.array([1.0]), np.array([1.0]))

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return order / (2 s^2)."""
        return gaussian_rdp(self.mu, orders)


@dataclass(frozen=True)
class Laplace(Mechanism):
    """Anything of known L1 sensitivity plus Laplace noise; scale over the L1 sensitivity *under `relation`*."""

    noise_multiplier: float
    relation: str = "add/remove"
    kind: ClassVar[str] = "laplace"
    relations: ClassVar[tuple[str, ...]] = RELATIONS

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        self._check_relation()

    def pair(self) -> Pair:
        """Return Laplace(1, b) against Laplace(0, b)."""
        return LaplacePair(1 / self.noise_multiplier)

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the closed form (Mironov 2017, Proposition 6)."""
        return laplace_rdp(1 / self.noise_multiplier, orders)


@dataclass(frozen=True)
class SampledGaussian(Mechanism):
    """One Poisson-sampled noisy sum in which a contributor owns `entries` entries, each clipped on its own.

    Every entry is drawn with probability `rate`, independently; a drawn entry adds at most `clip_norm` to the norm of
    the sum; the noise has standard deviation `noise_multiplier` (both in units of the plan's clipping norm). Dominated
    by the Binomial mixture of shifts (Choquette-Choo et al. 2023, Corollary 4.7), tight when all entries agree.

    Parameters
    ----------
    noise_multiplier, rate, entries, clip_norm : float, float, int, float
        As above. One entry is the usual subsampled Gaussian.
    """

    noise_multiplier: float
    rate: float
    entries: int = 1
    clip_norm: float = 1.0
    relation: str = "add/remove"
    kind: ClassVar[str] = "sampled-gaussian"
    assumed_public: ClassVar[tuple[str, ...]] = ("number of entries of the contributor",)

    def __post_init__(self) -> None:
        _number("noise_multiplier", self.noise_multiplier, 0, math.inf)
        _number("rate", self.rate, 0, 1, open_low=False)
        _count("entries", self.entries, 0)
        _number("clip_norm", self.clip_norm, 0, math.inf, open_low=False)
        self._check_relation()

    @property
    def mu(self) -> float | None:
        """Gaussian-DP parameter if every entry is always drawn (or none ever), else None."""
        if self.entries == 0 or self.rate == 0 or self.clip_norm == 0:
            return 0.0
        return self.entries * self.clip_norm / self.noise_multiplier if self.rate == 1 else None

    def _mixture(self) -> tuple[Floats, Floats]:
        w = binomial(int(self.entries), float(self.rate))
        s = np.arange(len(w)) * float(self.clip_norm)
        return s[w > 0], w[w > 0]

    def pair(self) -> Pair | None:
        """Return the Binomial mixture of N(i c, s^2) against N(0, s^2)."""
        if self.mu == 0:
            return None
        s, w = self._mixture()
        return MixturePair(float(self.noise_multiplier), s, w)

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return the Renyi divergences by quadrature, with its error added."""
        if self.mu is not None:
            return gaussian_rdp(self.mu, orders)
        return mixture_rdp(self.noise_multiplier, *self._mixture(), orders)
