"""CPU time of a training step with each method: results.json, and its table in docs/methods.md.

    python benchmarks/methods/run.py            # measure, then write the table
    python benchmarks/methods/run.py --report   # the table only

A step draws, clips, adds noise and moves a small convolutional net on 28 x 28 images, two of each contributor, by
the product's own loop. CPU seconds of the process on one thread, the least of the steps after the first (the machine
may be shared, so wall time would say less).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from confide.nn import build  # noqa: E402
from confide.planning import plan  # noqa: E402
from confide.training import (  # noqa: E402
    Augmentation,
    Averaging,
    BiasAware,
    Clipping,
    ContributorDataset,
    EngineOptions,
    Methods,
    PreviousDirection,
    Snapshots,
    fit,
    make_optimizer,
)

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RESULTS, PAGE = HERE / "results.json", ROOT / "docs" / "methods.md"
START, END = "<!-- table of benchmarks/methods/run.py -->", "<!-- end of table -->"
PEOPLE, STEPS = 64, 8
CASES: dict[str, tuple[Methods, dict[str, Any]]] = {
    "plain step": (Methods(), {}),
    "`averaging` and `snapshots`": (Methods(averaging=Averaging(0.9), snapshots=Snapshots(4)), {}),
    '`clipping = "automatic"`': (Methods(clipping=Clipping("automatic")), {}),
    '`sharpness = "previous"`': (Methods(sharpness=PreviousDirection(0.05)), {}),
    '`sharpness = "bias-aware"`': (Methods(sharpness=BiasAware(0.1, 0.05)), {}),
    "`augmentation = 4`": (Methods(augmentation=Augmentation(4)), {}),
    '`correlation = "banded(4)"`': (Methods(), {"correlation": "banded(4)"}),
}


def measure(methods: Methods, planned: dict[str, Any]) -> float:
    """Return the CPU seconds of a step in which everybody takes part (a group of everybody, with correlated noise)."""
    people = PEOPLE * (4 if planned else 1)  # one of four groups is asked in a step
    how = plan(
        {2: people}, epsilon=1e4, delta=1e-5, noise_multiplier=1.0, steps=STEPS, strategy="contributor", **planned
    )
    assert all(c.rate == 1.0 for c in how.classes)
    x, y = torch.randn(2 * people, 1, 28, 28), torch.randint(0, 10, (2 * people,))
    net = build("cnn", (1, 28, 28), 10)
    marks = [time.process_time()]
    fit(
        net,
        lambda out, target: torch.nn.functional.cross_entropy(out, target, reduction="none"),
        make_optimizer("sgd", net.parameters(), 0.1),
        how,
        ContributorDataset(TensorDataset(x, y), [f"p{i // 2}" for i in range(2 * people)]),
        options=EngineOptions(physical_batch=512),
        methods=methods,
        progress=lambda _done, _all: marks.append(time.process_time()),
    )
    took = [b - a for a, b in pairwise(marks[1:])]
    # groups differ in size by chance: the mean over them for correlated noise, else the least
    return sum(took) / len(took) if planned else min(took)


def table(results: dict[str, Any]) -> str:
    """Return the lines between the marks of the page."""
    plain = results["rows"]["plain step"]["seconds"]
    lines = [
        START,
        "| method | CPU ms a step | times the plain step |",
        "| --- | ---: | ---: |",
    ]
    for name, row in results["rows"].items():
        lines.append(f"| {name} | {row['seconds'] * 1000:.0f} | {row['seconds'] / plain:.2f} |")
    loads = [row["load"] for row in results["rows"].values()]
    lines += [
        "",
        f"{2 * PEOPLE} images of {PEOPLE} contributors in every step; {results['machine']}, 1 thread, torch "
        f"{results['torch']}, {results['date']}; one run, the machine's load of one minute was {min(loads):g} to "
        f"{max(loads):g}. Command: `python benchmarks/methods/run.py`.",
    ]
    return "\n".join([*lines, END])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    torch.set_num_threads(1)
    if not parser.parse_args().report:
        rows = {}
        for name, case in CASES.items():
            rows[name] = {"seconds": measure(*case), "load": round(os.getloadavg()[0], 1)}
            print(name, rows[name], flush=True)
        results = {
            "machine": f"{platform.machine()} ({os.cpu_count()} cores, shared with other work)",
            "torch": torch.__version__,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    head, rest = PAGE.read_text().split(START)
    PAGE.write_text(head + table(json.loads(RESULTS.read_text())) + rest.split(END, 1)[1])


if __name__ == "__main__":
    main()
