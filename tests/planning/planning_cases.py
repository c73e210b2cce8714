"""One small public setting for the tests of plans."""

from __future__ import annotations

from typing import Any

COUNTS = {1: 600, 2: 200, 3: 100, 7: 60, 20: 40}
CONSTANTS: dict[str, Any] = {"epsilon": 2.0, "delta": 1e-5, "noise_multiplier": 1.0, "steps": 300}
ALL = ("contributor", "contributor(2)", "individual", "scale", "uniform", "truncate(1)", "truncate(3)", "per-entry")
KEEPS_BUDGETS = tuple(name for name in ALL if name != "per-entry")
