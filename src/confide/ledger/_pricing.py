"""What a class costs, and the tight read-out of a history: both computed once for equal contents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from confide.accounting import RDP_ORDERS, Guarantee, compose, rdp_epsilon
from confide.ledger._renyi import costs
from confide.ledger.filter import Counters, Filter

_HOPE = 2.5  # Renyi against tight: 1.05 to 1.6 as a rule, 2.4 for very little noise and few steps


@dataclass(frozen=True)
class Priced:
    """A class: its guarantee as canonical JSON, its charge, and whether it may close an untouched balance."""

    text: str
    charge: Counters
    closes: bool

    @property
    def charge_text(self) -> str:
        """The charge as JSON."""
        return json.dumps(self.charge.tolist(), separators=(",", ":"))


def price(rule: Filter, text: str) -> Priced:
    """Price a class by the rule of a ledger."""
    guarantee = Guarantee.from_dict(json.loads(text))
    charge = rule.charge(guarantee)
    # The tight epsilon is dear to compute; it matters only where the rule alone would refuse, and can only help where
    # the best Renyi order is not hopelessly above the cap (not trying is always safe).
    refused = not bool(rule.admits(charge[None, :])[0])
    hopeful = refused and _estimate(guarantee, rule.delta, _HOPE * rule.epsilon) <= _HOPE * rule.epsilon
    return Priced(text, charge, hopeful and tight_epsilon((text,), rule.delta) <= rule.epsilon)


def _estimate(guarantee: Guarantee, delta: float, most: float) -> float:
    """Return a quick upper bound of epsilon, with rare outputs set apart; infinity where it is above `most` anyway."""
    orders = np.array([order for order in RDP_ORDERS if order <= 32])
    # The conversion takes less than 4 off a divergence at any of these orders.
    found = costs(guarantee, tuple(orders.tolist()), (0.0, delta / 4), (most + 4.0,) * len(orders))
    return min(rdp_epsilon(rdp, delta - apart, orders) for rdp, apart in found)


@lru_cache(maxsize=4096)
def guarantee_of(text: str) -> Guarantee:
    """Read a guarantee from canonical JSON."""
    return Guarantee.from_dict(json.loads(text))


@lru_cache(maxsize=4096)
def tight_epsilon(texts: tuple[str, ...], delta: float) -> float:
    """Return the epsilon of a history by its privacy loss distribution, cached by the multiset of its guarantees.

    Parameters
    ----------
    texts : tuple of str
        Guarantees as canonical JSON, sorted.
    """
    if not texts:
        return 0.0
    dicts = [json.loads(text) for text in texts]
    if len({values["relation"] for values in dicts}) > 1:
        # add/remove and zero-out have the same dominating pairs; which of them each release claimed stays in its row.
        dicts = [_as_add_remove(values) for values in dicts]
    return float(compose([Guarantee.from_dict(values) for values in dicts]).epsilon(delta))


def _as_add_remove(values: dict[str, Any]) -> dict[str, Any]:
    parts = [{**part, "relation": "add/remove"} for part in values["parts"]]
    # a search holds what one run costs as a guarantee of its own
    parts = [{**part, "base": _as_add_remove(part["base"])} if "base" in part else part for part in parts]
    return {**values, "relation": "add/remove", "parts": parts}


def used_epsilon(rule: Filter, share: float) -> float:
    """Return an epsilon at the rule's delta that a used share of a balance cannot exceed, from its sums alone.

    At the order with the smallest share the Renyi sum is at most share * B_k; the conversion (see `filter`) adds what
    an untouched balance would leave, so that a full balance gives the cap.
    """
    if share <= 0:
        return 0.0
    bounds = [rule.epsilon - (1 - share) * allowance for allowance in rule.allowances if allowance > 0]
    return min(rule.epsilon, max(bounds, default=rule.epsilon))
