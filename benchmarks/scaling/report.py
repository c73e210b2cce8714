"""results.json, docs/scaling.md and docs/scaling.svg from the rows that run.py measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES = {
    "wrn16_4": "WRN-16-4 with GroupNorm, 32x32, 512 entries for each process",
    "vit_b16": "ViT-B/16 at 224, 64 entries for each process",
    "unet3d": "3D U-Net (4 levels, base 16), 64x64x64, 16 entries for each process",
    "small_cnn": "small CNN (CPU)",
    "small_transformer": "small transformer (CPU)",
    "small_unet3d": "small 3D U-Net (CPU)",
}
COLORS = ("#0b6e99", "#b5651d", "#4a7c3a", "#7a4988")

HEAD = """# Several processes and GPUs

Made by `python benchmarks/scaling/run.py --report` from `benchmarks/scaling/results.json`; do not edit by hand.

```
torchrun --nproc-per-node 2 -m confide train study.toml --yes
```

One process for each GPU (or, on a machine without, for each share of the cores). Nothing else changes: the study, the
plan, the guarantee and the release are the same, `--resume` goes on with any number of processes, and a script of your
own with `PrivateRun` or `confide.Trainer` joins in the same way when torchrun starts it.

* **Contributors are shared out, never entries.** Every process evaluates the same secret coins, so the same people are
  drawn whatever the number of processes; each contributor goes whole to one of them, balanced by numbers of entries.
* **Noise is added once.** On GPUs each process adds up one part of the model (reduce-scatter), adds the noise of that
  part and of nothing else, and hands it around (all-gather). With noise that is drawn on the host the sums meet on the
  first process, which alone adds noise, and the others get a copy of the result.
* **One process speaks.** Only the first opens the ledger and writes checkpoint, certificate and release. When a
  process dies the others stop; the checkpoint and the reservation stay.
* What passes between processes is not encrypted: use hosts and networks that may see the private data.

**Models that do not fit one GPU** can be cut into shards with PyTorch's FSDP2: weights are gathered one block at a
time, each process forms the norms of its own contributors without a word from the others, each parameter's clipped sum
is added up and cut in one operation, and every process adds noise to the rows it keeps. `ShardedRun` does this:

```python
run = confide.training.ShardedRun(model, loss, optimizer, plan, data, options=EngineOptions(device="cuda"))
for batch in run:
    run.step(loss(model(batch.inputs), batch.targets))
```

It takes models whose layers have a rule, with independent noise, views and rules of clipping (`docs/running.md` says
what else does not go); the model is made and rehearsed in host memory first. Its noise does not depend on the number of
processes, so checkpoints move here too.

The figures below are of the compiled step with its exchange, as `benchmarks/scaling` runs it. A loop of `PrivateRun`
adds reading data, drawing, checks and records to that, which this page does not measure. Steps are replayed as CUDA
graphs, as in training, unless a row says "launched"; memory is that of the launched step. "Times one" compares with one
process of the same way of running.

