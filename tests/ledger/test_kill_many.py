"""The kill test of the benchmark for a few seconds: writers killed at random, the journal replayed against a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ledger" / "kill.py"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_nothing_lost_doubled_or_overspent(store, tmp_path):
    out = tmp_path / "faults.json"
    command = [sys.executable, str(SCRIPT), "--store", store, "--seconds", "12", "--writers", "6", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())[store]
    assert found["writers killed"] > 10 and found["answers checked"] > 20
    assert not any(found["faults"].values())


def test_the_committed_table_says_how_it_was_made():
    """What the documentation quotes: five minutes, 32 writers, both stores, no fault of any kind."""
    table = json.loads((SCRIPT.parent / "faults.json").read_text())
    for store in ("sqlite", "postgresql"):
        row = table[store]
        assert row["seconds"] >= 300 and row["writers at once"] == 32 and row["writers killed"] > 500
        assert not any(row["faults"].values())
