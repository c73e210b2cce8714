"""White-box audit of a plan: canaries in the real training loop, against what the plan claims.

>>> from confide.planning import plan
>>> p = plan({3: 100}, epsilon=5.0, delta=1e-5, noise_multiplier=4.0, steps=20)
>>> report = canary_audit(p, entries=3, canaries=400, seed=1)
>>> report.rejected, report.lower_bound < report.claim
(False, True)

Three questions are answered on simulated contributors, none of them touches data:

1. How much does the strongest adversary get? The score is the exact log likelihood ratio of the dominating pair, summed
   over steps; half of the observations fix a threshold, the other half gives a lower bound on mu and from it on epsilon
   (estimate under GDP: conditional on a Gaussian trade-off curve).
2. Is the claim wrong? The observed error rates must not lie below the claimed trade-off curve; no assumption is made.
3. Are contributors drawn as often as the accountant thinks? Exact binomial test of the inclusion count.

A canary audit can contradict a claim and can never prove one: it sees the mechanism with a worst-case contributor, and
neither wrong ids nor what happens outside the loop.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from confide.audit.bounds import (
    Violation,
    attainable_under_gdp,
    epsilon_lower_bound,
    epsilon_under_gdp,
    largest_epsilon_under_gdp,
    mu_lower_bound,
    tradeoff_violation,
)
from confide.audit.scores import split_halves, thresholds
from confide.audit.simulation import Tamper, run_canaries
from confide.errors import InputError, VerificationError
from confide.planning import Plan
from confide.training import Methods

__all__ = ["AuditReport", "Inclusion", "canary_audit"]


@dataclass(frozen=True)
class Inclusion:
    """How often units of canaries were drawn, against their rate.

    Attributes
    ----------
    draws, chances : int
        Units drawn, and coins thrown for them.
    rate : float
        What the plan says.
    p_value : float
        Exact two-sided binomial test.
    rejected : bool
    """

    draws: int
    chances: int
    rate: float
    p_value: float
    rejected: bool


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes
    ----------
    strategy : str
    entries : int
        Entries of each canary.
    claim, delta : float
        The epsilon that the plan claims for such a contributor at its delta.
    lower_bound : float
        Estimate under GDP of epsilon at the same delta: a lower confidence bound, if the curve is Gaussian.
    mu : float
        The lower bound on mu behind it.
    assumption_free : float
        Lower bound on epsilon without any assumption, the best of all thresholds (Bonferroni); weak by nature.
    attainable : float
        What `lower_bound` would tend to with ever more observations if the loop leaks all that is claimed.
    ceiling : float
        The largest `lower_bound` that an audit of this size could have reported.
    confidence : float
        Of the lower bounds.
    observations : int
        Independent observations, both halves, with and without canary.
    steps : int
    violation : Violation
        Test of the claimed trade-off curve.
    inclusion : Inclusion
    """

    strategy: str
    entries: int
    claim: float
    delta: float
    lower_bound: float
    mu: float
    assumption_free: float
    attainable: float
    ceiling: float
    confidence: float
    observations: int
    steps: int
    violation: Violation
    inclusion: Inclusion

    @property
    def ratio(self) -> float:
        """Lower bound / claim."""
        return self.lower_bound / self.claim

    @property
    def rejected(self) -> bool:
        """True when the claim is contradicted, by the trade-off curve or by the inclusion count."""
        return self.violation.rejected or self.inclusion.rejected

    @property
    def table(self) -> list[dict[str, Any]]:
        """Every threshold with its counts on the reporting half."""
        return [asdict(point) for point in self.violation.points]

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        claim = f"the claim (epsilon {self.claim:.2f} at delta {self.delta:g})"
        size = f"{self.observations:,} independent observations of a contributor with {self.entries} entries"
        if self.violation.rejected:
            return (
                f"The audit contradicts {claim}: in {size}, error rates lie below the claimed trade-off curve "
                f"(probability under a true claim at most {self.violation.error:g})."
            )
        if self.inclusion.rejected:
            drawn = self.inclusion
            return (
                f"The audit contradicts {claim}: {drawn.draws:,} of {drawn.chances:,} coins came up, which does not "
                f"fit the rate {drawn.rate:.4g} (p = {drawn.p_value:.1g})."
            )
        return (
            f"The audit does not contradict {claim}: in {size}, the strongest adversary reaches epsilon "
            f"{self.lower_bound:.2f} (estimate under GDP, {self.confidence:.0%} lower bound, {self.ratio:.0%} of the "
            f"claim; ever more observations could show up to {self.attainable:.2f})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "ratio": self.ratio, "rejected": self.rejected, "sentence": self.sentence}

    def require(self) -> AuditReport:
        """Return self, or raise when the claim is contradicted.

        Raises
        ------
        VerificationError
            The audit contradicts the claim.
        """
        if self.rejected:
            raise VerificationError(
                self.sentence,
                where=f"strategy {self.strategy}",
                expected="error rates on or above the claimed trade-off curve, and draws that fit the rate",
                remedy="do not release what this code trains: noise, clipping or sampling differ from the plan",
            )
        return self


def canary_audit(
    plan: Plan,
    *,
    entries: int | None = None,
    canaries: int = 10_000,
    budget: float | None = None,
    confidence: float = 0.95,
    error: float = 1e-4,
    seed: int = 0,
    tamper: Tamper | None = None,
    methods: Methods | None = None,
    langevin: bool = False,
) -> AuditReport:
    """Audit the training loop under a plan, on simulated contributors.

    Parameters
    ----------
    plan : Plan
    entries : int, optional
        Entries of each canary, 1 to the plan's `max_entries`; default `max_entries`.
    canaries : int
        Independent observations: half of the canaries are in the data, half are not; half of each choose the
        thresholds.
    budget : float, optional
        Consent level of the canaries; needed only where the plan has several.
    confidence : float
        Of the lower bounds.
    error : float
        Probability, at most, with which each of the two failure tests rejects a true claim.
    seed : int
        The audit repeats exactly under the same seed.
    tamper : function, optional
        Breaks the run before its first step, from outside; for tests that the audit fails when it should.
    methods, langevin : optional
        The methods of training that are audited, see `run_canaries`. Correlated noise and a clipping norm that follows
        a quantile come with the plan.

    Returns
    -------
    AuditReport

    Raises
    ------
    InputError
        Fewer than 8 canaries, or more entries than the plan allows.

    References
    ----------
    Nasr et al., 2023 (arXiv 2302.07956) for the estimate under GDP and white-box gradient canaries; Charles et al.,
    2024 (arXiv 2407.07737) for the aligned contributor that attains the Binomial mixture.
    """
    k = plan.max_entries if entries is None else entries
    if not 1 <= k <= plan.max_entries:
        raise InputError(
            f"a canary with {k} entries",
            where="canary_audit",
            expected=f"1 to {plan.max_entries}, the plan's max_entries",
        )
    if canaries < 8:
        raise InputError(
            f"{canaries} canaries", where="canary_audit", expected="8 or more; below 500 nothing can be shown"
        )
    present = canaries // 2
    c = plan.class_of(k, budget)
    seen = run_canaries(
        plan,
        entries=k,
        present=present,
        absent=canaries - present,
        budget=budget,
        seed=seed,
        tamper=tamper,
        methods=methods,
        langevin=langevin,
    )
    halves = split_halves(seen.absent, seen.present)
    level = 1 - confidence
    points = [halves.outcome(t) for t in thresholds(halves, error=level)]
    mu = mu_lower_bound(points[0], error=level)
    curve = plan.guarantee(c).tradeoff
    # more draws than coins: people took part when it was not their group's turn
    more = seen.draws > seen.chances
    p_value = 0.0 if more else float(stats.binomtest(seen.draws, seen.chances, c.rate).pvalue)
    return AuditReport(
        strategy=plan.strategy,
        entries=k,
        claim=c.epsilon,
        delta=plan.delta,
        lower_bound=epsilon_under_gdp(mu, delta=plan.delta),
        mu=mu,
        assumption_free=max(epsilon_lower_bound(p, delta=plan.delta, error=level / len(points)) for p in points),
        attainable=attainable_under_gdp(curve, delta=plan.delta),
        ceiling=largest_epsilon_under_gdp(points[0].absent, points[0].present, delta=plan.delta, error=level),
        confidence=confidence,
        observations=canaries,
        steps=seen.steps,
        violation=tradeoff_violation(points, curve, error=error),
        inclusion=Inclusion(seen.draws, seen.chances, c.rate, p_value, p_value < error),
    )
