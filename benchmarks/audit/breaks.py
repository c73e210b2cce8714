"""Ways to break a private run from outside, so that an audit can be seen to fail when it should.

Each function takes a `PrivateRun` before its first step and replaces one of its parts. They live here and not in the
package: nothing in the product can switch a protection off. `python benchmarks/audit/run.py` and the tests in
`tests/audit` hand them to `canary_audit(..., tamper=...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from confide.training import PrivateRun
from confide.training.assign import make_sampler

Break = Callable[[PrivateRun], None]


def noise_halved(run: PrivateRun) -> None:
    """Add noise of half the standard deviation."""
    source = run._source

    class Half:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def add_normal(self, values: Any, *, scale: float) -> Any:
            return self._inner.add_normal(values, scale=scale / 2)

    run._source = lambda *key: Half(source(*key))  # type: ignore[method-assign, assignment, return-value]


def clip_skipped(run: PrivateRun) -> None:
    """Sum the gradients as they are."""
    add = run.engine.add

    def unclipped(losses: Any, units: Any, weights: Any, clips: Any, **more: Any) -> None:
        add(losses, units, weights, np.full(len(clips), 1e12), **more)

    run.engine.add = unclipped  # type: ignore[method-assign]


def entries_clipped_one_by_one(run: PrivateRun) -> None:
    """Clip every entry of a contributor on its own, then sum: the classic mistake of per-example engines."""
    add = run.engine.add

    def by_entry(losses: Any, units: Any, weights: Any, clips: Any, **more: Any) -> None:
        add(losses, np.arange(len(units)), weights, np.asarray(clips)[np.asarray(units)], **more)

    run.engine.add = by_entry  # type: ignore[method-assign]


def rate_doubled(run: PrivateRun) -> None:
    """Draw everybody twice as often."""
    run._rates = np.minimum(2 * run._rates, 1.0)
    run._sampler = make_sampler(run.plan, run._keys, run._data.index, run._rates)


def unclipped_units(run: PrivateRun) -> None:
    """Sum the bias-aware gradients of units as they are."""
    add = run.engine.add_units

    def unclipped(gradients: Any, finite: Any, clips: Any, **more: Any) -> None:
        add(gradients, finite, clips * 1e12, **more)

    run.engine.add_units = unclipped  # type: ignore[method-assign]


def groups_ignored(run: PrivateRun) -> None:
    """Let everybody take part in every step, as if there were no groups that keep participations apart."""
    plan: Any = SimpleNamespace(entry_limit=run.plan.entry_limit, clip_unit=run.plan.clip_unit, correlation=None)
    run._sampler = make_sampler(plan, run._keys, run._data.index, run._rates)


def noise_left_behind(run: PrivateRun) -> None:
    """Keep the noise at the first clipping norm while the norm follows its quantile."""
    kind, first = type(run._methods), run._methods.scale

    class Behind(kind):  # type: ignore[misc, valid-type]
        scale = first

    run._methods.__class__ = Behind


BREAKS: dict[str, dict[str, Break]] = {
    "contributor": {
        "noise halved": noise_halved,
        "clip skipped": clip_skipped,
        "entries clipped one by one and summed": entries_clipped_one_by_one,
        "rate doubled": rate_doubled,
    },
    "individual": {"noise halved": noise_halved, "clip skipped": clip_skipped, "rate doubled": rate_doubled},
    "scale": {"noise halved": noise_halved, "clip skipped": clip_skipped, "rate doubled": rate_doubled},
}
