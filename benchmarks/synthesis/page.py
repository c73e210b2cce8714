"""Write the tables of docs/synthesis.md from results.jsonl; python benchmarks/synthesis/page.py."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "synthesis.md"
START, STOP = "<!-- figures: made by benchmarks/synthesis/page.py -->", "<!-- end of figures -->"


def cell(values: list[float]) -> str:
    if np.isnan(values).any():
        return "none"
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {1.96 * np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


def main() -> None:
    groups: dict[tuple, list] = collections.defaultdict(list)
    for line in (HERE / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        groups[tuple(row["key"][:3])].append(row)
    lines = []
    tables = ["nafld", "pbcseq", *sorted({key[0] for key in groups} - {"nafld", "pbcseq"})]
    for data in tables:
        real = groups[data, "real", 0.0]
        lines += [
            f"### {data}",
            "",
            f"Real test against real training patients (sampling floor): {np.mean([r['floor'] for r in real]):.3f}; "
            f"AUROC of training on real: {cell([r['auroc'] for r in real])}.",
            "",
            "| epsilon | method | 1-way | 2-way | worst pair | transitions | AUROC | CPU s | runs |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for (_, label, epsilon), rows in sorted(groups.items(), key=lambda item: (item[0][2], item[0][1])):
            if rows[0]["key"][0] != data or label == "real":
                continue

            def of(name: str, rows: list = rows) -> str:
                return cell([r[name] for r in rows])

            steps = "none" if rows[0]["transitions"] == 1.0 else of("transitions")
            lines.append(
                f"| {epsilon:g} | {label} | {of('tv1')} | {of('tv2')} | {of('tv2_worst')} | {steps} | {of('auroc')} "
                f"| {np.mean([r['cpu_seconds'] for r in rows]):.1f} | {len(rows)} |"
            )
        lines.append("")
    scale = HERE / "scale.jsonl"
    if scale.exists():
        lines += [
            "### From disk",
            "",
            "| patients | visits | seconds | CPU s | peak MB |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in sorted(map(json.loads, scale.read_text().splitlines()), key=lambda r: r["patients"]):
            figures = (row["seconds"], row["cpu_seconds"], row["peak_mb"])
            lines.append(f"| {row['patients']:,} | {row['visits']:,} | " + " | ".join(map(str, figures)) + " |")
        lines.append("")
    text = PAGE.read_text()
    head, rest = text.split(START)
    PAGE.write_text(head + START + "\n\n" + "\n".join(lines) + "\n" + STOP + rest.split(STOP)[1])


if __name__ == "__main__":
    main()
