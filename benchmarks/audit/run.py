"""Canary audit of the training loop, in full: results.json beside this file, and the page docs/audit.md made from it.

    python benchmarks/audit/run.py            # every row that is missing in build/audit/rows.jsonl, then the page
    python benchmarks/audit/run.py --report   # the page only

Two parts. First, how close the strongest adversary comes to the claim, one row a setting, consecutive seeds.
Second, whether the audit fails when the loop is broken on purpose (`breaks.py`), at error 1e-4.
"""

# ruff: noqa: E501 (long lines are sentences of the page)
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

import confide  # noqa: E402
from confide.audit import canary_audit  # noqa: E402
from confide.planning import plan  # noqa: E402

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(HERE))
from breaks import BREAKS  # noqa: E402

ROWS, RESULTS, PAGE = ROOT / "build" / "audit" / "rows.jsonl", HERE / "results.json", ROOT / "docs" / "audit.md"
CANARIES, BROKEN_CANARIES, SEED, EPSILON, DELTA = 20_000, 4_000, 2026, 5.0, 1e-5
# strategy, entries of a canary, noise multiplier, steps
CLOSE = [
    ("contributor", 1, 5.0, 200),
    ("contributor", 8, 5.0, 200),
    ("individual", 1, 5.0, 200),
    ("individual", 4, 10.0, 200),
    ("individual", 13, 20.0, 200),
    ("scale", 4, 5.0, 200),
    ("scale", 13, 5.0, 200),
    ("individual", 4, 1.0, 500),
]
BROKEN = {"contributor": (4, 4.0, 100), "individual": (4, 10.0, 100), "scale": (4, 4.0, 100)}


def machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": "1",
        "python": platform.python_version(),
        "confide": confide.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def audit_row(
    strategy: str, entries: int, noise: float, steps: int, broken: str | None, *, seed: int
) -> dict[str, Any]:
    p = plan({entries: 1000}, epsilon=EPSILON, delta=DELTA, noise_multiplier=noise, steps=steps, strategy=strategy)
    start = time.process_time()
    report = canary_audit(
        p,
        entries=entries,
        canaries=CANARIES if broken is None else BROKEN_CANARIES,
        seed=seed,
        tamper=None if broken is None else BREAKS[strategy][broken],
    )
    return {
        "seed": seed,
        "noise_multiplier": noise,
        "rate": p.classes[0].rate,
        "clip_norm": p.classes[0].clip_norm,
        "cpu_seconds": round(time.process_time() - start, 1),
        **report.to_dict(),
    }


