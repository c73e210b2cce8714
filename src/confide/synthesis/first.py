"""The first look that every neural method starts from: the number of patients and all one-way tables.

Visits carry the weight 1/k, so static and visit rows of a patient side by side move the centred tables by at most
sqrt(sum of (1 - 1/cells)), whoever is removed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from confide.synthesis.base import Measurement
from confide.synthesis.contributions import Block, Var, batch_sum, cells_of, name_of, split
from confide.synthesis.domain import Column, Domain, Floats, Ints, Panel
from confide.synthesis.estimates import posterior_distribution
from confide.synthesis.meter import Meter


@dataclass(frozen=True, eq=False)
class FirstLook:
    """What was released: number of patients, a distribution for every variable, and the tables with error bars."""

    patients: float
    shares: Mapping[Var, Floats]
    measured: tuple[Measurement, ...]


def variables(domain: Domain) -> list[Var]:
    """Return the number of visits, the static and the visit columns."""
    count = [Var("count")] if domain.visit else []
    static = [Var("static", i) for i in range(len(domain.static))]
    return [*count, *static, *(Var("visit", i) for i in range(len(domain.visit)))]


def column_of(domain: Domain, var: Var) -> Column:
    """Return the column behind a variable."""
    if var.kind == "count":
        return Column("number of visits", cells_of(domain, var), ordinal=True)
    return (domain.static if var.kind == "static" else domain.visit)[var.position]


def ones(counts: Ints) -> Floats:
    """Weight of the one row that a patient has at patient level."""
    return np.ones(len(counts))


def per_patient(counts: Ints) -> Floats:
    """Weight 1/k of a visit."""
    return np.asarray(1.0 / np.maximum(counts, 1), dtype=np.float64)


def first_look(
    panel: Panel, meter: Meter, *, patients_share: float, tables_share: float, scale: Floats | None = None
) -> FirstLook:
    """Release the number of patients and all one-way tables for two shares of the budget."""
    domain = panel.domain
    count = np.array([panel.patients if scale is None else scale.sum()], dtype=np.float64)
    released = meter.gaussian("number of patients", count, sensitivity=1.0, share=patients_share)
    patients = max(float(released[0]), 1.0)
    everything = variables(domain)
    uniform = {var: np.full(cells_of(domain, var), 1 / cells_of(domain, var)) for var in everything}
    at_patient = [Block("patient", var) for var in everything if var.kind != "visit"]
    at_visit = [Block("visit", var) for var in everything if var.kind == "visit"]
    bound = math.sqrt(sum(1 - 1 / cells_of(domain, var) for var in everything)) or 1.0
    exact = np.concatenate(
        [
            batch_sum(panel, blocks, uniform, clip=bound, weight=weight, scale=scale)
            for blocks, weight in ((at_patient, ones), (at_visit, per_patient))
            if blocks
        ]
    )
    noisy = meter.gaussian("one-way tables", exact, sensitivity=bound, share=tables_share)
    deviation = meter.deviation(bound, tables_share) / patients
    shares, measured = {}, []
    blocks = [*at_patient, *at_visit]
    for block, part in zip(blocks, split(domain, blocks, noisy), strict=True):
        var = block.right
        seen = uniform[var] + part / patients
        shares[var] = posterior_distribution(seen, deviation, column_of(domain, var), count=var.kind == "count")
        measured.append(Measurement((name_of(domain, var),), block.level, seen, deviation, shares[var]))
    return FirstLook(patients, shares, tuple(measured))
