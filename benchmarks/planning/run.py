"""Strategies side by side on the NIH ChestX-ray14 histogram, and how long that takes.

    python benchmarks/planning/run.py     # writes results.json beside it and the table of docs/planning.md

The histogram (30,805 patients, 112,120 images) is vendored; the file and its SHA-256 are named in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "planning.md"
BEGIN, END = "<!-- table: benchmarks/planning/run.py -->", "<!-- end of table -->"
CONSTANTS = {"epsilon": 4.0, "delta": 1e-6, "noise_multiplier": 1.0, "steps": 2000}


def measure() -> dict[str, object]:
    """Compare once in this process for the figures, once by the command for the time a user waits."""
    from confide._files import sha256_of
    from confide.planning import compare

    path = Path(str(files("confide.data") / "sets" / "nih14_entry_counts.csv"))
    begin_cpu = time.process_time()
    table = compare(path, **CONSTANTS)
    cpu = time.process_time() - begin_cpu

    command = [sys.executable, "-c", "from confide.cli import main; main()", "plan", "--entry-counts", str(path)]
    for name, value in CONSTANTS.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    begin = time.perf_counter()
    printed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    wall = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if json.loads(printed) != json.loads(json.dumps(table.to_json_dict())):
        raise SystemExit("the command and the library differ")

    reference = table.row("truncate(1)")
    rows = []
    for row in table:
        figures = row.to_dict()
        figures.pop("classes")
        shares = [c.epsilon / c.budget for c in row.classes]
        figures["batch_of_truncate_1"] = row.expected_entries / reference.expected_entries
        figures["people_of_truncate_1"] = row.expected_contributors / reference.expected_contributors
        figures["signal_of_truncate_1"] = reference.effective_noise / row.effective_noise
        figures["budget_spent_min"], figures["budget_spent_max"] = min(shares), max(shares)
        rows.append(figures)
    return {
        "command": "python benchmarks/planning/run.py",
        "histogram": {"file": path.name, "sha256": sha256_of(path), "contributors": 30805, "entries": 112120},
        "constants": CONSTANTS,
        "recommended": table.recommended,
        "cores": os.cpu_count(),
        "compare_cpu_seconds": round(cpu, 1),
        "command_wall_seconds": round(wall, 1),
        "command_cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "load_average_before": round(LOAD, 1),
        "rows": rows,
    }


def write_table(results: dict[str, object]) -> None:
    """Put the figures between the markers of the page."""
    lines = [
        "| strategy | images used | over-protected | gradients a step | people a step | batch of truncate(1) "
        "| effective noise | epsilon over k | weight of a person, an image at k = 184 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:  # type: ignore[attr-defined]
        person, entry = row["estimand"]["person"][-1], row["estimand"]["entry"][-1]
        lines.append(
            f"| {row['strategy']} | {100 * row['entries_used']:.1f} % | {100 * row['overprotected']:.1f} % "
            f"| {row['work']:.1f} | {row['expected_contributors']:.1f} | {row['batch_of_truncate_1']:.3f} "
            f"| {row['effective_noise']:.5f} | {row['epsilon_min']:.3g} to {row['epsilon_max']:.4g} "
            f"| {person:.3g}, {entry:.3g} |"
        )
    individual = next(row for row in results["rows"] if row["strategy"] == "individual")  # type: ignore[attr-defined]
    lines += [
        "",
        f"Every class of `individual` spends between {individual['budget_spent_min']:.4f} and "
        f"{individual['budget_spent_max']:.4f} of its budget. Recommended: `{results['recommended']}`. The command "
        f"needs {results['command_cpu_seconds']} s of one core; on {results['cores']} cores at a load average of "
        f"{results['load_average_before']} (other work beside it) it took {results['command_wall_seconds']} s.",
    ]
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only print, write nothing")
    arguments = parser.parse_args()
    LOAD = os.getloadavg()[0]
    found = measure()
    print(json.dumps(found, indent=1))
    if not arguments.check:
        (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        write_table(found)
