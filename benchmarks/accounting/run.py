"""How fast and how tight the accountant is, with dp_accounting in the same run.

python benchmarks/accounting/run.py [--cases 200]     writes results.json beside this file
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from confide.accounting import SampledGaussian, calibrate_clips, calibrate_rates, epsilons
from confide.risk import profile

HERE = Path(__file__).parent
SEED = 20240607


def random_cases(count: int) -> list[tuple[float, float, int, int, float]]:
    """The committed random grid: log-uniform in every parameter, epsilon up to 100."""
    rng = np.random.default_rng(SEED)
    cases: list[tuple[float, float, int, int, float]] = []
    while len(cases) < count:
        u = rng.uniform(size=5)
        sigma, rate = 0.5 * 40 ** u[0], 1e-5 * 5e4 ** u[1]
        k, steps, delta = int(201 ** u[2]), int(1e5 ** u[3]), 1e-12 * 1e8 ** u[4]
        composition = SampledGaussian(sigma, rate, max(k, 1)).guarantee(steps)._composition
        if max(composition.sizing(remove, delta=delta).loss for remove in (True, False)) < 100:
            cases.append((float(sigma), float(rate), max(k, 1), steps, float(delta)))
    return cases


def one_guarantee(count: int) -> dict[str, Any]:
    """Wall and CPU time of one certified interval of relative width 1e-3."""
    wall, cpu, width, worst = [], [], [], []
    for case in random_cases(count):
        sigma, rate, k, steps, delta = case
        start, start_cpu = time.perf_counter(), time.process_time()
        low, high = SampledGaussian(sigma, rate, k).guarantee(steps).epsilon_interval(delta)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
        width.append((high - low) / max(high, 1e-2))
        if width[-1] > 1.05e-3:
            worst.append({"case": case, "low": low, "high": high})
    return {
        "cases": count,
        "seed": SEED,
        "median_ms": 1e3 * float(np.median(wall)),
        "p95_ms": 1e3 * float(np.quantile(wall, 0.95)),
        "median_cpu_ms": 1e3 * float(np.median(cpu)),
        "p95_cpu_ms": 1e3 * float(np.quantile(cpu, 0.95)),
        "share_within_1e-3": float(np.mean(np.array(width) <= 1.05e-3)),
        "wider": worst,
    }


def against_dp_accounting() -> list[dict[str, Any]]:
    """Time and value of one epsilon, both libraries, both directions."""
    from dp_accounting.pld import privacy_loss_distribution as pl

    rows = []
    for k in (1, 4, 10):
        start = time.perf_counter()
        low, high = SampledGaussian(1.0, 0.01, k).guarantee(1000).epsilon_interval(1e-5)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        weights = stats.binom.pmf(np.arange(k + 1), k, 0.01).tolist()
        peer = pl.from_mixture_gaussian_mechanism(1.0, list(range(k + 1)), weights, value_discretization_interval=1e-3)
        value = peer.self_compose(1000).get_epsilon_for_delta(1e-5)
        theirs = time.perf_counter() - start
        rows.append(
            {
                "entries": k,
                "confide_low": low,
                "confide_high": high,
                "confide_s": ours,
                "dp_accounting": float(value),
                "dp_accounting_grid": 1e-3,
                "dp_accounting_s": theirs,
                "times_faster": theirs / ours,
            }
        )
        print(rows[-1], flush=True)
    return rows


def nih() -> dict[str, Any]:
    """The whole NIH ChestX-ray14 plan: rates and clips of every distinct entry count."""
    from confide.data import load

    counts = np.asarray(load("nih14_entry_counts")["entries"])
    kw: dict[str, Any] = {"delta": 1e-6, "noise_multiplier": 1.0, "steps": 2000}
    start, start_cpu = time.perf_counter(), time.process_time()
    rates = calibrate_rates(counts, 4.0, **kw)
    rates_s, rates_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    start, start_cpu = time.perf_counter(), time.process_time()
    spent = epsilons(rate=rates, entries=counts, **kw)
    epsilons_s, epsilons_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    start, start_cpu = time.perf_counter(), time.process_time()
    calibrate_clips(counts, 4.0, rate=float(rates[0]), **kw)
    clips_s, clips_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "distinct_counts": len(counts),
        "rates_s": rates_s,
        "rates_cpu_s": rates_cpu,
        "clips_s": clips_s,
        "clips_cpu_s": clips_cpu,
        "epsilons_s": epsilons_s,
        "epsilons_cpu_s": epsilons_cpu,
        "spent_min": float(spent.min()),
        "spent_max": float(spent.max()),
    }


def many_classes(count: int = 10_000) -> dict[str, Any]:
    """Rates of many distinct (entries, budget) classes; 100 of them checked by an interval of their own."""
    rng = np.random.default_rng(SEED)
    entries, budgets = rng.integers(1, 201, count), rng.uniform(0.5, 8.0, count)
    kw: dict[str, Any] = {"delta": 1e-6, "noise_multiplier": 1.0, "steps": 2000}
    start, start_cpu = time.perf_counter(), time.process_time()
    rates = calibrate_rates(entries, budgets, **kw)
    wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    spent = []
    for i in rng.choice(count, 100, replace=False):
        interval = SampledGaussian(1.0, rates[i], int(entries[i])).guarantee(2000).epsilon_interval(1e-6)
        spent.append((interval[0] / budgets[i], interval[1] / budgets[i]))
    return {
        "classes": count,
        "wall_s": wall,
        "cpu_s": cpu,
        "least_spent": min(low for low, _ in spent),
        "most_spent": max(high for _, high in spent),
    }


def read_outs() -> list[dict[str, Any]]:
    """Processor time of what a certificate and a risk page read of one class, in the order they read it."""
    rows = []
    for k in (1, 20, 184):
        guarantee = SampledGaussian(1.0, 0.0128 / k, k).guarantee(2000)
        row: dict[str, Any] = {"entries": k}
        for name, read in (
            ("epsilon_interval", lambda g: g.epsilon_interval(1e-6)),
            ("advantage", lambda g: g.advantage()),
            ("true_positives_at_1_percent", lambda g: g.tradeoff(0.01)),
            ("posterior", lambda g: g.posterior(0.01, 0.01)),
            ("risk_profile", lambda g: profile(g, delta=1e-6)),
        ):
            start = time.process_time()
            read(guarantee)
            row[name + "_cpu_ms"] = 1e3 * (time.process_time() - start)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--no-peer", action="store_true")
    arguments = parser.parse_args()
    code = "import numpy, scipy.special, scipy.fft, time; t = time.process_time(); import confide.accounting; "
    code += "print(time.process_time() - t)"
    imports = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(5)
    ]
    out: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scipy", "dp-accounting")},
        },
        "import_cpu_s_beyond_numpy_scipy": min(imports),
        "one_guarantee": one_guarantee(arguments.cases),
        "nih": nih(),
        "many_classes": many_classes(),
        "read_outs": read_outs(),
    }
    if not arguments.no_peer:
        out["against_dp_accounting"] = against_dp_accounting()
    out["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (HERE / "results.json").write_text(json.dumps(out, indent=1) + "\n")
    print(json.dumps({k: v for k, v in out.items() if k != "one_guarantee"}, indent=1))
    print({k: v for k, v in out["one_guarantee"].items() if k != "wider"})


if __name__ == "__main__":
    main()
