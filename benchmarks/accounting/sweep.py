"""Thousands of random mechanisms: the certified interval holds the value of a ten times finer grid, both directions.

python benchmarks/accounting/sweep.py [--seconds 600] [--cases 5000]     writes sweep.json beside this file

For each random mechanism, number of steps and delta, and each direction, the certified interval at relative width 1e-2
is compared with an upper and a lower bound from a grid ten times finer. The true value lies between those two, so an
interval that missed it would contradict one of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from confide.accounting import (
    CappedSampledGaussian,
    DiscreteGaussian,
    Laplace,
    Mechanism,
    RandomisedResponse,
    ReclippedSampledGaussian,
    SampledGaussian,
    UnequalSampledGaussian,
)
from confide.errors import InputError

HERE = Path(__file__).parent
SEED = 20240608
RTOL = 1e-2


def random_case(rng: np.random.Generator) -> tuple[Mechanism, int, float]:
    """A mechanism, a number of steps and a delta: most often k sampled entries, log-uniform in every parameter."""
    sigma, rate = float(0.5 * 40 ** rng.uniform()), float(1e-4 * 4e3 ** rng.uniform())
    k, steps, delta = int(60 ** rng.uniform()), int(3000 ** rng.uniform()), float(1e-12 * 1e8 ** rng.uniform())
    kind = rng.integers(10)
    if kind < 5:
        return SampledGaussian(sigma, rate, k), steps, delta
    if kind == 5:
        return CappedSampledGaussian(sigma, rate, k, most=1 + int(rng.integers(k))), steps, delta
    if kind == 6:
        return ReclippedSampledGaussian(sigma, rate, k), steps, delta
    if kind == 7:
        few = min(k, 8)
        rates = tuple(float(v) for v in rate * rng.uniform(0.1, 1, few))
        clips = tuple(float(round(v, 1)) for v in rng.uniform(0.1, 1, few))
        return UnequalSampledGaussian(sigma, rates, clips), steps, delta
    if kind == 8:
        return Laplace(5 * sigma), min(steps, 300), delta
    if rng.uniform() < 0.5:
        return RandomisedResponse(float(0.01 * 100 ** rng.uniform())), min(steps, 300), delta
    return DiscreteGaussian(sigma, sensitivity=1 + int(rng.integers(3))), min(steps, 100), delta


def read(composition: Any, remove: bool, upper: bool, step: float, tilt: float, delta: float) -> tuple[float, float]:
    """Epsilon on this grid, or on the finest that fits; and the step that was used."""
    while True:
        try:
            curve = composition.curve(remove, upper, step=step, tilt=tilt, read=delta, aliasing=1e-14)
            return float(curve.epsilon(delta)), step
        except InputError:
            step *= 2


def sweep(cases: int, seconds: float, seed: int = SEED) -> dict[str, Any]:
    """Check random mechanisms until there are enough, or until the time is over."""
    rng = np.random.default_rng(seed)
    began = time.monotonic()
    kinds: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    comparisons = ten_times = skipped = 0
    widest = 0.0
    while sum(kinds.values()) < cases and time.monotonic() - began < seconds:
        mechanism, steps, delta = random_case(rng)
        composition = mechanism.guarantee(steps)._composition
        if max(composition.sizing(remove, delta=delta).loss for remove in (True, False)) > 60:
            skipped += 1
            continue
        for remove in (True, False):
            low, high = composition._epsilon(remove, delta, RTOL, 1e-5, 0.0)
            if not 0 < high < np.inf:
                continue
            at = composition.sizing(remove, epsilon=high)
            coarse = composition._place(remove, at, delta, RTOL).step
            bounds = [read(composition, remove, upper, coarse / 10, at.tilt, delta) for upper in (False, True)]
            (finer_low, _), (finer_high, used) = bounds
            comparisons += 1
            ten_times += used <= coarse / 10 * (1 + 1e-9)
            widest = max(widest, (high - low) / max(high, 1e-3))
            if not (finer_low <= high * (1 + 1e-9) + 1e-12 and low <= finer_high * (1 + 1e-9) + 1e-12):
                failures.append(
                    {
                        "mechanism": mechanism.to_dict(),
                        "steps": steps,
                        "delta": delta,
                        "remove": remove,
                        "interval": [low, high],
                        "finer": [finer_low, finer_high],
                    }
                )
        kinds[mechanism.kind] += 1
    return {
        "mechanisms": sum(kinds.values()),
        "comparisons (both directions)": comparisons,
        "of these at a grid ten times finer (the rest: the finest that fits)": ten_times,
        "failures": len(failures),
        "failed": failures[:20],
        "by kind": dict(kinds),
        "left out (epsilon above 60)": skipped,
        "widest relative width": widest,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Run the sweep and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    found = sweep(arguments.cases, arguments.seconds)
    found["machine"] = {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "scipy")},
    }
    (HERE / "sweep.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "failed"}, indent=1))


if __name__ == "__main__":
    main()
