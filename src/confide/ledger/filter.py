r"""Who may still be admitted: a filter that holds although later plans are chosen after looking at earlier outputs.

>>> from confide.accounting import Gaussian
>>> rule = Filter.design(epsilon=8.0, delta=1e-6)
>>> cost = rule.charge(Gaussian(noise_multiplier=10.0).guarantee(steps=4))
>>> bool(rule.admits(cost[None, :])[0]), bool(rule.admits(1000 * cost[None, :])[0])
(True, False)

**Why the composed epsilon is no filter.** "Admit while the tight composition of everything so far stays below the cap"
is valid only for a sequence fixed in advance: an analyst who chooses the next mechanism after seeing an output can
take the expensive branch exactly when the cheap one has already failed (`tests/ledger/test_filter.py` holds a
counter-example with two mechanisms). What is admitted must be judged by a quantity that survives adaptivity.

**The rule.** At the creation of the ledger, and for good, a few orders alpha_1..alpha_K > 1 and a split
delta = delta_0 + delta_1 + ... + delta_K (delta_k > 0) are declared. Each order gets an allowance from the single-order
conversion (Canonne, Kamath, Steinke 2020, Proposition 12)::

    B_k = epsilon - log(1 - 1/alpha_k) + (log(delta_k) + log(alpha_k)) / (alpha_k - 1)

For each contributor S_k is the sum, over every release that reserved them, of the release's RDP at alpha_k (the larger
of both directions), and S_0 the sum of the probabilities that the releases set apart (below). A release is admitted if
*afterwards* S_0 <= delta_0 and S_k <= B_k for at least one k; delta = delta_0 + delta_1 + ... + delta_K.

**Setting rare outputs apart.** A plan may name a sub-probability kernel P~ <= P (the outputs below a threshold) whose
missing mass over all its steps is at most t. It is charged t to S_0, and at each order the larger of the Renyi
divergences of P~ from Q and of Q from P. Without this, plans for people with many entries have no useful RDP at any
order (`confide.ledger._renyi`). The approximate Renyi filter is that of Whitehouse, Ramdas, Rogers and Wu (2023).

**Theorem.** However adaptively plans are chosen, the outputs of everything admitted are (epsilon, delta)-DP for the
contributor.

*Proof.* Fix a contributor and a direction; P and Q are the laws of the whole transcript with and without them, L_t the
log-likelihood ratio of the first t outputs, rho_t,k the RDP of the t-th plan at alpha_k, which is a function of the
earlier outputs. Under P, E[exp((alpha_k - 1)(L_t - L_(t-1) - rho_t,k)) | earlier outputs] <= 1 by the definition of
RDP for the t-th mechanism with the past fixed. So M_t,k = exp((alpha_k - 1)(L_t - S_t,k)) is a supermartingale with
M_0,k = 1 and E[M_T,k] <= 1 at the end T (the number of releases is bounded; people who are not admitted add nothing to
L or S). At the end the rule guarantees some k, possibly depending on the outputs, with S_T,k <= B_k. For that k and
every value l of L_T::

    max(0, 1 - exp(epsilon - l)) <= delta_k * exp((alpha_k - 1)(l - B_k)) <= delta_k * M_T,k

(the first step is the conversion: the maximum over l of (1 - exp(epsilon - l)) exp(-(alpha_k - 1) l) is attained at
exp(epsilon - l) = 1 - 1/alpha_k and gives exactly B_k). All M are non-negative, so the right side is at most
sum_k delta_k M_T,k, and the hockey-stick divergence E_P[max(0, 1 - exp(epsilon - L_T))] <= sum_k delta_k = delta.
With outputs set apart, P~ is the law of the transcript in which every step's kernel is replaced by the part that was
not set apart. P exceeds it by at most E[sum of t] <= delta_0, because the rule bounds the sum on every path; M is
defined with dP~/dQ, is a supermartingale by the same line, and the hockey-stick divergence is at most
delta_0 + sum_k delta_k. The other direction is the same with P and Q exchanged, because rho is the larger of both;
there nothing is set apart. A mechanism that is dominated by the pair (P, Q) is a
post-processing of it (Blackwell), so the argument about the pair carries over. An order with S_k infinite
takes M_k = 0; if the likelihood ratio is infinite with positive probability, every S_k is infinite and nobody is
admitted. ∎

Without the split (each order judged with the whole delta, any one sufficing) the same rule would certify nothing:
which order survives may depend on the outputs. With K = 1 and delta_0 = 0 it is the filter of Feldman and Zrnic
(2021) at a fixed order; demanding every order of a curve at once would be valid without a split, but subsampled
Gaussians have no useful RDP at high orders, so such a curve either refuses nearly everything or is infinite where it
matters.

**The first release may use the whole balance.** If a contributor has no history and one plan alone does not pass the
rule, but its own tight epsilon(delta) is within the cap, it is admitted and the balance is *closed*: nothing is ever
admitted again. Which branch is taken is decided before any output about this contributor exists, and each branch by
itself gives (epsilon, delta); so the claim stands.

**Numbers.** Sums are kept as unsigned 32-bit multiples of B_k / 2^31, rounded up at every release (at most one part in
2^31 of the allowance per release), so they are exact, order-free and the same on every database. The largest number
means "more than this order can ever hold" (or closed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee
from confide.errors import InputError
from confide.ledger._renyi import costs

UNITS = 2**31  # an order's allowance in stored units
FULL = 2**32 - 1  # the saturated counter: this order is used up for good

Counters = npt.NDArray[np.uint32]

# Orders relative to the best order of a Gaussian that fills the cap, and their shares of delta. The main order sits a
# little below the Gaussian optimum, because subsampling bends RDP curves upwards at high orders; the low one rescues
# plans with little noise, whose RDP is useless at the main order. Measured in benchmarks/ledger.
_RELATIVE_ORDERS = (0.6, 0.9)
_DELTA_SHARES = (0.2, 0.7)
# A small cap needs high orders, at which little noise is dear: there both orders lie higher, and more is set apart.
_HIGH = 9.0
_RELATIVE_ORDERS_HIGH = (0.7, 0.95)
_DELTA_SHARES_HIGH = (0.3, 0.5)
_TAILS = (0.0, *(4.0**-i for i in range(1, 13)))  # parts of delta_0 that one plan may try to set apart


def _conversion(order: float, delta: float) -> float:
    """Return what the single-order conversion adds to an RDP value to give epsilon."""
    return math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1.0)


@dataclass(frozen=True)
class Filter:
    """The declared rule of a ledger: orders, shares of delta and the allowance of each order.

    Parameters
    ----------
    epsilon, delta : float
        The lifetime cap of every contributor.
    orders : tuple of float
        Declared orders, each above 1.
    deltas : tuple of float
        The share of delta that each order may use.
    tail : float
        The share of delta for outputs set apart; all shares together are at most `delta`.
    """

    epsilon: float
    delta: float
    orders: tuple[float, ...]
    deltas: tuple[float, ...]
    tail: float

    def __post_init__(self) -> None:
        check_cap(self.epsilon, self.delta)
        if len(self.orders) != len(self.deltas) or not self.orders:
            raise InputError("a filter needs one share of delta for each order", expected="as many deltas as orders")
        if not all(math.isfinite(a) and a > 1 for a in self.orders) or not all(
            d > 0 for d in (*self.deltas, self.tail)
        ):
            raise InputError("a filter order or share is out of range", expected="orders above 1, shares above 0")
        if math.fsum((*self.deltas, self.tail)) > self.delta * (1 + 1e-12):
            raise InputError("the shares of delta exceed delta", expected=f"a sum of at most {self.delta}")

    @classmethod
    def design(cls, epsilon: float, delta: float) -> Filter:
        """Choose orders for a cap, as a pure function of the cap.

        Raises
        ------
        InputError
            If the cap is not finite and positive or delta is not in (0, 1).
        """
        check_cap(epsilon, delta)
        # For a Gaussian of strength rho = mu^2/2 the allowance is used up at rho = B(alpha)/alpha: the best order
        # is the one that lets the largest rho in.
        grid = np.exp(np.linspace(math.log(1e-3), math.log(1e6), 4000))
        orders = 1.0 + grid
        room = (epsilon - np.log1p(-1 / orders) + (np.log(delta) + np.log(orders)) / (orders - 1)) / orders
        best = float(orders[int(np.argmax(room))])
        small = best > _HIGH
        relative = _RELATIVE_ORDERS_HIGH if small else _RELATIVE_ORDERS
        shares = _DELTA_SHARES_HIGH if small else _DELTA_SHARES
        chosen = tuple(round(1 + (best - 1) * part, 4) if best < 1e4 else best for part in relative)
        deltas = tuple(delta * share for share in shares)
        rule = cls(epsilon, delta, chosen, deltas, delta * (1 - sum(shares)) * (1 - 1e-12))
        if max(rule.allowances) <= 0:
            raise InputError(
                f"a cap of epsilon {epsilon} at delta {delta} leaves no balance to spend",
                expected="a larger epsilon or a larger delta",
            )
        return rule

    @property
    def allowances(self) -> tuple[float, ...]:
        """B_k, the largest RDP that each order may reach (0 where the conversion alone exceeds the cap)."""
        return tuple(
            max(0.0, self.epsilon - _conversion(order, share))
            for order, share in zip(self.orders, self.deltas, strict=True)
        )

    @property
    def width(self) -> int:
        """How many counters a contributor has: one an order, and one for what was set apart."""
        return len(self.orders) + 1

    def charge(self, guarantee: Guarantee) -> Counters:
        """Return what a release costs a contributor of one class, in stored units, rounded up.

        Of several ways to set rare outputs apart the one that uses the smallest share of a balance is taken: a function
        of the plan alone.

        Returns
        -------
        ndarray of uint32, shape (K + 1,)
            The orders, then what is set apart; `FULL` where the cost exceeds what a counter can ever hold.

        Raises
        ------
        InputError
            If the accountant returns a negative or undefined cost.
        """
        best: Counters | None = None
        # From twice the allowance on a counter is full whatever the number is.
        enough = tuple(2 * allowance for allowance in self.allowances)
        for rdp, apart in costs(guarantee, self.orders, tuple(self.tail * part for part in _TAILS), enough):
            if rdp.shape != (len(self.orders),) or np.isnan(rdp).any() or (rdp < 0).any():
                raise InputError(
                    "the cost of a class is negative or undefined",
                    expected="a Renyi divergence of zero or more at each order of the ledger",
                    remedy="check the mechanism's parameters",
                )
            pairs = [*zip(rdp.tolist(), self.allowances, strict=True), (apart, self.tail)]
            units = np.array([_units(cost, allowance) for cost, allowance in pairs], dtype=np.uint32)
            if best is None or self.share(units[None, :])[0] < self.share(best[None, :])[0]:
                best = units
        assert best is not None
        return best

    def share(self, counters: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Return for rows of counters, shape (n, K + 1), which multiple of a balance they are."""
        rows = np.asarray(counters, dtype=np.float64)
        out: npt.NDArray[np.float64] = np.maximum(rows[:, :-1].min(axis=1), rows[:, -1]) / UNITS
        return out

    def admits(self, counters: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Say for rows of counters, shape (n, K + 1), whether the rule still holds."""
        return within(np.asarray(counters).T)

    def used(self, counters: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Return the used share of the balance, shape (n,): 0 untouched, 1 full."""
        return np.minimum(self.share(counters), 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as plain values for JSON."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "orders": list(self.orders),
            "deltas": list(self.deltas),
            "tail": self.tail,
            "allowances": list(self.allowances),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Filter:
        """Rebuild a rule from `to_dict`."""
        return cls(values["epsilon"], values["delta"], tuple(values["orders"]), tuple(values["deltas"]), values["tail"])


def _units(cost: float, allowance: float) -> int:
    """Return a cost in stored units, rounded up; the factor covers the rounding of the division itself."""
    if cost == 0 and allowance > 0:
        return 0
    if allowance <= 0 or not cost < 2 * allowance:
        return FULL
    return min(FULL, math.ceil(cost / allowance * UNITS * (1 + 1e-14)))


def within(counters: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Say for columns of counters, shape (K + 1, n), whether the rule still holds."""
    # Row by row: reducing over a first axis of two or three is slower than the sums themselves.
    good = counters[0] <= UNITS
    for row in counters[1:-1]:
        good |= row <= UNITS
    good &= counters[-1] <= UNITS
    return np.asarray(good)


def add(counters: Counters, charge: Counters) -> Counters:
    """Add two arrays of counters; what would pass the largest number stays at it.

    >>> add(np.array([5, FULL], dtype=np.uint32), np.array([1, 1], dtype=np.uint32)).tolist()
    [6, 4294967295]
    """
    total = counters + charge
    over = total < charge
    if over.any():
        total[over] = FULL
    return total


def check_cap(epsilon: float, delta: float) -> None:
    """Refuse a cap that is not a finite positive epsilon with 0 < delta < 1.

    Raises
    ------
    InputError
        Saying which of the two is wrong.
    """
    for name, value, upper in (("epsilon", epsilon, math.inf), ("delta", delta, 1.0)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
            raise InputError(f"the cap's {name} is {value!r}", expected="a number")
        if not (math.isfinite(value) and 0 < value < upper):
            raise InputError(
                f"the cap's {name} is {value}",
                expected="a finite number above 0" + (" and below 1" if name == "delta" else ""),
                remedy=f"choose another --cap-{name}",
            )
