"""Time and memory of `confide synthesize` on tables of any size; python benchmarks/synthesis/scale.py PATIENTS.

Makes Parquet files of simulated patients with ten visits each, rows in random order (written in pieces, too), and runs
the study on them in a process of its own: reading and checking, charging every patient in a ledger, learning, drawing
as many patients, writing the release. Adds one JSON line to scale.jsonl. Run it at several sizes to see that memory
does not grow with rows.
"""

from __future__ import annotations

import argparse
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
import polars as pl

VISITS = 10
STUDY = """
name = "scale"
[patients]
source = "patients.parquet"
contributor = "id"
STREAM
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[patients.columns.age]
type = "integer"
bounds = [20, 89]
bins = 7
[patients.columns.risk]
type = "ordinal"
categories = ["none", "low", "middle", "high"]
[visits]
source = "visits.parquet"
contributor = "id"
time = "day"
max_visits = 20
min_visits = 1
[visits.columns.day]
type = "integer"
bounds = [0, 2919]
bins = 8
[visits.columns.stage]
type = "ordinal"
categories = [0, 1, 2, 3, 4]
[visits.columns.lab]
type = "real"
bounds = [0, 100]
bins = 6
missing = "indicator"
[visits.columns.drug]
type = "categorical"
categories = ["none", "first", "second"]
[visits.columns.event]
type = "categorical"
categories = ["no", "yes"]
[privacy]
epsilon = 1.0
delta = 1e-7
"""


def write(folder: Path, patients: int) -> None:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    writers: dict[str, pq.ParquetWriter] = {}
    for start in range(0, patients, 50_000):
        n = min(50_000, patients - start)
        ids = np.array([f"p{number:08d}" for number in range(start, start + n)])
        sex, age = rng.integers(0, 2, n), rng.integers(20, 90, n)
        risk = np.clip(sex + (age - 20) // 30 + rng.integers(0, 2, n), 0, 3)
        stage = np.clip(risk[:, None] + np.cumsum(rng.random((n, VISITS)) < 0.15, axis=1), 0, 4)
        lab = np.clip(20.0 * stage + rng.uniform(0, 30, (n, VISITS)), 0, 100)
        lab[rng.random((n, VISITS)) < 0.1] = np.nan
        rows = {
            "day": np.sort(rng.integers(0, 2920, (n, VISITS)), axis=1),
            "stage": stage,
            "lab": lab,
            "drug": np.array(["none", "first", "second"])[
                (rng.random((n, VISITS)) * (1 + stage / 2)).astype(int).clip(0, 2)
            ],
            "event": np.array(["no", "yes"])[(rng.random((n, VISITS)) < 0.05 + 0.05 * stage).astype(int)],
        }
        words = np.array(["none", "low", "middle", "high"])[risk]
        mixed = rng.permutation(n * VISITS)
        tables = {
            "patients": pl.DataFrame({"id": ids, "sex": np.array(["f", "m"])[sex], "age": age, "risk": words}),
            "visits": pl.DataFrame(
                {"id": np.repeat(ids, VISITS)[mixed], **{name: values.ravel()[mixed] for name, values in rows.items()}}
            ).with_columns(pl.col("lab").fill_nan(None)),
        }
        for name, table in tables.items():
            arrow = table.to_arrow()
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", arrow.schema)
            writers[name].write_table(arrow, row_group_size=100_000)
    for writer in writers.values():
        writer.close()


def measure(folder: Path) -> dict[str, object]:
    from confide.ledger import Ledger
    from confide.studies.synthesis_run import run_synthesis

    url = f"sqlite:///{folder}/ledger.sqlite"
    Ledger.create(url, cap_epsilon=2.0, cap_delta=1e-5).close()
    start, load = time.perf_counter(), os.getloadavg()[0]
    at: dict[str, float] = {}

    def tell(name: str, share: float) -> None:
        if share > 0:
            at.setdefault("first answer", time.perf_counter())
        if share > 1 - 1e-6:
            at.setdefault("last answer", time.perf_counter())

    def accept(lines: list[str]) -> None:
        at["read"] = time.perf_counter()

    release = run_synthesis(folder / "study.toml", accept=accept, ledger_url=url, progress=tell).release
    end = time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_SELF)
    drawn = pl.scan_parquet(release.file("visits.parquet")).select(pl.len()).collect().item()
    return {
        "seconds": round(end - start, 1),
        "seconds_reading": round(at["read"] - start, 1),
        "seconds_charging": round(at["first answer"] - at["read"], 1),
        "seconds_measuring": round(at["last answer"] - at["first answer"], 1),
        "seconds_fitting_drawing_writing": round(end - at["last answer"], 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "visits_drawn": drawn,
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }


def machine() -> dict[str, object]:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("POLARS_MAX_THREADS", "all"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "polars": pl.__version__,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patients", type=int)
    parser.add_argument("--in-memory", action="store_true", help="for comparison")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.patients)
        stream = f"stream = {str(not options.in_memory).lower()}"
        (folder / "study.toml").write_text(STUDY.replace("STREAM", stream))
        bytes_ = sum(file.stat().st_size for file in folder.glob("*.parquet"))
        command = [sys.executable, __file__, str(options.patients), "--folder", name]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    row = {"patients": options.patients, "visits": options.patients * VISITS, "way": "in memory" if options.in_memory
           else "streamed", "parquet_mb": round(bytes_ / 2**20), **found, "machine": machine()}  # fmt: skip
    line = json.dumps(row) + "\n"
    print(line, end="", flush=True)
    with (Path(__file__).parent / "scale.jsonl").open("a") as file:
        file.write(line)


if __name__ == "__main__":
    main()