"""


def _machine(row: dict[str, Any]) -> str:
    return f"{row['device']}, {row['backend']}, torch {row['torch']}, {row['date']}"


def _efficiency(row: dict[str, Any], one: dict[str, Any]) -> float:
    """Throughput over that of one process times the number of processes."""
    return float(row["entries_per_s"] / _one(row, one) / row["world"])


def _one(row: dict[str, Any], one: dict[str, Any]) -> float:
    """Entries a second of one process that ran in the same way."""
    return float(row.get("one_entries_per_s", one["entries_per_s"]))


def _speed(rows: list[dict[str, Any]]) -> list[str]:
    out = []
    for name, title in NAMES.items():
        mine = [row for row in rows if row.get("workload") == name]
        first = next((row for row in mine if row["world"] == 1 and row["scaling"] == "weak"), None)
        if first is None:
            continue
        out += [f"## {title}", "", f"{first['device']}, torch {first['torch']}, {first['date']}; contributors of 4, "
                f"{first['parameters'] / 1e6:.1f} million weights; noise: {first.get('noise', '-')}.", ""]  # fmt: skip
        out.append(
            "| scaling | processes | entries a step | ms a step | entries/s | times one | efficiency | "
            "peak MB each | collectives alone, ms (share) |"
        )
        out.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for row in sorted(mine, key=lambda r: (r["scaling"] != "weak", r["world"])):
            peak = f"{row['peak_mb']:.0f}" if "peak_mb" in row else "-"
            share = f"{row['communication_ms']:.2f} ({row['communication_ms'] / row['ms']:.1%})"
            kind = row["scaling"] + (f" ({row['note']})" if "note" in row else "")
            out.append(
                f"| {kind} | {row['world']} | {row['batch']} | {row['ms']:.2f} | {row['entries_per_s']:.0f} | "
                f"{row['entries_per_s'] / _one(row, first):.2f} | {_efficiency(row, first):.3f} | {peak} | "
                f"{share} |"
            )
        out.append("")
    return out


def _remarks(rows: list[dict[str, Any]]) -> list[str]:
    """Say what the notes in the tables mean."""
    notes = {row.get("note", "") for row in rows}
    out = []
    if any("later version" in note for note in notes):
        out.append(
            'Rows marked "later version" were measured with a faster engine than the others; "times one" compares them '
            "with one process of that version (`docs/engine.md`)."
        )
    if any("launched" in note for note in notes):
        out.append('Rows marked "launched" were measured before steps were replayed.')
    return [" ".join(out), ""] if out else []


def _checks(rows: list[dict[str, Any]]) -> list[str]:
    out = ["## Noise and draws", ""]
    out.append("| processes | where | values | variance of the noise over theory | standard error | who was drawn |")
    out.append("| --- | --- | --- | --- | --- | --- |")
    found = [row for row in rows if row["cell"] == "variance" and "error" not in row]
    for row in found:
        out.append(
            f"| {row['world']} | {_machine(row)} | {row['values']} | {row['variance_over_theory']:.4f} | "
            f"{row['standard_error']:.4f} | {row['drawn_sha256'][:12]} |"
        )
    out += ["", "The last column is a hash over the entries drawn in every step of the run.", ""]
    large = [row for row in rows if row["cell"] == "large" and "error" not in row]
    if large:
        out += ["## A model in shards", ""]
        out.append("| processes | where | weights | state in float32, GB | ms a step | peak MB each |")
        out.append("| --- | --- | --- | --- | --- | --- |")
        for row in large:
            peak = f"{row['peak_mb']:.0f}" if "peak_mb" in row else "-"
            out.append(
                f"| {row['world']} | {_machine(row)} | {row['parameters'] / 1e6:.1f} million | {row['state_gb']:.1f} | "
                f"{row['ms']:.0f} | {peak} |"
            )
        out += ["", "State: weights, gradient and the two moments of AdamW. Uncompiled, contributors of 4.", ""]
    return out


def _short(name: str) -> str:
    return NAMES[name].split(",")[0].split(" with")[0].split(" (")[0].split(" at")[0]


def _missing(rows: list[dict[str, Any]]) -> list[str]:
    """What the page is meant to show and no GPU has run yet."""
    have = {(row["name"], row["world"]) for row in rows if row["device"] != "cpu"}
    out = []
    for name in ("wrn16_4", "vit_b16", "unet3d"):
        for kind, worlds in (("weak", (1, 2, 4, 8)), ("strong", (2, 4, 8))):
            left = [str(world) for world in worlds if (f"{name}-{kind}", world) not in have]
            if left:
                out.append(f"{_short(name)}, {kind} scaling at {', '.join(left)}")
    left = [str(world) for world in (1, 2, 4, 8) if ("variance", world) not in have]
    if left:
        out.append(f"the variance at {', '.join(left)} (the tests do it on CPUs)")
    if not any(name == "large" for name, _ in have):
        out.append("the model in shards (the tests do it on CPUs)")
    return out


def _gain(rows: list[dict[str, Any]], name: str) -> float:
    mine = sorted((r for r in rows if r["workload"] == name and r["device"] != "cpu"), key=lambda r: r["world"])
    return float(mine[-1]["entries_per_s"] / mine[0]["entries_per_s"])


def _plot(rows: list[dict[str, Any]]) -> str:
    """Throughput as a multiple of one process, weak scaling, against the number of processes."""
    kinds = [r for r in rows if r["cell"] == "speed" and "error" not in r and r["scaling"] == "weak"]
    names = [n for n in NAMES if any(r["workload"] == n and r["world"] > 1 and r["device"] != "cpu" for r in kinds)]
    if not names:
        return ""
    most = max(r["world"] for r in kinds if r["workload"] in names)
    width, height, left, bottom = 560, 320, 56, 44

    def at(world: float, value: float) -> tuple[float, float]:
        span = max(most - 1, 1)
        return left + (world - 1) / span * (width - left - 170), height - bottom - (value - 1) / span * (height - 90)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="24" font-size="14">Weak scaling: throughput as a multiple of one process</text>',
    ]
    for world in [w for w in (1, 2, 4, 8) if w <= most]:
        (x, y), (right, _) = at(world, world), at(most, 1)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{world}</text>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{world}</text>')
    (x1, y1), (x2, y2) = at(1, 1), at(most, most)
    out.append(f'<line x1="{x1}" y1="{y1:.1f}" x2="{x2}" y2="{y2:.1f}" stroke="#999" stroke-dasharray="5 4"/>')
    middle = (at(1, 1)[0] + at(most, 1)[0]) / 2
    out.append(f'<text x="{middle:.1f}" y="{height - 8}" text-anchor="middle">processes (one GPU each)</text>')
    ends: list[float] = []
    names.sort(key=lambda n: -_gain(kinds, n))  # labels come in the order of the lines' ends
    for name, color in zip(names, COLORS, strict=False):
        mine = sorted((r for r in kinds if r["workload"] == name and r["device"] != "cpu"), key=lambda r: r["world"])
        points = [at(r["world"], r["entries_per_s"] / mine[0]["entries_per_s"]) for r in mine]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
        x, y = points[-1]
        while any(abs(y - other) < 15 for other in ends):  # labels must not lie on each other
            y += 15
        ends.append(y)
        value = mine[-1]["entries_per_s"] / mine[0]["entries_per_s"]
        out.append(f'<text x="{x + 12:.1f}" y="{y + 4:.1f}" fill="{color}">{_short(name)} {value:.2f}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def write(rows: Path, results: Path, page: Path) -> None:
    """Write all; a later row of the same cell, number of processes and device replaces an earlier one."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    old = json.loads(results.read_text())["rows"] if results.exists() else []
    new = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    for row in [*old, *new]:
        found[(row["name"], row["world"], row["device"])] = row
    results.write_text(json.dumps({"rows": list(found.values())}, indent=1) + "\n")
    good = [row for row in found.values() if "error" not in row]
    plot = _plot(good)
    text = [HEAD]
    if plot:
        page.with_suffix(".svg").write_text(plot)
        text.append("![Weak scaling](scaling.svg)\n")
    text += _speed([row for row in good if row["cell"] == "speed"])
    text += _remarks([row for row in good if row["cell"] == "speed" and row["device"] != "cpu"])
    text += _checks(good)
    worlds = sorted({row["world"] for row in good if row["device"] != "cpu"})
    missing = _missing(good)
    text.append(f"Numbers of GPUs measured: {', '.join(map(str, worlds)) or 'none'}; nothing is extrapolated.")
    if missing:
        text.append(f"Not run on GPUs so far: {'; '.join(missing)}.")
    failed = [row for row in found.values() if "error" in row]
    if failed:
        text += ["", "Cells that failed:", ""]
        text += [f"* {r['name']}, {r['world']} processes, {r['device']}: {r['error'][:200]}" for r in failed]
    page.write_text("\n".join(text).rstrip() + "\n")
