"""Parameters and CPU time of a private step of every architecture: results.json, and its table in the docs.

    python benchmarks/architectures/run.py            # measure what is missing in results.json, then write the table
    python benchmarks/architectures/run.py --again    # measure everything anew
    python benchmarks/architectures/run.py --report   # the table only

A private step is forward, backward, norms of contributors and the clipped sum, on 16 entries of 8 contributors, by the
exact and by the fast engine; an ordinary step is forward and backward on the same entries. CPU seconds of the process
on one thread, least of three after one warm-up (the machine may be shared, so wall time would say less).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "src"))
from confide import nn  # noqa: E402
from confide.training import ClippingEngine, EngineOptions  # noqa: E402
from confide.training.rehearsal import Example, rehearse  # noqa: E402

RESULTS, PAGE = HERE / "results.json", ROOT / "docs" / "architectures.md"
ENTRIES, CONTRIBUTORS, REPEATS = 16, 8, 3
START, END = "<!-- table of benchmarks/architectures/run.py -->", "<!-- end of table -->"
STRIP = nn.mesh_edges(np.array([[i, i + 1, i + 2] for i in range(998)])).tolist()
CELLS: dict[str, tuple[str, tuple[int, ...], int, dict[str, Any]]] = {
    "logistic": ("logistic", (1, 28, 28), 1, {}),
    "hog": ("hog", (1, 28, 28), 1, {}),
    "scattering": ("scattering", (1, 28, 28), 1, {}),
    "mlp": ("mlp", (1, 28, 28), 10, {"hidden": [128]}),
    "cnn": ("cnn", (1, 28, 28), 10, {}),
    "complex-cnn": ("complex-cnn", (1, 32, 32), 4, {}),
    "complex-cnn, whitened": ("complex-cnn", (1, 32, 32), 4, {"weights": "whitened"}),
    "vit": ("vit", (3, 32, 32), 10, {}),
    "resnet9": ("resnet9", (3, 32, 32), 10, {}),
    "resnet9, plain sums": ("resnet9", (3, 32, 32), 10, {"scale_norm": False}),
    "wideresnet (16-4)": ("wideresnet", (3, 32, 32), 10, {}),
    "smoothnet (W80D50)": ("smoothnet", (3, 32, 32), 10, {}),
    "unet": ("unet", (1, 64, 64), 1, {}),
    "unet 3D": ("unet", (1, 24, 24, 24), 1, {}),
    "monet": ("monet", (1, 64, 64), 1, {}),
    "slices": ("slices", (1, 28, 28, 28), 1, {}),
    "graphsage": ("graphsage", (1000, 3), 2, {"edges": STRIP}),
}


def squares(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (out.flatten(1) - y[:, None]).square().mean(1)


def seconds(step: Any) -> float:
    step()
    took = []
    for _ in range(REPEATS):
        start = time.process_time()
        step()
        took.append(time.process_time() - start)
    return min(took)


def measure(name: str) -> dict[str, Any]:
    kind, shape, outputs, options = CELLS[name]
    model = nn.build(kind, shape, outputs, **options)
    x, y = torch.randn(ENTRIES, *shape), torch.randn(ENTRIES)
    parameters = list(model.parameters())
    units = np.repeat(np.arange(CONTRIBUTORS), ENTRIES // CONTRIBUTORS)
    weights, clips = np.full(ENTRIES, CONTRIBUTORS / ENTRIES), np.ones(CONTRIBUTORS)
    row: dict[str, Any] = {
        "model": name,
        "input": list(shape),
        "parameters": sum(p.numel() for p in parameters),
        "load": round(os.getloadavg()[0], 1),
        "ordinary_s": seconds(lambda: torch.autograd.grad(squares(model(x), y).sum(), parameters)),
    }
    for kind in ("exact", "fast"):
        engine = ClippingEngine(model, EngineOptions(engine=kind))
        rehearse(engine, squares, Example(x[:5], y[:5]), torch.device("cpu"))

        def step(engine: Any = engine) -> None:
            engine.clipped_sum(lambda rows: squares(model(x[rows]), y[rows]), units, weights, clips)

        row[f"{kind}_s"] = seconds(step)
    return row


def table(results: dict[str, Any]) -> str:
    loads = [row["load"] for row in results["rows"]]
    lines = [
        START,
        f"{results['machine']}, 1 thread, torch {results['torch']}, {results['date']}; CPU seconds for "
        f"{ENTRIES} entries of {CONTRIBUTORS} contributors, clipping included, noise and optimiser not. One run; the "
        f"machine's load of one minute was {min(loads):g} to {max(loads):g}.",
        "",
        "| model | entry | parameters | ordinary step, s | private, exact, s | private, fast, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        size = " x ".join(map(str, row["input"]))
        times = " | ".join(f"{row[k]:.3f}" for k in ("ordinary_s", "exact_s", "fast_s"))
        lines.append(f"| {row['model']} | {size} | {row['parameters']:,} | {times} |")
    return "\n".join([*lines, END])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if not args.report:
        results = {"rows": []} if args.again else results
        results |= {
            "machine": f"{platform.machine()} ({os.cpu_count()} cores, shared with other work)",
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        done = {row["model"] for row in results["rows"]}
        for name in CELLS:
            if name not in done:
                results["rows"].append(measure(name))
                print(results["rows"][-1], flush=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = PAGE.read_text()
    head, rest = text.split(START)
    PAGE.write_text(head + table(results) + rest.split(END)[1])


if __name__ == "__main__":
    main()
