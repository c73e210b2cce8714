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


def against_best(groups: dict[tuple, list], tables: list[str]) -> list[str]:
    """Return the default beside the better of independence and trees, on the same splits."""
    lines = [
        "### Against the best of independence and trees",
        "",
        "2-way error, mean over the same splits; the cap of the trees chosen in hindsight. A ratio below 1 means that "
        'patient-unit is better; the last column is that of `focus = "visit"`.',
        "",
        "| table | epsilon | patient-unit | independence | best other | which | ratio | ratio, focus visit |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for data in tables:
        for epsilon in (1.0, 3.0):
            own = {tuple(r["key"][3:]): r["tv2"] for r in groups.get((data, "patient-unit", epsilon), [])}
            others = {
                label: {tuple(r["key"][3:]): r["tv2"] for r in rows}
                for (d, label, e), rows in groups.items()
                if (d, e) == (data, epsilon) and label.startswith(("independence", "mst", "flat independence"))
            }
            common = set(own).intersection(*others.values()) if own and others else set()
            if not common:
                continue
            mean = {label: np.mean([runs[key] for key in common]) for label, runs in others.items()}
            mine, best = np.mean([own[key] for key in common]), min(mean, key=lambda label: mean[label])
            single = {
                tuple(r["key"][3:]): r["tv2"] for r in groups.get((data, "patient-unit, focus visit", epsilon), [])
            }
            both = common.intersection(single)
            by_visit = "not run"
            if both:
                other = min(np.mean([runs[key] for key in both]) for runs in others.values())
                by_visit = f"{np.mean([single[key] for key in both]) / other:.2f}"
            lines.append(
                f"| {data} | {epsilon:g} | {mine:.3f} | {mean['independence']:.3f} | {mean[best]:.3f} | {best} "
                f"| {mine / mean[best]:.2f} | {by_visit} |"
            )
    return [*lines, ""]


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
            f"AUROC of training on real: {cell([r['auroc'] for r in real])}; within patient: "
            f"{cell([r['icc'] for r in real])}.",
            "",
            "| epsilon | method | 1-way | 2-way | worst pair | transitions | within patient | AUROC | AUROC, 10 x "
            "| CPU s | runs |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for (_, label, epsilon), rows in sorted(groups.items(), key=lambda item: (item[0][2], item[0][1])):
            if rows[0]["key"][0] != data or label == "real":
                continue

            def of(name: str, rows: list = rows) -> str:
                return cell([r[name] for r in rows])

            flat = rows[0]["transitions"] == 1.0
            steps, own = ("none", "none") if flat else (of("transitions"), of("icc"))
            more = of("auroc_tenfold") if "auroc_tenfold" in rows[0] else "none"
            lines.append(
                f"| {epsilon:g} | {label} | {of('tv1')} | {of('tv2')} | {of('tv2_worst')} | {steps} | {own} "
                f"| {of('auroc')} | {more} | {np.mean([r['cpu_seconds'] for r in rows]):.1f} | {len(rows)} |"
            )
        lines.append("")
    lines += against_best(groups, tables)
    scale = HERE / "scale.jsonl"
    if scale.exists():
        lines += [
            "### Tables of any size",
            "",
            "`confide synthesize` on simulated patients with ten visits each, 8 columns, Parquet with rows in random "
            "order: from the files to the committed release with as many synthetic patients "
            "(`benchmarks/synthesis/scale.py`). Fewer visits are drawn than were there: ten lie in the bin of 8 to 10.",
            "",
            "| patients | visits | way | minutes | reading | charging | measuring | fitting, drawing, writing "
            "| CPU minutes | peak MB | load |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        steps = ("reading", "charging", "measuring", "fitting_drawing_writing")
        for row in sorted(map(json.loads, scale.read_text().splitlines()), key=lambda r: (r["way"], r["patients"])):
            minutes = [row["seconds"], *(row[f"seconds_{step}"] for step in steps), row["cpu_seconds"]]
            shown = " | ".join("" if seconds is None else f"{seconds / 60:.1f}" for seconds in minutes)
            load = " to ".join(f"{value:g}" for value in row["load"])
            lines.append(
                f"| {row['patients']:,} | {row['visits']:,} | {row['way']} | {shown} | {row['peak_mb']} | {load} |"
            )
        on = row["machine"]
        lines += [
            "",
            f"Machine: {on['cores']} cores shared with other work (load at start and end), {on['cpu']}; one thread; "
            f"Python {on['python']}, polars {on['polars']}, numpy {on['numpy']}.",
        ]
        lines.append("")
    text = PAGE.read_text()
    head, rest = text.split(START)
    PAGE.write_text(head + START + "\n\n" + "\n".join(lines) + "\n" + STOP + rest.split(STOP)[1])


if __name__ == "__main__":
    main()
