"""From the parts written in a certificate back to a guarantee that can be computed with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from confide.accounting import Guarantee, Mechanism, PrivateSelection, compose, mechanism_from_dict
from confide.errors import InputError
from confide.release.certificate import Facts, Part


def guarantee_of(facts: Facts | Iterable[Part]) -> Guarantee:
    """Return the guarantee that a class or a paid metric states its figures of.

    Raises
    ------
    InputError
        If a mechanism is unknown to this version or a parameter is out of range.
    """
    parts = facts.parts if isinstance(facts, Facts) else tuple(facts)
    return compose([mechanism_from_dict(part.mechanism).guarantee(part.steps) for part in parts])


def restate(guarantee: Guarantee, relation: str) -> Guarantee:
    """Return the same guarantee under the relation of a certificate.

    Add/remove and zero-out are dominated by the same pairs of distributions as long as every declared constant stays
    (a contributor who contributes nothing adds nothing to a sum with a fixed denominator), so the figures carry over.

    Raises
    ------
    InputError
        If one of the two relations is replace-one: its pairs are different ones.
    """
    if guarantee.relation == relation:
        return guarantee
    if {guarantee.relation, relation} != {"add/remove", "zero-out"}:
        raise InputError(
            f"a guarantee under {guarantee.relation!r} cannot be stated under {relation!r}",
            expected="mechanisms accounted under the relation of the release",
        )
    return Guarantee(tuple((_moved(m, relation), n) for m, n in guarantee.parts))


def _moved(mechanism: Mechanism, relation: str) -> Mechanism:
    if isinstance(mechanism, PrivateSelection):
        return mechanism.restated(relation)
    return dataclasses.replace(mechanism, relation=relation)  # type: ignore[type-var]


def exchanged(guarantee: Guarantee) -> Guarantee | None:
    """Return what holds when a contributor is exchanged for another one of the same class, None where unknown.

    A sampled sum then moves between two mixtures on opposite sides (double mixture; Schuchardt et al. 2024, Theorem
    3.8), an unsampled one by twice its sensitivity.
    """
    parts = []
    for mechanism, steps in guarantee.parts:
        fields = mechanism.to_dict()
        kind = fields.pop("mechanism")
        if kind == "gaussian":
            fields |= {"mechanism": kind, "noise_multiplier": fields["noise_multiplier"] / 2}
        elif kind == "sampled-gaussian":
            fields |= {"mechanism": "replace-sampled-gaussian"}
        elif kind == "randomised-response":
            fields |= {"mechanism": kind}  # one true answer for another: the odds are the same
        else:
            return None
        try:
            parts.append(mechanism_from_dict(fields | {"relation": "replace-one"}).guarantee(steps))
        except InputError:  # no such mechanism in this version, or a class in which nobody takes part
            return None
    return compose(parts)