def run() -> None:
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    for line in ROWS.read_text().splitlines() if ROWS.exists() else []:
        row = json.loads(line)
        done[row["key"]] = row
    wanted: list[tuple[str, int, float, int, str | None]] = [(*setting, None) for setting in CLOSE]
    wanted += [(strategy, *BROKEN[strategy], name) for strategy in BROKEN for name in BREAKS[strategy]]
    rows = []
    for seed, setting in enumerate(wanted, SEED):
        key = json.dumps([*setting, CANARIES, BROKEN_CANARIES, seed, EPSILON, DELTA])
        if key not in done:
            done[key] = {"key": key, "broken": setting[-1], **audit_row(*setting, seed=seed)}
            with ROWS.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        row = done[key]
        print(
            setting,
            f"ratio {row['ratio']:.2f}",
            "rejected" if row["rejected"] else "",
            f"{row['cpu_seconds']} s",
            flush=True,
        )
        rows.append({k: v for k, v in row.items() if k != "key"})
    document = {"command": "python benchmarks/audit/run.py", "machine": machine(), "seed": SEED, "rows": rows}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def page(document: dict[str, Any]) -> str:
    close = [row for row in document["rows"] if row["broken"] is None]
    broken = [row for row in document["rows"] if row["broken"] is not None]
    ratios = [row["ratio"] for row in close]
    caught = sum(row["violation"]["rejected"] for row in broken)
    inside = sum(0.7 <= r <= 1.0 for r in ratios)
    first, rejected = close[0], sum(row["rejected"] for row in close)
    hardware = document["machine"]
    lines = [
        "# Does the code keep its promise? A canary audit",
        "",
        f"The strongest adversary we can build against the real training loop reaches {min(ratios):.1%} to "
        f"{max(ratios):.1%} of the claimed epsilon ({inside} of {len(close)} settings between 70 % and 100 %; "
        f"{rejected} of {len(close)} claims rejected), and the audit rejects {caught} of {len(broken)} loops that were "
        "broken on purpose.",
        "",
        "The audit trains with the product's own `PrivateRun` on simulated contributors. Half of the canaries are in the",
        "data: each has k entries whose gradients all push one parameter that nothing else uses, harder than the clip",
        "allows. The adversary sees the noisy gradient of every step and scores each canary by the exact log likelihood",
        "ratio of the dominating pair. Coins and noise of different canaries are independent, so one run gives thousands of",
        "independent observations (argued in `confide.audit.simulation`). Half of them choose the thresholds, the figures",
        "below come from the other half. Seeds are consecutive numbers fixed in the script, none was chosen by its result.",
        "",
        "## How close the adversary comes",
        "",
        f"Claims at delta {first['delta']:g}; {first['observations']:,} observations a row; lower bounds with "
        f"{first['confidence']:.0%} confidence. The *estimate under GDP* holds if the trade-off curve is that of a Gaussian "
        "mechanism; the *assumption-free* bound always holds and is weak by nature at a small delta.",
        "",
        "| strategy | entries | noise | rate | steps | claim | estimate under GDP | of the claim | attainable | assumption-free | "
        "inclusion test | rejected |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in close:
        lines.append(
            f"| {row['strategy']} | {row['entries']} | {row['noise_multiplier']:g} | {row['rate']:.3f} | {row['steps']} | "
            f"{row['claim']:.2f} | {row['lower_bound']:.2f} | {row['ratio']:.1%} | {row['attainable'] / row['claim']:.0%} | {row['assumption_free']:.2f} | "
            f"p = {row['inclusion']['p_value']:.2f} | {'yes' if row['rejected'] else 'no'} |"
        )
    lines += [
        "",
        "*Attainable* is the share of the claim that the estimate under GDP would tend to, with ever more observations, on a",
        "loop that leaks all that is claimed. At noise 1 (last row) few of many steps matter, the curve is far from a Gaussian",
        "one, and thresholds in its middle say less about the tail in which delta lives. A lower bound below the claim is no",
        "proof of slack.",
        "",
        "## Loops broken on purpose",
        "",
        f"{broken[0]['observations']:,} observations a row. A claim is rejected when a Clopper-Pearson point lies below the",
        f"claimed trade-off curve; the probability of rejecting a true claim is at most {broken[0]['violation']['error']:g}. "
        "The inclusion count",
        "(canary units drawn, against their rate) is tested at the same level and can only see the sampler.",
        "",
        "| strategy | what was broken | trade-off curve | inclusion count |",
        "| --- | --- | --- | --- |",
    ]
    for row in broken:
        lines.append(
            f"| {row['strategy']} | {row['broken']} | {'rejected' if row['violation']['rejected'] else 'not rejected'} | "
            f"{'rejected' if row['inclusion']['rejected'] else 'fits the rate'} |"
        )
    lines += [
        "",
        "What this audit cannot see: wrong contributor ids, side channels, anything outside the loop. It can contradict a",
        "claim and never prove one; the proof is cited with each mechanism in `confide.accounting`.",
        "",
        f"Command: `{document['command']}` (seeds from {document['seed']}; {sum(r['cpu_seconds'] for r in document['rows']):.0f} "
        f"seconds on one core of {hardware['processor']}; Python {hardware['python']}, torch {hardware['torch']}, numpy "
        f"{hardware['numpy']}). Data: `benchmarks/audit/results.json`. A small version runs with the slow tests "
        "(`make test-slow`). Audit a plan of your own: `confide.audit.canary_audit(plan, entries=k).sentence`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Canary audit of the training loop")
    parser.add_argument("--report", action="store_true", help="only write the page from results.json")
    torch.set_num_threads(1)
    if not parser.parse_args().report:
        run()
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
