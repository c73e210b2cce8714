"""The pair of scripts that shows the move from Opacus: both run, and few lines change."""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_moving_from_opacus_changes_fewer_than_twenty_lines():
    before, after = (
        [line for line in (EXAMPLES / name).read_text().splitlines() if line.strip()]
        for name in ("opacus_before.py", "opacus_after.py")
    )
    changes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = sum(max(b - a, d - c) for tag, a, b, c, d in changes if tag != "equal")
    assert 5 < changed < 20
    assert sum(d - c for tag, _, _, c, d in changes if tag != "equal") < 20


@pytest.mark.parametrize(("name", "unit"), [("opacus_before.py", "visit"), ("opacus_after.py", "patient")])
@pytest.mark.filterwarnings("ignore")
def test_both_scripts_run(name, unit, capsys):
    if "before" in name:
        pytest.importorskip("opacus")
    state = torch.get_rng_state()
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        torch.set_rng_state(state)
    out = capsys.readouterr().out
    assert out.startswith("epsilon ") and out.strip().endswith(f"per {unit}")
