"""results.json and docs/engine.md from the rows that run.py measured; the words around the tables are words.md."""

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
ENGINES = {
    "fast": "confide",
    "compiled": "confide, compiled",
    "exact": "confide, exact",
    "hooks": "Opacus hooks",
    "ghost": "Opacus ghost",
    "vmap": "torch.func vmap",
    "vmap_compile": "torch.func vmap, compiled",
    "opake": "opake",
}
WORDS = Path(__file__).parent / "words.md"
GPU_HEAD = (
    "| engine | precision | units | CUDA graphs: ms private / ordinary | ratio | launched: ms private / ordinary "
    "| ratio | MB | ratio | target | date |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
CPU_HEAD = (
    "| engine | precision | units | ms without noise: private / ordinary | ratio | noise alone, ms | date |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)

Found = dict[tuple[str, ...], dict[str, Any]]


def _machine(row: dict[str, Any]) -> str:
    return f"{row['device']}, {row['threads']} threads, torch {row['torch']}"


def _pair(row: dict[str, Any], name: str) -> tuple[str, float | None]:
    if name not in row or f"plain_{name}" not in row:
        return "- | -", None
    ratio = row[name] / row[f"plain_{name}"]
    return f"{row[name]:.1f} / {row[f'plain_{name}']:.1f} | {ratio:.2f}", ratio


def _row(row: dict[str, Any]) -> str:
    who = ENGINES.get(row["engine"], row["engine"]) + (f" ({row['note']})" if "note" in row else "")
    cells = [who, row["precision"], UNITS[row["contributors"]]]
    if "peak_mb" not in row:
        noise = f"{row['noise_ms']:.1f}" if "noise_ms" in row else "-"
        return f"| {' | '.join([*cells, _pair(row, 'cpu_ms')[0], noise, row['date']])} |"
    graphs, ratio = _pair(row, "graph_ms")
    launched, launched_ratio = _pair(row, "ms")
    memory = row["peak_mb"] / row["plain_peak_mb"]
    verdict = "-"
    if row["engine"] == "fast" and row["precision"] == "bf16" and row["contributors"] != "1":
        target = TARGETS[row["workload"]]
        good = ((ratio or launched_ratio or 9.0) <= target, memory <= 1.5)
        words = ["met" if met else "missed" for met in good]
        verdict = f"time {words[0]} ({target}), memory {words[1]} (1.5)"
    space = f"{row['peak_mb']:.0f} / {row['plain_peak_mb']:.0f} | {memory:.2f}"
    return f"| {' | '.join([*cells, graphs, launched, space, verdict, row['date']])} |"


def _missing(found: Found) -> list[str]:
    """Cells that `run.py` knows and nobody has run."""
    from run import KINDS, cells

    out = []
    for kind in ("cuda", "cpu"):
        for workload, precision, engine in cells(kind):
            units = KINDS if engine in ("fast", "compiled", "exact") else ("1",)
            gone = [u for u in units if "ms" not in found.get((kind, workload, precision, engine, u), {})]
            if gone:
                out.append(f"{kind}: {workload}, {precision}, {engine}; units {', '.join(gone)}")
    return out


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cuda = "peak_mb" in rows[0]
    text = [_machine(rows[0]) + ".\n"]
    if not cuda:
        text.append("Medians of the CPU time of the process; private and ordinary steps took turns.\n")
    return [*text, *(GPU_HEAD if cuda else CPU_HEAD), *(_row(row) for row in rows), ""]


def write(rows: Path, results: Path, page: Path) -> None:
    """Write both; a later row of the same cell replaces an earlier one, and rows already in the results are kept."""
    found: Found = {}
    old = json.loads(results.read_text())["rows"] if results.exists() else []
    new = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    for row in [*old, *new]:
        kind = "cuda" if "peak_mb" in row else "cpu"
        found[(kind, *(row[n] for n in ("workload", "precision", "engine", "contributors")))] = row
    results.write_text(json.dumps({"rows": list(found.values())}, indent=1) + "\n")
    text = [WORDS.read_text().rstrip() + "\n"]
    for workload, title in NAMES.items():
        chosen = [row for key, row in found.items() if key[1] == workload and "ms" in row]
        if chosen:
            text += [f"## {title}\n", *_table(chosen)]
    missing = _missing(found)
    if missing:
        text += ["## Cells that were not run\n", *[f"- {line}" for line in missing], ""]
    page.write_text("\n".join(text).rstrip() + "\n")
