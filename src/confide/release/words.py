"""The sentences of a certificate: what the relation, the adversary and the limits mean, in plain words."""

from __future__ import annotations

RELATION_MEANING = {
    "add/remove": (
        "Two data sets are neighbours if one holds a contributor with all their entries and the other does not."
    ),
    "zero-out": (
        "Two data sets are neighbours if one contributor's entries contribute nothing in one of them, while every "
        "constant that was declared public stays."
    ),
    "replace-one": "Two data sets are neighbours if one contributor with all their entries was exchanged for another.",
}

UNIT_MEANING = {
    "contributor": "One person with all their entries, in all data sets of this release.",
    "entry": "One entry. A person with several entries is protected less than the figures here say.",
}

ADVERSARY = (
    "Anyone who holds this release, with unlimited computing, who may know every parameter in this certificate, all "
    "data of all other contributors and all entries of the person under attack. Only the noise and the sampling coins "
    "are unknown to them."
)

TRUSTED = (
    "the institution that held the data and the machine that ran the study (central model)",
    "the source of random numbers named in the plan",
    "the declaration of contributor ids and of everything that is listed as assumed public",
)

NOT_COVERED = (
    "wrong contributor ids: one person under two ids is protected less than stated; two people under one id share one "
    "guarantee",
    "links between people: entries about relatives or companions count only for the contributor named in them",
    "side channels of the machine that ran the study: timing, memory, power, network, logs and checkpoints",
    "that the release exists, when it was made and how long it took",
    "what holds for a person whether or not they took part: a finding about many people applies to them as well",
    "releases of the same people that this ledger does not know",
    "rounding of the noise in floating-point arithmetic, unless the plan names the secure noise source",
    "use of the result outside the population and purpose it was made for",
)
