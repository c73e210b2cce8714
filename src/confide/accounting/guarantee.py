"""What one contributor gets, in every currency.

>>> from confide.accounting import Gaussian, compose
>>> both = compose([Gaussian(2.0).guarantee(), Gaussian(2.0).guarantee(steps=3)])
>>> both.mu
1.0
>>> round(both.epsilon(1e-5), 4)
4.3772
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from confide.accounting import gaussian
from confide.accounting.composition import Composition
from confide.accounting.mechanisms import Mechanism, _count, mechanism_from_dict
from confide.accounting.pairs import Floats, MixturePair, Pair
from confide.accounting.renyi import RDP_ORDERS, rdp_delta, rdp_epsilon
from confide.errors import InputError


def _probabilities(name: str, value: ArrayLike, *, open_ends: bool = False) -> Floats:
    array = np.asarray(value, float)
    good = (array > 0) & (array < 1) if open_ends else (array >= 0) & (array <= 1)
    if array.size == 0 or not np.all(good):
        bad = array[~good] if array.size else array
        raise InputError(
            f"{name} is {bad.ravel()[0] if bad.size else 'empty'}",
            expected="a probability strictly between 0 and 1" if open_ends else "a probability between 0 and 1",
        )
    return array


@dataclass(frozen=True)
class Guarantee:
    """An immutable composition of mechanisms and everything that can be read from it, always on the safe side.

    Parameters
    ----------
    parts : tuple of (Mechanism, int)
        Mechanisms with the number of times each is used; all of one neighbouring relation.
    """

    parts: tuple[tuple[Mechanism, int], ...]

    def __post_init__(self) -> None:
        merged: dict[Mechanism, int] = {}
        for mechanism, steps in self.parts:
            merged[mechanism] = merged.get(mechanism, 0) + _count("steps", steps, 1)
        object.__setattr__(self, "parts", tuple(merged.items()))
        if not self.parts:
            raise InputError("a guarantee needs at least one mechanism")
        relations = {mechanism.relation for mechanism, _ in self.parts}
        if len(relations) > 1:
            raise InputError(
                f"these guarantees have different neighbouring relations: {', '.join(sorted(relations))}",
                expected="one relation for everything that is composed",
                remedy="state every part under the same relation",
            )

    @property
    def relation(self) -> str:
        """What neighbouring data sets are."""
        return self.parts[0][0].relation

    @property
    def steps(self) -> int:
        """Total number of invocations."""
        return sum(steps for _, steps in self.parts)

    @cached_property
    def mu(self) -> float | None:
        """Gaussian-DP parameter where the composition is exactly Gaussian, else None."""
        total = 0.0
        for mechanism, steps in self.parts:
            mu = mechanism.mu
            if mu is None or mechanism.renyi_only:
                return None
            total += steps * mu * mu
        return math.sqrt(total)

    @property
    def _renyi_only(self) -> bool:
        return any(mechanism.renyi_only for mechanism, _ in self.parts)

    @property
    def _renyi_too(self) -> bool:
        return any(mechanism.renyi_too for mechanism, _ in self.parts)

    @cached_property
    def _composition(self) -> Composition:
        squared, pairs = 0.0, []
        for mechanism, steps in self.parts:
            mu = mechanism.mu
            if mu is not None:
                squared += steps * mu * mu
                continue
            pair = mechanism.pair()
            if pair is not None:
                pairs.append((pair, steps))
        if squared > 0:
            shift: Pair = MixturePair(1.0, np.array([math.sqrt(squared)]), np.array([1.0]))
            pairs.append((shift, 1))
        return Composition(tuple(pairs))

    @property
    def pure_epsilon(self) -> float:
        """Epsilon that holds with delta 0; infinity if there is none."""
        if self.mu is not None or self._renyi_only:
            return 0.0 if self.mu == 0 else math.inf
        return float(self._composition.pure)

    def epsilon(self, delta: float) -> float:
        """Return a certified upper bound on epsilon at `delta` (infinity if no finite epsilon holds).

        It lies about 0.03% above the true value; `epsilon_interval` also bounds it from below.

        Raises
        ------
        InputError
            If `delta` is not strictly between 0 and 1.
        """
        _probabilities("delta", delta, open_ends=True)
        if self.mu is not None:
            return gaussian.epsilon(self.mu, float(delta)) * (1 + 1e-9)
        if self._renyi_only:
            return rdp_epsilon(self.rdp(), float(delta))
        found = self._composition.epsilon_upper(float(delta))
        return min(found, rdp_epsilon(self.rdp(), float(delta))) if self._renyi_too else found

    def epsilon_interval(self, delta: float, *, rtol: float = 1e-3) -> tuple[float, float]:
        """Return certified (low, high) around epsilon at `delta`, of relative width about `rtol`."""
        _probabilities("delta", delta, open_ends=True)
        if self.mu is not None:
            value = gaussian.epsilon(self.mu, float(delta))
            return value * (1 - 1e-9), value * (1 + 1e-9)
        if self._renyi_only:
            return 0.0, rdp_epsilon(self.rdp(), float(delta))
        low, high = self._composition.epsilon_bounds(float(delta), rtol=rtol)
        other = rdp_epsilon(self.rdp(), float(delta)) if self._renyi_too else math.inf
        return (low, high) if high <= other else (0.0, other)  # below a Renyi bound nothing is proved

    def delta(self, epsilon: float) -> float:
        """Return a certified upper bound on delta at `epsilon`."""
        return self.delta_interval(epsilon)[1]

    def delta_interval(self, epsilon: float, *, rtol: float = 1e-3) -> tuple[float, float]:
        """Return certified (low, high) around delta at `epsilon`.

        Raises
        ------
        InputError
            If `epsilon` is negative or not a number.
        """
        if not (isinstance(epsilon, (int, float, np.floating, np.integer)) and 0 <= epsilon < math.inf):
            raise InputError(f"epsilon is {epsilon!r}", expected="a number, at least 0")
        if self.mu is not None:
            value = float(gaussian.delta(self.mu, np.asarray(float(epsilon))))
            return value * (1 - 1e-9), min(value * (1 + 1e-9), 1.0)
        if self._renyi_only:
            return 0.0, rdp_delta(self.rdp(), float(epsilon))
        remove = self._composition.delta_bounds(float(epsilon), True, rtol=rtol)
        if epsilon == 0:  # total variation is symmetric
            return remove
        add = self._composition.delta_bounds(float(epsilon), False, rtol=rtol)
        low, high = max(remove[0], add[0]), max(remove[1], add[1])
        other = rdp_delta(self.rdp(), float(epsilon)) if self._renyi_too else math.inf
        return (low, high) if high <= other else (0.0, other)

    def deltas(self, epsilons: ArrayLike) -> Floats:
        """Return upper bounds on delta at every epsilon >= 0 of `epsilons`, faster than one by one."""
        values = np.asarray(epsilons, float)
        if not np.all((values >= 0) & np.isfinite(values)):
            raise InputError("an epsilon is negative or not a number", expected="numbers, at least 0")
        if self.pure_epsilon == 0:
            return np.zeros(values.shape)
        if self._renyi_only or self.mu is not None:
            return np.array([self.delta(float(e)) for e in values.ravel()]).reshape(values.shape)
        return self._composition.delta_profile(values)

    def advantage(self) -> float:
        """Return the largest membership advantage (true positive rate minus false positive rate) of any attack."""
        if self.mu is not None or self._renyi_only:
            return self.delta(0.0)
        return min(self._composition.advantage_upper(), 1.0)

    def tradeoff(self, fpr: ArrayLike) -> Floats:
        """Return a lower bound on the false negative rate of any membership attack at false positive rates `fpr`.

        The test is "absent" against "present": the false positive rate is over data sets without the contributor.
        """
        return np.asarray(1 - self.reconstruction_bound(_probabilities("fpr", fpr)))

    def reconstruction(self, prior: float) -> float:
        """Return gamma(prior): the largest success of an attack that would succeed with probability `prior` blindly.

        Kaissis et al. 2023 (2307.03928): gamma = 1 - T(without, with)(prior).
        """
        return float(self.reconstruction_bound(_probabilities("prior", prior)))

    def reconstruction_bound(self, prior: ArrayLike) -> Floats:
        """Return gamma at every prior, of the same shape as `prior`."""
        prior = _probabilities("prior", prior)
        if self.mu is not None:
            with np.errstate(divide="ignore"):
                value = special.ndtr(special.ndtri(prior) + self.mu)
            return np.asarray(np.where(prior <= 0, 0.0, np.minimum(value * (1 + 1e-9), 1.0)))
        flat = prior.ravel()
        if self._renyi_only:
            # (order, R)-Renyi DP: gamma <= (prior exp(R))^((order - 1) / order) (Balle et al. 2022).
            curve = self.rdp()
            with np.errstate(divide="ignore", over="ignore"):
                powers = (np.log(flat)[:, None] + curve) * (1 - 1 / RDP_ORDERS)
            value = np.exp(np.minimum(np.min(powers, axis=1), 0.0))
            return np.asarray(np.maximum(value, flat).reshape(prior.shape))
        return np.asarray(np.maximum(self._composition.success_bound(flat), flat).reshape(prior.shape))

    def posterior(self, prior: float, fpr: float) -> float:
        """Return the best precision of a membership attack at base rate `prior` and false positive rate `fpr`."""
        _probabilities("prior", prior)
        _probabilities("fpr", fpr)
        hits = prior * float(self.reconstruction_bound(fpr))
        wrong = (1 - prior) * fpr
        return hits / (hits + wrong) if hits + wrong > 0 else float(prior)

    def auc(self) -> float:
        """Return an upper bound on the area under the ROC curve of any membership attack."""
        if self.mu is not None:
            return float(special.ndtr(self.mu / math.sqrt(2)))
        fpr = np.concatenate([[0.0], np.exp(np.linspace(np.log(1e-6), np.log(0.5), 120)), np.linspace(0.5, 1, 81)[1:]])
        tpr = self.reconstruction_bound(fpr)
        # The bound is concave and increasing: the upper rectangle rule is safe, the chord rule with tangents tighter.
        return min(float(np.sum(np.diff(fpr) * tpr[1:])), 1.0)

    def rdp(self, orders: Floats = RDP_ORDERS) -> Floats:
        """Return an upper bound on the Renyi divergences [orders], larger of both directions."""
        total = np.zeros(len(np.asarray(orders)))
        for mechanism, steps in self.parts:
            total = total + steps * mechanism.rdp(orders)
        return np.asarray(total)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description that `from_dict` reads back."""
        return {
            "relation": self.relation,
            "parts": [{"steps": steps, **mechanism.to_dict()} for mechanism, steps in self.parts],
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Guarantee:
        """Rebuild a guarantee from `to_dict`.

        Raises
        ------
        InputError
            If a part cannot be rebuilt.
        """
        parts = []
        for part in description.get("parts", []):
            values = dict(part)
            steps = values.pop("steps", 1)
            parts.append((mechanism_from_dict(values), steps))
        return cls(tuple(parts))


def compose(guarantees: Iterable[Guarantee]) -> Guarantee:
    """Return the guarantee of doing everything, in any order, later steps chosen after seeing earlier results.

    Raises
    ------
    InputError
        If there is nothing to compose, or the neighbouring relations differ.
    """
    parts = [part for guarantee in guarantees for part in guarantee.parts]
    if not parts:
        raise InputError("nothing to compose", expected="at least one guarantee")
    return Guarantee(tuple(parts))
