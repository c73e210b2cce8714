"""Is the ghost norm taken where it is the cheaper one? results.json, and its table in docs/running.md.

    python benchmarks/cost_model/run.py [--device cuda]     # measure the device, then write the table
    python benchmarks/cost_model/run.py --report            # the table only

For a linear map of d to p features and units of n rows the fast engine either takes the ghost norm (two Grams) and one
product for the sum, or keeps the gradient of every unit. `confide.training.engine.fast.cost` decides from shapes; here
both are timed (norms and clipped sum, no backward pass), least of five. *Regret* is the time of the way that the model
chose over that of the faster one. On a CPU: seconds of the process, one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "src"))
from confide.training.engine.fast import kernels  # noqa: E402
from confide.training.engine.fast.arithmetic import Arithmetic  # noqa: E402
from confide.training.engine.fast.blocks import Blocks  # noqa: E402
from confide.training.engine.fast.cost import Shape  # noqa: E402
from confide.training.engine.fast.pieces import Kept, Pair  # noqa: E402

RESULTS, PAGE = HERE / "results.json", ROOT / "docs" / "running.md"
START, END = "<!-- table of benchmarks/cost_model/run.py -->", "<!-- end of table -->"
# Units, entries of each, positions of an entry, d, p.
CELLS = [
    (16, 4, 1, 1024, 1024),
    (64, 1, 1, 1024, 1024),
    (16, 4, 1, 128, 10),
    (16, 4, 1, 256, 256),
    (8, 4, 1, 2048, 512),
    (8, 4, 4, 256, 256),
    (8, 4, 8, 256, 1024),
    (8, 1, 16, 256, 1024),
    (8, 1, 64, 256, 256),
    (8, 1, 64, 256, 1024),
    (4, 2, 32, 768, 768),
    (4, 2, 32, 768, 3072),
    (16, 4, 4, 64, 64),
    (16, 4, 16, 64, 64),
    (2, 8, 8, 512, 512),
    (4, 1, 64, 1024, 1024),
]


def least(act: Callable[[], Any], device: torch.device) -> float:
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    seconds = []
    for number in range(6):
        start = clock()
        act()
        if cuda:
            torch.cuda.synchronize()
        if number:
            seconds.append(clock() - start)
    return min(seconds)


def measure(cell: tuple[int, ...], device: torch.device) -> dict[str, Any]:
    units, each, positions, inputs, outputs = cell
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(units * each, positions, n, generator=generator).to(device) for n in (inputs, outputs))
    blocks = Blocks.of(np.repeat(np.arange(units), each), units, device)
    numbers, weights = Arithmetic(torch.float32, tf32=False), torch.rand(units, generator=generator).to(device)

    def ghost() -> None:
        pair = Pair(a, g, blocks, numbers)
        pair.squared()
        pair.weighted(weights)

    def keep() -> None:
        found = kernels.linear_gradients(a, g, blocks)
        kept = Kept(found.values.flatten(1), found.values.shape[1:], numbers, square=found.square)
        kept.squared()
        kept.weighted(weights)

    shape = Shape(units, each * positions, inputs, outputs)
    return {
        "cell": list(cell),
        "ghost_ms": round(1e3 * least(ghost, device), 3),
        "keep_ms": round(1e3 * least(keep, device), 3),
        "predicted": round(shape.ghost_bytes(device, torch.float32) / shape.keep_bytes(torch.float32), 3),
        "ghost": shape.ghost(device, torch.float32),
    }


def table(results: dict[str, Any]) -> str:
    lines = []
    for device, found in results.items():
        regrets = []
        lines += [
            f"{found['machine']}, torch {found['torch']}, {found['date']}:",
            "",
            "| units x rows | features | ghost, ms | kept, ms | ghost / kept: predicted | measured | chosen | regret |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for cell in found["cells"]:
            units, each, positions, inputs, outputs = cell["cell"]
            ghost, keep = cell["ghost_ms"], cell["keep_ms"]
            regrets.append((ghost if cell["ghost"] else keep) / min(ghost, keep))
            lines.append(
                f"| {units} x {each * positions} | {inputs} to {outputs} | {ghost:.2f} | {keep:.2f} | "
                f"{cell['predicted']:.2f} | {ghost / keep:.2f} | {'ghost' if cell['ghost'] else 'kept'} | "
                f"{regrets[-1]:.2f} |"
            )
        right = sum(r < 1.05 for r in regrets)
        lines += ["", f"On {device} the faster one was chosen (within 5%) in {right} of {len(regrets)} shapes.", ""]
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true")
    settings = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not settings.report:
        device = torch.device(settings.device)
        torch.set_num_threads(1)
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, one thread"
        results[device.type] = {
            "machine": name if device.type == "cuda" else f"{name} of {os.cpu_count()} shared cores",
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
            "cells": [measure(cell, device) for cell in CELLS],
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    page = PAGE.read_text()
    head, rest = page.split(START)
    PAGE.write_text(f"{head}{START}\n\n{table(results)}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
