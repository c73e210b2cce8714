"""Canary audit of every method of training: methods.json beside this file, and the table in docs/methods.md.

    python benchmarks/audit/methods.py            # about a minute on one core
    python benchmarks/audit/methods.py --report   # the table only

For each method: how close the adversary comes to the claim as the method is, and whether the audit rejects it when it
is broken on purpose (`breaks.py`), at error 1e-4. Seeds are consecutive. The tests in `tests/audit` run the same cases
in small.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from confide.audit import AuditReport, canary_audit  # noqa: E402
from confide.audit.simulation import views  # noqa: E402
from confide.planning import QuantileClipping, plan  # noqa: E402
from confide.training import (  # noqa: E402
    Averaging,
    BiasAware,
    Clipping,
    Ensemble,
    Methods,
    PreviousDirection,
    Snapshots,
)

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]


def _beside(name: str) -> Any:
    """Load another script of this folder under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_audit_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


breaks = _beside("breaks")
RESULTS, PAGE = HERE / "methods.json", ROOT / "docs" / "methods.md"
START, END = "<!-- table of benchmarks/audit/methods.py -->", "<!-- end of table -->"


class Case(NamedTuple):
    """A plan, what its steps do besides the plain one, and the ways to break it."""

    broken: dict[str, Callable[[Any], None]]
    how: Mapping[str, Any] = MappingProxyType({})
    planned: Mapping[str, Any] = MappingProxyType({})
    entries: int = 2
    noise: float = 2.5
    steps: int = 12


HALF = {"noise halved": breaks.noise_halved}
CLIP = {"clip skipped": breaks.clip_skipped}
CASES = {
    "views": Case(
        {**HALF, **CLIP, "views clipped one by one": breaks.entries_clipped_one_by_one},
        {"methods": Methods(augmentation=views(4))},
    ),
    "bias-aware": Case(
        {**HALF, "clip skipped": breaks.unclipped_units}, {"methods": Methods(sharpness=BiasAware(0.1, 0.05))}
    ),
    "previous direction": Case({**HALF, **CLIP}, {"methods": Methods(sharpness=PreviousDirection(0.05))}),
    "automatic clipping": Case(HALF, {"methods": Methods(clipping=Clipping("automatic"))}),
    "normalised clipping": Case(
        {**HALF, **CLIP},
        {"methods": Methods(clipping=Clipping(normalise=True), averaging=Averaging(0.9), snapshots=Snapshots(3))},
        {"clip_norm": 0.3},
    ),
    "quantile": Case(
        {**HALF, "noise left behind": breaks.noise_left_behind},
        planned={"clipping": QuantileClipping(quantile=0.2, share=0.02, rate=0.3), "clip_norm": 0.5},
    ),
    "langevin": Case({**HALF, **CLIP}, {"langevin": True}),
    "banded": Case(
        {**HALF, **CLIP, "groups ignored": breaks.groups_ignored}, planned={"correlation": "banded(4)"}, steps=48
    ),
    "blt": Case(
        {**HALF, **CLIP, "groups ignored": breaks.groups_ignored},
        planned={"correlation": "blt(4)"},
        steps=16,
        noise=3.0,
    ),
    "ensemble": Case({**HALF, **CLIP}, {"methods": Methods(ensemble=Ensemble(4))}),
}


def audit(name: str, *, canaries: int, tamper: Callable[[Any], None] | None = None, seed: int = 5) -> AuditReport:
    """Audit one method as it is, or broken."""
    case = CASES[name]
    options = {"strategy": "contributor", "noise_multiplier": case.noise, "steps": case.steps, **case.planned}
    p = plan({case.entries: 1000}, epsilon=6.0, delta=1e-5, **options)
    return canary_audit(p, entries=case.entries, canaries=canaries, seed=seed, tamper=tamper, **case.how)


def run() -> None:
    """Audit everything and keep the figures."""
    rows = []
    for seed, (name, case) in enumerate(CASES.items(), 2026):
        report = audit(name, canaries=20_000, seed=seed)
        broken = {
            way: audit(name, canaries=4000, tamper=tamper, seed=seed).violation for way, tamper in case.broken.items()
        }
        print(
            name, f"{report.ratio:.0%} of the claim", {way: found.rejected for way, found in broken.items()}, flush=True
        )
        rows.append(
            {"method": name, **report.to_dict(), "broken": {way: found.rejected for way, found in broken.items()}}
        )
    document = {"command": "python benchmarks/audit/methods.py", "machine": _beside("run").machine(), "rows": rows}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def table(document: dict[str, Any]) -> str:
    """Return the lines between the two marks of the page."""
    lines = [
        "| method | claim | estimate under GDP | of the claim | rejected | rejected when broken on purpose |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in document["rows"]:
        ways = "; ".join(f"{way}: {'yes' if found else 'NO'}" for way, found in row["broken"].items())
        refused = row["violation"]["rejected"] or row["inclusion"]["rejected"]
        lines.append(
            f"| {row['method']} | {row['claim']:.2f} | {row['lower_bound']:.2f} | {row['ratio']:.1%} | "
            f"{'YES' if refused else 'no'} | {ways} |"
        )
    versions = ", ".join(f"{name} {document['machine'][name]}" for name in ("python", "torch", "numpy"))
    lines += ["", f"Command: `{document['command']}` ({versions}; figures in `benchmarks/audit/methods.json`)."]
    return "\n".join(lines)


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text()
    before, rest = text.split(START)
    PAGE.write_text(f"{before}{START}\n{table(json.loads(RESULTS.read_text()))}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true")
    if not parser.parse_args().report:
        run()
    write()
