"""Which two-way tables the default method may ask for, and how much a patient typically adds to a batch of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from confide.synthesis.contributions import Block, Var, cells_of
from confide.synthesis.domain import Domain, Floats
from confide.synthesis.first import column_of
from confide.synthesis.followup import own_static


def candidate_blocks(domain: Domain, focus: str = "history") -> list[Block]:
    """Return every two-way table that the default method may measure; with the focus "visit" none over time."""
    static = [Var("static", i) for i in range(len(domain.static))]
    if domain.visit:
        static = [Var("count"), *static]
    visit = [Var("visit", i) for i in range(len(domain.visit))]
    blocks = [Block("patient", b, a) for i, a in enumerate(static) for b in static[i + 1 :]]
    # follow-up is a fact of the patient; what it has to do with single visits goes through their time
    own = [s for s in static if s.kind == "count" or s.position < own_static(domain)]
    blocks += [Block("visit", v, s) for s in own for v in visit]
    blocks += [Block("visit", b, a) for i, a in enumerate(visit) for b in visit[i + 1 :]]
    if focus == "history":
        blocks += [Block("visit", v, Var("lag", v.position)) for v in visit if column_of(domain, v).name != domain.time]
    return [b for b in blocks if min(cells_of(domain, b.right), cells_of(domain, b.left or b.right)) > 1]


def typical_norm(domain: Domain, blocks: Sequence[Block], centres: dict[Var, Floats]) -> float:
    """Return the root mean squared norm of one row's centred contribution if columns were independent."""

    def spread(var: Var) -> float:
        p = centres[Var("visit", var.position)] if var.kind == "lag" else centres[var]
        return max(1.0 - float(p @ p), 0.02)

    return math.sqrt(sum(spread(b.right) * (spread(b.left) if b.left is not None else 1.0) for b in blocks))
