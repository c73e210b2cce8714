"""Evaluate one synthesis of examples/nafld_synthesis.toml; the figures go to benchmarks/tables/nafld.json.

    python benchmarks/tables/run.py        # some six minutes of one core

The noise is fresh, so that figures differ from run to run; the file says when and where it was made.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

from confide.ledger import Ledger
from confide.studies.evaluate_tables import evaluate_tables
from confide.studies.synthesis_run import run_synthesis

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        study = Path(name) / "study.toml"
        study.write_text((ROOT / "examples" / "nafld_synthesis.toml").read_text())
        url = f"sqlite:///{name}/ledger.sqlite"
        Ledger.create(url, cap_epsilon=8, cap_delta=1e-5).close()
        made = run_synthesis(study, accept=lambda lines: None, ledger_url=url)
        figures = evaluate_tables(made.release.path).figures.model_dump(mode="json")
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    figures["load"] = os.getloadavg()
    Path(__file__).with_name("nafld.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
