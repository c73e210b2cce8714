"""Ten million contributors in one ledger: time, memory and size, and how much of a cap the admission rule can use.

python benchmarks/ledger/run.py                    # 10 million contributors on SQLite, results in results.json
python benchmarks/ledger/run.py --people 100000    # a quick look
python benchmarks/ledger/run.py --postgresql        # on a PostgreSQL server that it starts (or --url ...)
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from confide.accounting import Guarantee, SampledGaussian
from confide.ledger import Cohort, Filter, Ledger

HERE = Path(__file__).parent
COUNTS = HERE.parent.parent / "src/confide/data/sets/nih14_entry_counts.csv"


MAKE_IDS = """
import sys, pyarrow as pa, pyarrow.parquet as pq
file, people = sys.argv[1], int(sys.argv[2])
with pq.ParquetWriter(file, pa.schema([("patient", pa.string())])) as writer:
    for start in range(0, people, 1 << 18):
        ids = [f"HOSP-{i * 2654435761 % 2**40:012d}" for i in range(start, min(start + (1 << 18), people))]
        writer.write_table(pa.table({"patient": ids}))
"""


class Clock:
    """Wall and CPU time of a block."""

    def __enter__(self) -> Clock:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def peak_mb() -> float:
    """Highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def entry_counts(people: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw entry counts from the NIH histogram: (class of every contributor as uint8, count of every class)."""
    with COUNTS.open() as file:
        rows = [(int(r["entries"]), int(r["contributors"])) for r in csv.DictReader(file)]
    counts = np.array([r[0] for r in rows])
    weights = np.array([r[1] for r in rows], float)
    edges = np.cumsum(weights / weights.sum())
    out = np.empty(people, np.uint8)
    rng = np.random.default_rng(seed)
    for start in range(0, people, 1 << 20):
        part = rng.random(min(1 << 20, people - start), dtype=np.float32)
        out[start : start + len(part)] = np.searchsorted(edges, part).clip(0, len(counts) - 1)
    return out, counts


def individual(counts: np.ndarray) -> list[Guarantee]:
    """Return one guarantee per entry count: a rate that shrinks with the count, as `individual` plans have it."""
    return [SampledGaussian(noise_multiplier=1.0, rate=0.0003 / k, entries=int(k)).guarantee(steps=500) for k in counts]


def scale(people: int, releases: int, url: str | None, folder: Path) -> dict[str, object]:
    """Workloads A and B on one ledger."""
    results: dict[str, object] = {"people": people}
    ids = folder / "ids.parquet"
    # The ids are made in a process of their own, so that its memory does not count as the ledger's.
    subprocess.run([sys.executable, "-c", MAKE_IDS, str(ids), str(people)], check=True)
    target = url or f"sqlite:///{folder}/ledger.sqlite"
    ledger = Ledger.create(target, cap_epsilon=8.0, cap_delta=1e-9, key=folder / "key")
    with Clock() as clock:
        everybody = ledger.register_parquet(ids, "patient")
    results["create"] = {"wall_s": clock.wall, "cpu_s": clock.cpu, "peak_mb": peak_mb()}
    class_of, counts = entry_counts(people, 1)
    cheap = individual(counts)
    results["classes"] = len(counts)

    def release(cohort: Cohort, classes: np.ndarray, name: str) -> dict[str, float]:
        with Clock() as clock:
            kept = ledger.reserve(
                release=name, contributors=cohort, class_of=classes, classes=cheap, data_set=name, exhausted="drop"
            )
            ledger.start(kept.id)
            ledger.commit(kept.id, release_hash="ab" * 32)
        return {"wall_s": clock.wall, "cpu_s": clock.cpu, "dropped": kept.dropped, "people": len(cohort)}

    results["everybody_first"] = release(everybody, class_of, "everybody")
    results["everybody_again"] = release(everybody, class_of, "everybody")
    results["everybody_peak_mb"] = peak_mb()
    print(json.dumps(results), file=sys.stderr, flush=True)  # a run cut off later keeps what it measured
    rng = np.random.default_rng(2)

    def sample() -> tuple[Cohort, np.ndarray]:
        numbers = np.flatnonzero(rng.random(people, dtype=np.float32) < 0.2).astype(np.uint32)
        return Cohort(ledger.id, numbers), class_of[numbers]

    sets = [sample() for _ in range(12)]
    a = [release(*sets[i % 12], f"set {i % 12}") for i in range(releases)]
    results["workload_a"] = summary(a) | {"releases": releases, "peak_mb": peak_mb()} | sizes(ledger, folder)
    b = [release(*sample(), f"cohort {i}") for i in range(min(10, releases))]
    results["workload_b"] = summary(b) | {"releases": min(10, releases), "peak_mb": peak_mb()} | sizes(ledger, folder)
    results["one_contributor"] = one_contributor(ledger, people)
    print(json.dumps(results), file=sys.stderr, flush=True)
    results["load"] = list(os.getloadavg())
    with Clock() as clock:
        ledger.verify()
    results["verify"] = {"wall_s": clock.wall, "cpu_s": clock.cpu, "peak_mb": peak_mb()}
    return results


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Median and worst of a list of timings."""
    return {
        name: {"median": float(np.median([r[name] for r in rows])), "max": max(r[name] for r in rows)}
        for name in ("wall_s", "cpu_s", "people", "dropped")
    }


def one_contributor(ledger: Ledger, people: int) -> dict[str, float]:
    """Time one person's balance, and their history composed tightly (cold and warm)."""
    labels = [f"HOSP-{i * 2654435761 % 2**40:012d}" for i in range(0, people, max(1, people // 50))]
    balance, cold, warm = [], [], []
    balance_cpu, warm_cpu = [], []
    for label in labels:
        with Clock() as clock:
            ledger.used([label])
        balance.append(clock.wall)
        balance_cpu.append(clock.cpu)
    for label in labels[:8]:
        with Clock() as clock:
            ledger.remaining(label)
        cold.append(clock.wall)
        with Clock() as clock:
            ledger.remaining(label)
        warm.append(clock.wall)
        warm_cpu.append(clock.cpu)
    return {
        "balance_ms": 1e3 * float(np.median(balance)),
        "tight_cold_ms": 1e3 * float(np.median(cold)),
        "tight_warm_ms": 1e3 * float(np.median(warm)),
        "balance_cpu_ms": 1e3 * float(np.median(balance_cpu)),
        "tight_warm_cpu_ms": 1e3 * float(np.median(warm_cpu)),
        "used_share": float(ledger.used(labels).max()),
    }


def sizes(ledger: Ledger, folder: Path) -> dict[str, float]:
    """Bytes that the tables hold, in MB."""
    import sqlalchemy as sa

    columns = {
        "token_index_mb": ("token", "length(tokens) + length(numbers) + 8"),
        "balances_mb": ("balance", "length(counters)"),
        "membership_mb": ("codes", "length(packed)"),
    }
    out = {}
    with ledger._store.read() as connection:
        for name, (table, what) in columns.items():
            total = connection.execute(sa.text(f"SELECT coalesce(sum({what}), 0) FROM {table}")).scalar()
            out[name] = float(total or 0) / 1e6
    out["spend_state_mb"] = out["balances_mb"] + out["membership_mb"]
    if (folder / "ledger.sqlite").exists():
        out["file_mb"] = (folder / "ledger.sqlite").stat().st_size / 1e6
    return out


PLANS = {
    "large": (1.0, 0.0122, 2000),
    "small": (1.0, 0.00245, 1000),
    "low noise": (0.6, 0.001, 500),
    "noise 0.8": (0.8, 0.002, 2000),
    "high noise": (5.0, 0.024, 2000),
}


def admission() -> list[dict[str, object]]:
    """How far the tight epsilon of what was admitted stays below the cap: ratio = cap / tight epsilon when full.

    For each cap a sequence is admitted until nothing more fits; the last release is cut to the steps that fit, so
    that the ratio is a property of the rule and not of the size of the last piece.
    """
    rows = []
    for cap in (2.0, 4.0, 8.0, 16.0):
        rule = Filter.design(cap, 1e-6)

        def plan(name: str, steps: int) -> Guarantee:
            noise, rate, _ = PLANS[name]
            return SampledGaussian(noise_multiplier=noise, rate=rate).guarantee(steps=steps)

        def fits(charges: list[np.ndarray], rule: Filter = rule) -> bool:
            return bool(rule.admits(np.sum([c.astype(np.uint64) for c in charges], axis=0)[None, :])[0])

        for mix in ("50 equal", "one large, many small", "low noise", "noise 0.8", "high noise"):
            first: list[tuple[str, int]] = []
            if mix == "one large, many small":
                first = [("large", int(PLANS["large"][2] * min(1.0, cap / 8)))]
            filler = {"one large, many small": "small", "50 equal": "small"}.get(mix, mix)
            pieces = 50 if mix == "50 equal" else 20
            base = [rule.charge(plan(*part)) for part in first]
            if base and not fits(base):
                rows.append({"cap": cap, "mix": mix, "ratio": None})
                continue
            low, high = 0, 10**6
            while high - low > max(1, low // 500):
                steps = (low + high) // 2
                good = fits(base + [rule.charge(plan(filler, steps))] * pieces)
                low, high = (steps, high) if good else (low, steps)
            if low == 0:
                rows.append({"cap": cap, "mix": mix, "ratio": None})
                continue
            parts = [*first, (filler, low * pieces)]
            guarantee = Guarantee(tuple(part for name, steps in parts for part in plan(name, steps).parts))
            tight = guarantee.epsilon_interval(1e-6)
            row = {"cap": cap, "mix": mix, "steps": dict(parts), "tight": list(tight), "ratio": cap / tight[0]}
            rows.append(row)
            print(
                f"cap {cap:4.0f}  {mix:24s} tight {tight[0]:.3f}-{tight[1]:.3f}  ratio {row['ratio']:.3f}", flush=True
            )
    return rows


def designs() -> list[dict[str, object]]:
    """Other rules for small caps: two orders (relative to the best Gaussian one), shares of delta, part set apart.

    Returns for each the ratio cap / tight epsilon of twenty equal releases that just fill the cap; the first design of
    each cap is the ledger's.
    """
    rows: list[dict[str, object]] = []
    for cap in (2.0, 4.0):
        made = Filter.design(cap, 1e-6)
        best = 1 + (made.orders[1] - 1) / (0.95 if cap < 3 else 0.9)
        others = [
            Filter(
                *(cap, 1e-6, tuple(round(1 + (best - 1) * part, 4) for part in relative)),
                *(tuple(1e-6 * share for share in shares), 1e-6 * apart),
            )
            for relative in ((0.6, 0.9), (0.7, 0.95), (0.45, 0.7), (0.7, 0.7))
            for shares, apart in (((0.2, 0.7), 0.1), ((0.3, 0.5), 0.2), ((0.35, 0.35), 0.3), ((0.05, 0.15), 0.8))
        ]
        for rule in (made, *others):
            row: dict[str, object] = {"cap": cap, "orders": rule.orders, "shares": rule.deltas, "apart": rule.tail}
            for name in ("small", "noise 0.8", "low noise"):
                noise, rate, _ = PLANS[name]
                step = SampledGaussian(noise_multiplier=noise, rate=rate)
                low, high = 0, 10**5
                while high - low > max(1, low // 100):
                    steps = (low + high) // 2
                    charge = rule.charge(step.guarantee(steps=steps)).astype(np.uint64)
                    low, high = (steps, high) if rule.admits((20 * charge)[None, :])[0] else (low, steps)
                row[name] = cap / step.guarantee(steps=20 * low).epsilon_interval(1e-6)[0] if low else None
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Run and write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=10_000_000)
    parser.add_argument("--releases", type=int, default=50, help="releases in workload A")
    parser.add_argument("--url")
    parser.add_argument("--postgresql", action="store_true", help="start a PostgreSQL server and measure on it")
    parser.add_argument("--name", help="where to put it in the results; default: the store")
    parser.add_argument("--part", choices=["all", "scale", "admission", "designs"], default="all")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    results["machine"] = {"cpus": os.cpu_count(), "python": platform.python_version(), "commit": commit.stdout.strip()}
    if options.part in ("all", "admission"):
        results["admission"] = admission()
    if options.part in ("all", "designs"):
        results["designs"] = designs()
    if options.part in ("all", "scale"):
        with tempfile.TemporaryDirectory() as folder:
            store, url = "postgresql" if options.url or options.postgresql else "sqlite", options.url
            name = options.name or store
            with contextlib.ExitStack() as stack:
                if options.postgresql:
                    from server import postgres

                    url = stack.enter_context(postgres()).new_database()
                before = os.getloadavg()
                results[name] = scale(options.people, options.releases, url, Path(folder))
            results[name] |= {"load_before": list(before), **results["machine"]}
            results[name]["command"] = "python benchmarks/ledger/run.py " + " ".join(sys.argv[1:])
            print(json.dumps(results[name], indent=1))
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
