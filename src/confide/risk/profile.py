"""Everything that a person who must decide wants to know about one guarantee, as plain data for any page.

>>> from confide.accounting import SampledGaussian
>>> one = profile(SampledGaussian(1.0, 0.01).guarantee(1000), name="worst class", delta=1e-5)
>>> one.sentences[0].startswith("Suppose an attacker knows everything except whether one person took part")
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.risk.measures import information_bits
from confide.risk.reconstruction import MeanEstimation

FPR = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
CANDIDATES = (2, 10, 100, 1000, 10_000, 1_000_000)
PRIORS = (0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Corridor:
    """The two ends of what reconstruction can mean, with the assumption that belongs to each."""

    best_informed: float
    best_informed_assumption: str
    uninformed_psnr: float | None
    uninformed_assumption: str


@dataclass(frozen=True)
class RiskProfile:
    """Upper bounds on what any attacker can do to one contributor; every number is a bound, none an observation."""

    name: str
    relation: str
    delta: float
    epsilon: float
    mu: float | None
    advantage: float
    auc: float
    roc: tuple[tuple[float, float], ...]
    precision: tuple[tuple[float, float, float], ...]
    reconstruction: tuple[tuple[float, float], ...]
    mutual_bits: float
    corridor: Corridor
    sentences: tuple[str, ...]
    assumed_public: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return asdict(self)


def percent(value: float) -> str:
    """Return a probability as people read it, never rounded down."""
    if value >= 0.9995:
        return "100%" if value >= 1 else "more than 99.9%"
    digits = 0 if value >= 0.1 else 1 if value >= 0.01 else max(1, -math.floor(math.log10(max(value, 1e-12))) - 1)
    scale = 10**digits
    return f"{math.ceil(value * 100 * scale - 1e-9) / scale:.{digits}f}%"


def sentences(guarantee: Guarantee) -> tuple[str, ...]:
    """Return what the guarantee means, in sentences that need no mathematics. Bounds, rounded up."""
    even = (1 + guarantee.advantage()) / 2
    rare = guarantee.posterior(0.01, 0.01)
    among = guarantee.reconstruction(0.01)
    return (
        "Suppose an attacker knows everything except whether one person took part, and both are equally likely. "
        f"Blind guessing is right half of the time; with this release it is right at most {percent(even)} of the time.",
        "Suppose 1 in 100 of the people an attacker looks at took part, and they accept to accuse 1 in 100 of the "
        f"others wrongly. Of those they name, at most {percent(rare)} truly took part.",
        "Suppose an attacker must pick a person's record out of 100 equally likely ones. Blind guessing is right 1% "
        f"of the time; with this release at most {percent(among)} of the time.",
    )


def profile(
    guarantee: Guarantee, *, name: str = "contributor", delta: float, target: MeanEstimation | None = None
) -> RiskProfile:
    """Return every read-out of one guarantee.

    Parameters
    ----------
    guarantee : Guarantee
        What the contributor gets.
    name : str
        Whom this is about, for instance "worst class".
    delta : float
        At which epsilon is quoted.
    target : MeanEstimation, optional
        The from-scratch attack on one record, for the lower end of the corridor.
    """
    tpr = guarantee.reconstruction_bound(FPR)
    roc = (
        (0.0, float(guarantee.reconstruction(0.0))),
        *((f, float(t)) for f, t in zip(FPR, tpr, strict=True)),
        (1.0, 1.0),
    )
    precision = tuple((prior, f, guarantee.posterior(prior, f)) for prior in PRIORS for f in FPR[:5])
    priors = np.array([1 / n for n in CANDIDATES])
    gamma = tuple((float(k), float(g)) for k, g in zip(priors, guarantee.reconstruction_bound(priors), strict=True))
    public = {text for mechanism, _ in guarantee.parts for text in mechanism.assumed_public}
    return RiskProfile(
        name=name,
        relation=guarantee.relation,
        delta=delta,
        epsilon=guarantee.epsilon(delta),
        mu=guarantee.mu,
        advantage=guarantee.advantage(),
        auc=guarantee.auc(),
        roc=tuple(roc),
        precision=precision,
        reconstruction=gamma,
        mutual_bits=information_bits(guarantee)["mutual"],
        corridor=Corridor(
            best_informed=guarantee.reconstruction(0.01),
            best_informed_assumption=(
                "upper end: the attacker knows every other record, everything published, and that the record is one "
                "of 100 equally likely ones"
            ),
            uninformed_psnr=float(target.psnr_at(0.5)) if target else None,
            uninformed_assumption=(
                "lower end: "
                + (target.assumption if target else "the attacker knows nothing about what data look like")
            ),
        ),
        sentences=sentences(guarantee),
        assumed_public=tuple(sorted(public)),
    )


def profiles(
    classes: Iterable[tuple[str, Guarantee]], *, delta: float, target: MeanEstimation | None = None
) -> tuple[RiskProfile, ...]:
    """Return the profiles of several named classes or budgets, side by side, in the order given."""
    out = tuple(profile(guarantee, name=name, delta=delta, target=target) for name, guarantee in classes)
    if not out:
        raise InputError("nothing to profile", expected="at least one named guarantee")
    return out
