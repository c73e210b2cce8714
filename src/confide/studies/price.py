"""What a run will cost, in sentences, before anybody agrees to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.planning import Plan
from confide.report.format import plural
from confide.studies import state as states
from confide.studies.evaluation_section import Paid
from confide.studies.training_section import methods_of

if TYPE_CHECKING:
    from confide.studies.run import _Run


def price_lines(run: _Run, plan: Plan, parameters: int) -> tuple[str, ...]:
    """Say in words what the run will cost, for whom, and what was paid before."""
    worst = max(c.epsilon for c in plan.classes)
    lines = [
        f"Every contributor, with all their entries, spends at most epsilon {worst:.3f} at delta {plan.delta:.3g} "
        f"({plan.relation}), over {plan.steps} steps with noise multiplier {plan.noise_multiplier:g}."
    ]
    unit = "contributors" if plan.clip_unit == "contributor" else "entries"
    lines.append(
        f"Every sum is divided by {plan.denominator:.4g} {unit}, "
        + ("as declared." if run.study.privacy.denominator is not None else "the number expected in a step.")
        if plan.histogram != "none" or run.study.privacy.denominator is not None
        else f"Every sum is divided by {plan.denominator:.4g}, the size of a step at the declared bound "
        f"of {run.study.public.max_contributors:,} contributors; steps are smaller where there are fewer."
    )
    if plan.search is not None:
        lines.append(
            f"That is the price of the whole search: {len(run.variants())} candidates, "
            f"{plan.search.expected_runs:.3g} runs on average ({plan.search.law}), and a noisy score for each run."
        )
    if plan.stamp:
        lines.append(f"Stamp: {plan.stamp}.")
    if isinstance(run.study.evaluation.metrics, Paid):
        lines.append(
            f"Held-out contributors spend epsilon {run.study.evaluation.metrics.epsilon:g} on metrics that leave."
        )
    if (labels := run.labels_spent()) is not None:
        lines.append(
            f"Labels cost epsilon {labels[0].mechanism['epsilon']:g} on top: one of each person is told with odds "
            "exp(epsilon) to 1."
        )
    if (wanted := run.study.training.temperature) is not None:
        lines.append(
            f"{100 * wanted.share:.0f}% of the others are kept for the temperature and spend epsilon "
            f"{wanted.epsilon:g} on it instead."
        )
    if plan.clipping is not None:
        lines.append(
            f"Of this noise a count for the clipping norm takes {100 * plan.clipping.share:g}%: multiplier "
            f"{plan.gradient_noise:.4g} for the sum, {plan.clipping.count_noise(plan.noise_multiplier):.4g} for "
            "the count."
        )
    if plan.correlation is not None:
        lines.append(
            f"Noise is correlated ({plan.correlation.kind}): contributors form {plan.correlation.separation} "
            f"groups in turn and take part in at most {plan.rounds} steps; running sums carry "
            f"{plan.correlation.noise_ratio(plan.steps):.3g} times the noise of independent steps."
        )
    lines += methods_of(run.study, run.declared).cost()
    if run.study.privacy.noise == "secure":
        from confide.training import noise_seconds

        seconds = noise_seconds(parameters, plan.steps, noise="secure")
        lines.append(f"Secure noise (discrete Gaussian, cryptographic generator): about {seconds:.0f} s for it in all.")
    return (*lines, *_earlier(run))


def _earlier(run: _Run) -> list[str]:
    """Say what these people's data have paid for before: a second try at the same model is a second price."""
    lines = []
    others = [one for one in states.unfinished(run.internal, run.study.name) if one.name != run.state.name]
    if others:
        lines.append(
            f"{plural(len(others), 'unfinished run')} of this study: {', '.join(one.name for one in others)}. Go "
            "on with the latest by --resume; what it reserved stays counted, and this run is charged on top."
        )
    data_set = run.data_set()
    before = [r for r in run.ledger.reservations() if r.data_set == data_set and r.state != "aborted"]
    if before:
        lines.append(
            f"The ledger counts {plural(len(before), 'earlier release')} of {data_set!r}; this one comes on "
            "top (`confide ledger history PERSON` shows one person's sum)."
        )
    return lines
