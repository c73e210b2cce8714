"""results.json and docs/engine.md from the rows that run.py measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# (workload, highest ratio of time) that the engine is meant to reach on a GPU in bfloat16; memory: 1.5 everywhere
TARGETS = {"wrn16_4": 1.25, "transformer": 1.15, "unet": 1.25, "vit_b16": 1.25}
NAMES = {
    "wrn16_4": "WRN-16-4 with GroupNorm, 32x32, batch 512",
    "transformer": "transformer 6 x 768, 128 tokens, batch 64",
    "unet": "2D U-Net (4 levels, base 32), 256x256, batch 32",
    "vit_b16": "ViT-B/16 at 224, batch 64",
    "small_cnn": "small CNN, batch 64",
    "small_transformer": "small transformer, batch 32",
    "mlp": "MLP 784-1024-1024-1024-10, batch 64",
}
UNITS = {"4": "contributors of 4", "nih": "ragged (ChestX-ray14)", "1": "single entries"}
ENGINES = {"fast": "confide", "exact": "confide, exact", "hooks": "Opacus hooks", "ghost": "Opacus ghost"}

HEAD = """# How fast the engines are

Made by `python benchmarks/engine/run.py --report` from `benchmarks/engine/results.json`; do not edit by hand.

One private step: forward, backward, norms, clipping, noise on the device and SGD, beside the ordinary step (forward,
backward, SGD) of the same model in the same process, precision and compile mode. Medians of 30 steps after warm-up;
memory is `max_memory_allocated`. Ragged batches draw contributors from the entry counts of ChestX-ray14 until
the batch
is full. On a GPU these are figures of the compiled step (`CompiledStep`). `confide train` and
`PrivateRun` run the exact engine unless `EngineOptions(engine="fast")` asks for the fast one, which then runs
uncompiled
with its noise drawn on the host; that is slower and not measured here. The private step
keeps group normalisation in channels-last order and the ordinary one is what `torch.compile` makes by itself; where
the private step is the faster one this is the likely reason, not yet profiled. Opacus rows are uncompiled,
as Opacus is used; their ordinary step is compiled.

"""


def _machine(row: dict[str, Any]) -> str:
    return f"{row['device']}, {row['threads']} threads, torch {row['torch']}, {row['date']}"


def _row(row: dict[str, Any]) -> str:
    cuda = "peak_mb" in row
    name = "ms" if cuda else "cpu_ms"
    ratio = row[name] / row[f"plain_{name}"]
    memory = f"{row['peak_mb']:.0f} / {row['plain_peak_mb']:.0f}" if cuda else "-"
    share = f"{row['peak_mb'] / row['plain_peak_mb']:.2f}" if cuda else "-"
    verdict = "-"
    if cuda and row["engine"] == "fast" and row["precision"] == "bf16" and row["contributors"] != "1":
        time_ok, memory_ok = ratio <= TARGETS[row["workload"]], row["peak_mb"] <= 1.5 * row["plain_peak_mb"]
        words = ["met" if good else "missed" for good in (time_ok, memory_ok)]
        verdict = f"time {words[0]} ({TARGETS[row['workload']]}), memory {words[1]} (1.5)"
    who = ENGINES.get(row["engine"], row["engine"])
    note = f" ({row['note']})" if "note" in row else ""
    times = f"{row[name]:.1f} / {row[f'plain_{name}']:.1f} | {ratio:.2f}"
    cells = [who + note, row["precision"], UNITS[row["contributors"]], times, memory, share, verdict]
    return f"| {' | '.join(cells)} |"


def write(rows: Path, results: Path, page: Path) -> None:
    """Write both; a later row of the same cell replaces an earlier one, and rows already in the results are kept."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    old = json.loads(results.read_text())["rows"] if results.exists() else []
    new = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    for row in [*old, *new]:
        kind = "cuda" if "peak_mb" in row else "cpu"
        found[(kind, *(row[n] for n in ("workload", "precision", "engine", "contributors")))] = row
    results.write_text(json.dumps({"rows": list(found.values())}, indent=1) + "\n")
    text = [HEAD]
    for workload, title in NAMES.items():
        chosen = [row for key, row in found.items() if key[1] == workload and "error" not in row]
        if not chosen:
            continue
        text.append(f"## {title}\n\n{_machine(chosen[0])}.\n")
        if "peak_mb" not in chosen[0]:
            text.append("CPU time of the process (least of the repeats), not wall time: the machine was shared.\n")
        text.append("| engine | precision | units | ms: private / ordinary | ratio | MB | ratio | target |")
        text.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
        text += [_row(row) for row in chosen]
        text.append("")
    page.write_text("\n".join(text).rstrip() + "\n")
