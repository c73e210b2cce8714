"""What each strategy is worth on real patients: AUROC on held-out contributors, one command.

    python benchmarks/utility/run.py              # all cells that are still missing, then results.json, table, picture
    python benchmarks/utility/run.py --pilot      # how the one free constant of the learning-rate rule was chosen

Data: pbcseq (312 liver patients, 1,945 visits; does the patient die?) and icu (2,000 patients, 18,797 days; does the
patient die in hospital?), read with their declared columns. The entry-count histogram of the whole set, times the
training share, counts as public.

The same for every method: logistic regression from zero weights, 100 steps of SGD, clipping norm 1, and the noise
multiplier at which a contributor with one entry may be drawn in a quarter of the steps. The learning rate is the
textbook one for noisy gradients of a convex function, R / sqrt(T E|g|^2) with E|g|^2 <= 1 + d (effective noise)^2: a
function of public numbers only. Its constant R was chosen on a third set (nafld_yearly, 600 people) for all methods
together, and never tuned on the two sets of the table. The score of a held-out
contributor is the mean logit of all their entries.

`per-entry` becomes a statement about contributors by classical group privacy: with K the largest number of entries,
(e, d) for one entry gives (K e, d (exp(K e) - 1) / (exp(e) - 1)) for all K. So e = epsilon / K and
d = delta (exp(e) - 1) / (exp(epsilon) - 1), and the rate is the largest one that meets (e, d) at the common noise.

Every finished cell is appended to build/utility/cells.jsonl at once; a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

import confide  # noqa: E402
from confide.accounting import calibrate_noise  # noqa: E402
from confide.contributors import ContributorIndex, holdout_mask  # noqa: E402
from confide.data import Schema, SourceSpec, Table, declaration, read_sources  # noqa: E402
from confide.evaluation import auroc  # noqa: E402
from confide.planning import Plan, plan  # noqa: E402
from confide.training import ContributorDataset, EngineOptions, fit  # noqa: E402

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
CELLS = ROOT / "build" / "utility" / "cells.jsonl"
RESULTS = HERE / "results.json"

STEPS, DELTA, HOLDOUT, RATE, RADIUS, SPLITS = 100, 1e-5, 0.25, 0.25, 3.0, 20
EPSILONS = (1.0, 4.0, 8.0)
OPTIONS = EngineOptions(physical_batch=8192)  # speed only: a step of these small models fits into one pass
METHODS = (
    "contributor",
    "individual",
    "scale",
    "truncate(1)",
    "truncate(median)",
    "uniform",
    "per-entry, group privacy",
)
SETS = {"pbcseq": ("id", "day"), "icu": ("CombinedID", "Study_Day")}
PILOT_SET, PILOT_PEOPLE, PILOT_RADII = ("nafld_yearly", "id", "year"), 600, (0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Method:
    """A plan and what follows from it by public rules."""

    plan: Plan
    effective_noise: float
    learning_rate: float


def read(name: str, contributor: str, entry: str) -> Table:
    schema = Schema.from_dict(tomllib.loads(declaration(name))["columns"])
    return read_sources([SourceSpec(source=f"named:{name}", contributor=contributor, entry=entry)], schema)


def public_counts(index: ContributorIndex) -> dict[int, int]:
    """The histogram of the whole set, times the share that trains."""
    counts, people = np.unique(index.counts, return_counts=True)
    share = {int(k): round(int(n) * (1 - HOLDOUT)) for k, n in zip(counts, people, strict=True)}
    return {k: n for k, n in share.items() if n > 0 or k == int(counts[-1])}


def prepare(method: str, counts: dict[int, int], epsilon: float, features: int, radius: float) -> Method:
    noise = calibrate_noise(epsilon, delta=DELTA, rate=RATE, steps=STEPS)
    strategy, price, delta = method, epsilon, DELTA
    if method.startswith("per-entry"):
        largest = max(counts)
        strategy, price = "per-entry", epsilon / largest
        delta = DELTA * math.expm1(price) / math.expm1(epsilon)
    p = plan(counts, epsilon=price, delta=delta, noise_multiplier=noise, steps=STEPS, strategy=strategy)
    per_person = [c.rate * c.clip_norm * (1 if p.clip_unit == "contributor" else c.entries_used) for c in p.classes]
    weight = sum(w * float(c.contributors or 0) for w, c in zip(per_person, p.classes, strict=True))
    effective = noise / weight
    # the update is the clipped sum over `denominator`; the rule is stated for the clipped sum over its largest value
    rate = radius / math.sqrt(STEPS * (1 + (features + 1) * effective**2)) * p.denominator / weight
    return Method(p, effective, rate)


def person_scores(logits: np.ndarray, index: ContributorIndex) -> np.ndarray:
    return np.bincount(index.of_entry, logits, index.n_contributors) / index.counts


def held_out_auroc(logits: np.ndarray, labels: np.ndarray, index: ContributorIndex) -> float:
    label = labels[index.order[index.starts[:-1]]]
    return float(auroc(label, person_scores(logits, index)))


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")


def train(method: Method, x: np.ndarray, y: np.ndarray, index: ContributorIndex, seed: int) -> tuple[np.ndarray, float]:
    model = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    data = ContributorDataset(TensorDataset(torch.from_numpy(x), torch.from_numpy(y).float()), index)
    optimizer = torch.optim.SGD(model.parameters(), lr=method.learning_rate)
    state = fit(model, loss, optimizer, method.plan, data, seed=seed, options=OPTIONS).state_dict
    return state["weight"][0].double().numpy(), float(state["bias"][0])


def train_without_privacy(x: np.ndarray, y: np.ndarray, index: ContributorIndex) -> tuple[np.ndarray, float]:
    """Logistic regression to convergence (Newton), every contributor with weight 1, ridge penalty 1/2 |w|^2."""
    z = np.c_[x, np.ones(len(x))].astype(np.float64)
    own = 1.0 / index.counts[index.of_entry]
    ridge = np.append(np.ones(x.shape[1]), 1e-6)
    w = np.zeros(z.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-z @ w))
        gradient = z.T @ (own * (p - y)) + ridge * w
        w -= (change := np.linalg.solve((z * (own * p * (1 - p))[:, None]).T @ z + np.diag(ridge), gradient))
        if np.abs(change).max() < 1e-9:
            break
    return w[:-1], float(w[-1])


def one_split(table: Table, number: int) -> tuple[np.ndarray, ContributorIndex, np.ndarray, ContributorIndex]:
    held = holdout_mask(table.index, HOLDOUT, f"utility benchmark, split {number}")
    train_index, train_rows = table.index.subset(~held)
    test_index, test_rows = table.index.subset(held)
    return train_rows, train_index, test_rows, test_index


def measure(table: Table, method: Method | None, number: int, seed: int) -> dict[str, Any]:
    start = time.process_time()
    rows, index, test_rows, test_index = one_split(table, number)
    assert table.labels is not None
    x, y = table.features, table.labels
    if method is None:
        w, b = train_without_privacy(x[rows], y[rows], index)
    else:
        w, b = train(method, x[rows], y[rows], index, seed)
    return {
        "auroc": held_out_auroc(x[test_rows] @ w + b, y[test_rows], test_index),
        "trained_on": index.n_contributors,
        "tested_on": test_index.n_contributors,
        "cpu_seconds": round(time.process_time() - start, 3),
    }


def stored() -> dict[tuple[Any, ...], dict[str, Any]]:
    if not CELLS.exists():
        return {}
    cells = {}
    for line in CELLS.read_text().splitlines():
        try:
            cell = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while writing
        cells[cell["set"], cell["method"], cell["epsilon"], cell["split"], cell["setting"]] = cell
    return cells


def machine() -> dict[str, str]:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": "1",
        "python": platform.python_version(),
        "confide": confide.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def run() -> None:
    CELLS.parent.mkdir(parents=True, exist_ok=True)
    cells, started = stored(), time.time()
    out: list[dict[str, Any]] = []
    methods: list[dict[str, Any]] = []
    sizes = {}
    for name, columns in SETS.items():
        table = read(name, *columns)
        counts, features = public_counts(table.index), table.features.shape[1]
        sizes[name] = {
            "contributors": table.index.n_contributors,
            "entries": table.index.n_entries,
            "features": features,
            "entry_counts": counts,
        }
        grid: list[tuple[str, float | None]] = [("not private", None)]
        grid += [(method, epsilon) for epsilon in EPSILONS for method in METHODS]
        for method, epsilon in grid:
            made = None if epsilon is None else prepare(method, counts, epsilon, features, RADIUS)
            setting = "" if made is None else f"{made.plan.fingerprint()[:16]} lr {made.learning_rate:.6g}"
            if made is not None:
                used = sum(float(c.contributors or 0) * c.entries_used for c in made.plan.classes)
                methods.append(
                    {
                        "set": name,
                        "method": method,
                        "epsilon": epsilon,
                        "noise_multiplier": made.plan.noise_multiplier,
                        "effective_noise": made.effective_noise,
                        "learning_rate": made.learning_rate,
                        "denominator": made.plan.denominator,
                        "entries_used": used / sum(float(c.contributors or 0) * c.entries for c in made.plan.classes),
                        "budget": made.plan.budgets[0],
                        "delta": made.plan.delta,
                        "largest_entries": max(counts),
                        "contributor_epsilon": contributor_epsilon(made.plan, method),
                    }
                )
            for number in range(SPLITS):
                key = (name, method, epsilon, number, setting)
                if key not in cells:
                    seed = (
                        1000 * number
                        + 10 * (METHODS.index(method) if made else 0)
                        + (EPSILONS.index(epsilon) if epsilon else 0)
                    )
                    found = measure(table, made, number, seed)
                    cell = {
                        "set": name,
                        "method": method,
                        "epsilon": epsilon,
                        "split": number,
                        "setting": setting,
                        **found,
                    }
                    with CELLS.open("a") as file:
                        file.write(json.dumps(cell) + "\n")
                    cells[key] = cell
                out.append(cells[key])
            mean = np.mean([c["auroc"] for c in out[-SPLITS:]])
            print(
                f"{name:7s} {method:26s} epsilon {epsilon}  AUROC {mean:.3f}  {time.time() - started:6.0f} s",
                flush=True,
            )
    document = {
        "command": "python benchmarks/utility/run.py",
        "machine": machine(),
        "settings": {
            "steps": STEPS,
            "delta": DELTA,
            "holdout": HOLDOUT,
            "rate_of_one_entry": RATE,
            "radius": RADIUS,
            "splits": SPLITS,
            "clip_norm": 1.0,
        },
        "sets": sizes,
        "methods": methods,
        "cpu_seconds": round(sum(c["cpu_seconds"] for c in out), 1),
        "cells": [{k: v for k, v in c.items() if k != "setting"} for c in out],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def contributor_epsilon(p: Plan, method: str) -> float:
    """The largest epsilon of a contributor at the common delta, by the tight accountant."""
    return (
        max(p.guarantee(c).epsilon(DELTA) for c in p.classes)
        if method.startswith("per-entry")
        else max(c.epsilon for c in p.classes)
    )


def pilot() -> None:
    table = read(*PILOT_SET)
    held = holdout_mask(table.index, 1 - PILOT_PEOPLE / table.index.n_contributors, "utility benchmark, pilot")
    index, rows = table.index.subset(~held)
    assert table.labels is not None
    counts, features = public_counts(index), table.features.shape[1]
    small = Table(table.frame[rows], index, None, table.features[rows], table.feature_names, table.labels[rows], ())
    found: dict[str, dict[str, float]] = {}
    for radius in PILOT_RADII:
        values: dict[str, list[float]] = {}
        for epsilon in EPSILONS:
            for method in METHODS:
                made = prepare(method, counts, epsilon, features, radius)
                for number in range(3):
                    cell = measure(small, made, number, 7 + number)
                    values.setdefault(f"epsilon {epsilon:g}", []).append(cell["auroc"])
                    values.setdefault("all", []).append(cell["auroc"])
        found[f"{radius:g}"] = {k: round(float(np.mean(v)), 4) for k, v in values.items()}
        print(f"R = {radius:g}", found[f"{radius:g}"], flush=True)
    reference = float(np.mean([measure(small, None, number, 0)["auroc"] for number in range(3)]))
    document = {
        "command": "python benchmarks/utility/run.py --pilot",
        "set": PILOT_SET[0],
        "people": index.n_contributors,
        "splits": 3,
        "mean_auroc_by_radius": found,
        "not_private": round(reference, 4),
    }
    (HERE / "pilot.json").write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out-contributor AUROC of every strategy")
    parser.add_argument(
        "--pilot", action="store_true", help="choose the constant of the learning-rate rule on a third set"
    )
    parser.add_argument("--report", action="store_true", help="only write table and picture from results.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.pilot:
        pilot()
        return
    if not options.report:
        run()
    sys.path.insert(0, str(HERE))
    import report

    report.write(json.loads(RESULTS.read_text()), json.loads((HERE / "pilot.json").read_text()))


if __name__ == "__main__":
    main()
