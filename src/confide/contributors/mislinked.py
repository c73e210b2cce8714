"""What a guarantee is worth for a person whom the linkage of ids split, or merged with somebody else.

>>> from confide.accounting import SampledGaussian
>>> eight = SampledGaussian(noise_multiplier=1.0, rate=0.0016, entries=8)
>>> [round(split(eight, pieces).guarantee(steps=2000).epsilon(1e-6), 1) for pieces in (1, 2, 3)]
[4.0, 8.7, 14.1]

**Split.** The pieces flip coins of their own and are clipped on their own, so the person is in every sum as several
contributors.

**Merged.** Two people with k entries each were taken for one contributor with 2k. When one of them leaves, the
contributor does not vanish but is treated as one with k entries, at another rate or clip; and where the drawn entries
of a contributor are clipped as one, what is left may point elsewhere. So the pair is that of an exchange, except where
the other person's part can be told apart:

- clip unit "entry" under zero-out (declared constants stay, also the number of entries that the coins follow): the
  other person's entries are drawn by the same coins and clipped on their own in both worlds; k entries at the rate of
  2k entries leave.
- clip unit "entry", rates p (2k entries) <= p' (k entries), equal clips: the other's coins are coupled, so that
  whatever is drawn at p is drawn at p' too. Given these, the worlds differ by Binomial(k, p) entries on one side and
  Binomial(k, (p' - p) / (1 - p)) on the other: by joint convexity a double mixture of these dominates.
- otherwise the contributor with 2k entries is exchanged for the one with k (`ReplaceSampledGaussian`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from confide.accounting import (
    Gaussian,
    GaussianBudget,
    Guarantee,
    Laplace,
    Mechanism,
    ReplaceSampledGaussian,
    SampledGaussian,
    ZCDPBudget,
)
from confide.accounting.more_mechanisms import ContributorSampledGaussian
from confide.errors import InputError


def split(mechanism: Mechanism, pieces: int) -> Mechanism:
    """Return what a step costs a person whom the linkage split into `pieces` contributors like this one.

    Raises
    ------
    InputError
        A mechanism whose pieces this function cannot put together.
    """
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1:
        raise InputError(f"a person cannot be split into {pieces!r} pieces", expected="a whole number of at least 1")
    if isinstance(mechanism, SampledGaussian):
        return dataclasses.replace(mechanism, entries=mechanism.entries * pieces)
    if isinstance(mechanism, ContributorSampledGaussian):
        return SampledGaussian(
            mechanism.noise_multiplier, mechanism.rate, pieces, mechanism.clip_norm, mechanism.relation
        )
    # A sum that moves by at most `pieces` times its sensitivity.
    if isinstance(mechanism, Gaussian):
        return dataclasses.replace(mechanism, noise_multiplier=mechanism.noise_multiplier / pieces)
    if isinstance(mechanism, Laplace):
        return dataclasses.replace(mechanism, noise_multiplier=mechanism.noise_multiplier / pieces)
    if isinstance(mechanism, GaussianBudget):  # Dong, Roth and Su 2022, Theorem 2.14: groups
        return dataclasses.replace(mechanism, level=mechanism.level * pieces)
    if isinstance(mechanism, ZCDPBudget):  # Bun and Steinke 2016, Proposition 1.9
        return dataclasses.replace(mechanism, rho=mechanism.rho * pieces**2)
    raise InputError(
        f"the pieces of a {mechanism.kind} cannot be put together", expected="a sampled Gaussian, or noise on a sum"
    )


def split_guarantee(guarantee: Guarantee, pieces: int) -> Guarantee:
    """Return the guarantee of a person who is known as `pieces` contributors with this guarantee each.

    Raises
    ------
    InputError
        A part of it cannot be put together.
    """
    return Guarantee(tuple((split(mechanism, pieces), steps) for mechanism, steps in guarantee.parts))


def merged_guarantee(alone: Guarantee, both: Guarantee, *, clip_unit: str) -> Guarantee:
    """Return the guarantee of a person whom the linkage merged with another one like them.

    Parameters
    ----------
    alone : Guarantee
        What a contributor with the person's entries has.
    both : Guarantee
        What a contributor with the entries of both has.
    clip_unit : {"entry", "contributor"}
        Whether each drawn entry is clipped, or the sum of a contributor's drawn entries.

    Raises
    ------
    InputError
        The two do not have the same parts, or one of them cannot be put together.
    """
    if [n for _, n in alone.parts] != [n for _, n in both.parts]:
        raise InputError("the two guarantees do not have the same parts", expected="two classes of one plan")
    pairs = [(_sampled(a), _sampled(b), n) for (a, n), (b, _) in zip(alone.parts, both.parts, strict=True)]
    parts = [(_merged(a, b, clip_unit), n) for a, b, n in pairs]
    if any(mechanism.relation == "replace-one" for mechanism, _ in parts):
        # An exchange of one part is stated as one throughout; what merely leaves is one in which nothing comes.
        parts = [(_as_exchange(mechanism), n) for mechanism, n in parts]
    return Guarantee(tuple(parts))


def _sampled(mechanism: Mechanism) -> Mechanism:
    if not isinstance(mechanism, ContributorSampledGaussian):
        return mechanism
    return SampledGaussian(
        noise_multiplier=mechanism.noise_multiplier,
        rate=mechanism.rate,
        clip_norm=mechanism.clip_norm,
        relation=mechanism.relation,
    )


def _merged(alone: Mechanism, both: Mechanism, clip_unit: str) -> Mechanism:
    if isinstance(alone, SampledGaussian) and isinstance(both, SampledGaussian):
        return _merged_sample(alone, both, clip_unit)
    if isinstance(alone, Gaussian) and isinstance(both, Gaussian):
        noise = 1 / (1 / alone.noise_multiplier + 1 / both.noise_multiplier)
        return Gaussian(noise_multiplier=noise, relation="replace-one")
    if isinstance(alone, Laplace) and isinstance(both, Laplace):
        noise = 1 / (1 / alone.noise_multiplier + 1 / both.noise_multiplier)
        return Laplace(noise_multiplier=noise, relation="replace-one")
    if isinstance(alone, GaussianBudget) and isinstance(both, GaussianBudget):
        return GaussianBudget(level=alone.level + both.level, relation="replace-one")
    raise InputError(f"people merged in a {alone.kind} cannot be told apart", expected="a sampled Gaussian")


def _merged_sample(alone: SampledGaussian, both: SampledGaussian, clip_unit: str) -> Mechanism:
    if 0 in (alone.rate, both.rate, alone.clip_norm, both.clip_norm, alone.entries, both.entries):
        raise InputError("a class of which nothing is drawn has no guarantee to merge")
    if clip_unit == "entry" and alone.relation == "zero-out":
        return dataclasses.replace(both, entries=min(alone.entries, both.entries))
    exchange = ReplaceSampledGaussian(
        noise_multiplier=min(alone.noise_multiplier, both.noise_multiplier),
        rate=alone.rate,
        entries=alone.entries,
        clip_norm=alone.clip_norm,
        inserted=both.entries,
        inserted_rate=both.rate,
        inserted_clip_norm=both.clip_norm,
    )
    # Above the largest number of entries in use a secret subset is drawn from, and nothing can be coupled.
    apart = both.entries == 2 * alone.entries and both.clip_norm == alone.clip_norm and both.rate <= alone.rate
    if clip_unit != "entry" or not apart:
        return exchange
    more = (alone.rate - both.rate) / (1 - both.rate) if both.rate < 1 else 0.0
    if more <= 0:
        return dataclasses.replace(both, entries=alone.entries)
    return dataclasses.replace(exchange, rate=more, inserted=alone.entries)


def _as_exchange(mechanism: Mechanism) -> Mechanism:
    if isinstance(mechanism, SampledGaussian):
        return ReplaceSampledGaussian(
            noise_multiplier=mechanism.noise_multiplier,
            rate=mechanism.rate,
            entries=mechanism.entries,
            clip_norm=mechanism.clip_norm,
            inserted=0,
        )
    return dataclasses.replace(mechanism, relation="replace-one")  # type: ignore[type-var]


def wrong_links(
    mechanism_of: Callable[[int], Mechanism],
    entries: Sequence[int],
    *,
    steps: int,
    delta: float,
    clip_unit: str = "entry",
) -> list[dict[str, float]]:
    """Return epsilon as planned, for a person split into 2 and 3 pieces, and for two people merged, by entry count.

    Parameters
    ----------
    mechanism_of : callable
        The plan's mechanism for a contributor with k entries (``lambda k: plan.mechanism(plan.class_of(k))``).
    entries : sequence of int
        Entries k of one piece, and of each of two people who were merged.
    steps : int
        Steps of the plan.
    clip_unit : {"entry", "contributor"}
        The plan's.

    Returns
    -------
    list of dict
        Keys entries, planned, split_in_2, split_in_3, merged.
    """
    rows = []
    for k in entries:
        base, two = (mechanism_of(n).guarantee(steps=steps) for n in (k, 2 * k))
        row: dict[str, float] = {"entries": k, "planned": base.epsilon(delta)}
        for pieces in (2, 3):
            row[f"split_in_{pieces}"] = split_guarantee(base, pieces).epsilon(delta)
        row["merged"] = merged_guarantee(base, two, clip_unit=clip_unit).epsilon(delta)
        rows.append(row)
    return rows


def describe(rows: Sequence[Mapping[str, float]], delta: float) -> list[str]:
    """Return the sentences about wrong links, one a row of `wrong_links`."""
    return [
        f"with {row['entries']:.0f} entries: epsilon {row['planned']:.1f} at delta {delta:g}; known as 2 contributors "
        f"with that many each {row['split_in_2']:.1f}, as 3 {row['split_in_3']:.1f}; "
        f"merged with another such person {row['merged']:.1f}"
        for row in rows
    ]
