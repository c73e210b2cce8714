"""Processor time of whole plans, each in a process of its own.

python benchmarks/accounting/plans.py     writes plans.json beside this file
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).parent
NIH = files("confide.data") / "sets" / "nih14_entry_counts.csv"
CODE = """
import json, resource, sys, time
import confide
from confide.planning import Plan
began = time.process_time()
%s
print(json.dumps({"cpu_s": time.process_time() - began,
                  "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""
CONSTANTS = "epsilon=4.0, delta=1e-6, noise_multiplier=1.0, steps=2000"
LEVELS = "[0.4 + 0.225 * i for i in range(17)]"
MANY = f"confide.plan(max_entries=1000, max_contributors=100_000, budgets={LEVELS}, {CONSTANTS})"


def timed(code: str) -> dict[str, float]:
    """Run a snippet in a fresh process."""
    out = subprocess.run([sys.executable, "-c", CODE % code], capture_output=True, text=True, check=True).stdout
    return dict(json.loads(out))


def main() -> None:
    """Measure and write."""
    rows = {
        f"the whole NIH ChestX-ray14 plan, strategy {name}": timed(
            f'confide.plan({str(NIH)!r}, strategy="{name}", {CONSTANTS})'
        )
        for name in ("individual", "scale")
    }
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/plan.json"
        count = f'open({file!r} + ".n", "w").write(str(len(plan.classes)))'
        made = timed(f'plan = {MANY}\nopen({file!r}, "w").write(json.dumps(plan.to_dict()))\n{count}')
        classes = int(Path(file + ".n").read_text())
        rows[f"a plan of {classes:,} classes (entries x budgets)"] = made
        rows[f"Plan.check of these {classes:,} classes"] = timed(f"Plan.from_dict(json.load(open({file!r}))).check()")
    found = {
        "rows": rows,
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()},
    }
    (HERE / "plans.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
