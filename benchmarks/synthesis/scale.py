"""Time and memory of the default method on tables read from disk; python benchmarks/synthesis/scale.py PATIENTS.

Makes Parquet files of simulated patients with ten visits each (written in pieces, too), then fits and draws in a
process of its own; prints one JSON line. Run it at two sizes to see that memory does not grow with rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from confide.synthesis import Column, Domain, Meter, PatientUnit, StreamedPanel

VISITS = 10
DOMAIN = Domain(
    (Column("sex", 2), Column("age", 7, ordinal=True), Column("risk", 4, ordinal=True)),
    (
        Column("year", 8, ordinal=True),
        Column("stage", 5, ordinal=True),
        Column("lab", 6, ordinal=True, missing=True),
        Column("drug", 3),
        Column("event", 2),
    ),
    max_visits=20,
    min_visits=1,
    time="year",
)


def write(folder: Path, patients: int) -> None:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    writers: dict[str, pq.ParquetWriter] = {}
    for start in range(0, patients, 50_000):
        n = min(50_000, patients - start)
        sex, age = rng.integers(0, 2, n), rng.integers(0, 7, n)
        risk = np.clip(sex + age // 3 + rng.integers(0, 2, n), 0, 3)
        stage = np.clip(risk[:, None] + np.cumsum(rng.random((n, VISITS)) < 0.15, axis=1), 0, 4)
        lab = np.clip(stage + rng.integers(0, 2, (n, VISITS)), 0, 5)
        rows = {
            "year": np.sort(rng.integers(0, 8, (n, VISITS)), axis=1),
            "stage": stage,
            "lab": lab,
            "drug": (rng.random((n, VISITS)) * (1 + stage / 2)).astype(int).clip(0, 2),
            "event": (rng.random((n, VISITS)) < 0.05 + 0.05 * stage).astype(int),
        }
        tables = {
            "patients": pl.DataFrame({"sex": sex, "age": age, "risk": risk, "visits": np.full(n, VISITS)}),
            "visits": pl.DataFrame({name: values.ravel() for name, values in rows.items()}),
        }
        for name, table in tables.items():
            arrow = table.cast(pl.Int16).to_arrow()
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", arrow.schema)
            writers[name].write_table(arrow)
    for writer in writers.values():
        writer.close()


def measure(folder: Path, patients: int) -> dict[str, float]:
    data = StreamedPanel(DOMAIN, folder / "patients.parquet", folder / "visits.parquet")
    start, cpu = time.perf_counter(), time.process_time()
    model = PatientUnit().fit(data, Meter(epsilon=1.0, delta=1e-7))
    fitted = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model.sample(10_000)
    return {
        "patients": patients,
        "visits": patients * VISITS,
        "seconds": round(fitted, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": round(peak),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patients", type=int)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(measure(options.folder, options.patients)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.patients)
        command = [sys.executable, __file__, str(options.patients), "--folder", folder]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(line.strip(), flush=True)
    with (Path(__file__).parent / "scale.jsonl").open("a") as file:
        file.write(line)


if __name__ == "__main__":
    main()
