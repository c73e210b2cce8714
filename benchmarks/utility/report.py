"""docs/utility.md and docs/utility.svg from the measured cells."""

# ruff: noqa: E501 (long lines are sentences of the page)
from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

DOCS = Path(__file__).parents[2] / "docs"
REFERENCE = "truncate(1)"
TITLES = {"pbcseq": "pbcseq: death of liver patients", "icu": "icu: death in hospital"}
# colour-blind safe (Okabe and Ito), with a marker shape each so that print in grey is readable
STYLES = {
    "contributor": ("#0072b2", "circle"),
    "individual": ("#009e73", "square"),
    "scale": ("#d55e00", "diamond"),
    "truncate(1)": ("#000000", "cross"),
    "truncate(median)": ("#7f7f7f", "triangle"),
    "uniform": ("#cc79a7", "circle"),
    "per-entry, group privacy": ("#e69f00", "square"),
}


def interval(values: np.ndarray, trained_on: float, tested_on: float) -> tuple[float, float, float]:
    """Mean and 95 % interval over random splits, widened for their overlap (Nadeau and Bengio, 2003)."""
    n = len(values)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 / n + tested_on / trained_on)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    mean = float(np.mean(values))
    return mean, mean - half, mean + half


class Measured:
    """The cells, by set, method and epsilon, in the order of the splits."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.sets = list(document["sets"])
        self.epsilons = sorted({c["epsilon"] for c in document["cells"] if c["epsilon"] is not None})
        self.methods = list(dict.fromkeys(m["method"] for m in document["methods"]))
        self._cells: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
        for cell in sorted(document["cells"], key=lambda c: c["split"]):
            self._cells.setdefault((cell["set"], cell["method"], cell["epsilon"]), []).append(cell)

    def values(self, name: str, method: str, epsilon: float | None) -> np.ndarray:
        return np.array([c["auroc"] for c in self._cells[name, method, epsilon]])

    def summary(
        self, name: str, method: str, epsilon: float | None, minus: str | None = None
    ) -> tuple[float, float, float]:
        cells = self._cells[name, method, epsilon]
        values = self.values(name, method, epsilon)
        if minus is not None:
            values = values - self.values(name, minus, epsilon)
        trained, tested = (float(np.mean([c[k] for c in cells])) for k in ("trained_on", "tested_on"))
        return interval(values, trained, tested)


def verdict(measured: Measured) -> str:
    """The truth in front of the table, in words that follow from the figures."""
    cells = [(name, epsilon) for name in measured.sets for epsilon in measured.epsilons]
    others = [method for method in measured.methods if method != REFERENCE]
    found = {m: [measured.summary(name, m, epsilon, REFERENCE) for name, epsilon in cells] for m in others}
    clear = [(m, low > 0) for m in others for _, low, high in found[m] if low > 0 or high < 0]
    first = [max(measured.methods, key=lambda m: measured.summary(name, m, e)[0]) for name, e in cells]
    leader = max(set(first), key=first.count)
    if clear:
        above = sum(better for _, better in clear)
        opening = (
            f"Of {len(others) * len(cells)} comparisons with `{REFERENCE}`, {above} lie above it and {len(clear) - above} below it "
            "beyond chance"
        )
    else:
        opening = (
            f"On these two sets no strategy differs from `{REFERENCE}` beyond chance (none of {len(others) * len(cells)} 95 % "
            "intervals excludes zero): one entry a person already says most of what the others say"
        )
    parts = [
        f"`{m}` {min(d for d, _, _ in found[m]):+.3f} to {max(d for d, _, _ in found[m]):+.3f}"
        for m in ("contributor", "individual", "scale")
    ]
    low, high = measured.epsilons[0], measured.epsilons[-1]
    gaps = [
        measured.summary(name, "not private", None)[0]
        - max(measured.summary(name, m, high)[0] for m in measured.methods)
        for name in measured.sets
    ]
    group = [measured.summary(name, "per-entry, group privacy", low, REFERENCE)[0] for name in measured.sets]
    return (
        f"{opening}. `{leader}` has the highest mean AUROC in {first.count(leader)} of {len(cells)} cells (set and epsilon). Mean "
        f"differences from `{REFERENCE}`: {', '.join(parts)}; per-entry training with group privacy "
        f"{' and '.join(f'{g:+.3f}' for g in group)} at epsilon {low:g}. At epsilon {high:g} the best strategy is "
        f"{' and '.join(f'{g:.3f}' for g in gaps)} below the non-private model ({' and '.join(measured.sets)}, in this order)."
    )


def tables(measured: Measured, document: dict[str, Any]) -> list[str]:
    facts = {(m["set"], m["method"], m["epsilon"]): m for m in document["methods"]}
    lines: list[str] = []
    for name in measured.sets:
        size = document["sets"][name]
        mean, low, high = measured.summary(name, "not private", None)
        lines += [
            f"## {TITLES[name]}",
            "",
            f"{size['contributors']:,} contributors, {size['entries']:,} entries, at most {max(map(int, size['entry_counts']))} "
            f"a contributor, {size['features']} features. Not private: AUROC {mean:.3f} [{low:.3f}, {high:.3f}].",
            "",
            "| epsilon | method | AUROC [95 % interval] | minus truncate(1) [95 % interval] | entries used | "
            "effective noise |",
            "| ---: | --- | --- | --- | ---: | ---: |",
        ]
        for epsilon in measured.epsilons:
            for method in measured.methods:
                mean, low, high = measured.summary(name, method, epsilon)
                fact = facts[name, method, epsilon]
                difference = "0 by definition"
                if method != REFERENCE:
                    d, a, b = measured.summary(name, method, epsilon, REFERENCE)
                    difference = f"{d:+.3f} [{a:+.3f}, {b:+.3f}]"
                lines.append(
                    f"| {epsilon:g} | {method} | {mean:.3f} [{low:.3f}, {high:.3f}] | {difference} | "
                    f"{fact['entries_used']:.0%} | {fact['effective_noise']:.3f} |"
                )
        lines.append("")
    return lines


def page(document: dict[str, Any], pilot: dict[str, Any]) -> str:
    measured = Measured(document)
    s, hardware = document["settings"], document["machine"]
    group = [m for m in document["methods"] if m["method"].startswith("per-entry")]
    naive: dict[str, int] = {}
    for name in measured.sets:
        for epsilon in measured.epsilons:
            for method in measured.methods:
                difference = measured.values(name, method, epsilon) - measured.values(name, REFERENCE, epsilon)
                if method != REFERENCE:
                    _, low, high = interval(difference, 1.0, 0.0)
                    if low > 0 or high < 0:
                        side = f"`{method}` {'above' if low > 0 else 'below'}"
                        naive[side] = naive.get(side, 0) + 1
    spent = ", ".join(f"{m['contributor_epsilon']:.2f} at {m['epsilon']:g} ({m['set']})" for m in group)
    lines = [
        "# What is it worth? Held-out contributors on real patients",
        "",
        verdict(measured),
        "",
        "![AUROC over epsilon for every strategy](utility.svg)",
        "",
        *tables(measured, document),
        "## How it was measured",
        "",
        f"- {s['splits']} random splits of *contributors* by a keyed hash ({s['holdout']:.0%} held out); the score of a "
        "held-out contributor is the mean logit of all their entries. Intervals are 95 % t intervals over the splits with "
        "the variance widened for their overlap (Nadeau and Bengio, 2003); differences are paired by split. Without "
        f"the widening {sum(naive.values())} of the {len(measured.sets) * len(measured.epsilons) * (len(measured.methods) - 1)} intervals would exclude "
        f"zero ({', '.join(f'{side} in {count}' for side, count in naive.items())}). One run a split: the noise of training is part of the spread.",
        f"- The same for every method: logistic regression from zero weights, {s['steps']} steps of SGD, clipping norm "
        f"{s['clip_norm']:g}, delta {s['delta']:g}, and the noise multiplier at which a contributor with one entry may be "
        f"drawn in {s['rate_of_one_entry']:.0%} of the steps. A larger noise multiplier, with more work a step, would lower the "
        "effective noise of `uniform` and of group privacy by at most a fifth, and that of the others less.",
        "- Learning rate, the same rule for all, from public numbers: R / sqrt(T (1 + d nu^2)) with nu the effective noise "
        f"(noise / expected sum of weight x clip) and d the number of parameters. R = {s['radius']:g} was chosen once for all "
        f"methods together on another set ({pilot['set']}, {pilot['people']} people; mean AUROC over all methods and epsilons "
        + ", ".join(f"{v['all']:.3f} at R = {r}" for r, v in pilot["mean_auroc_by_radius"].items())
        + f"; not private {pilot['not_private']:.3f}).",
        "- Columns are scaled by bounds declared from clinical knowledge (`confide.data.declaration`); the histogram of entry "
        "counts is treated as public, the relation is zero-out.",
        "- *Per-entry, group privacy*: classical group privacy for K entries, (K e, d (exp(K e) - 1) / (exp(e) - 1)), meets "
        "(epsilon, delta) at the largest K; the entry rate is the largest one that meets (e, d). By the tight accountant the "
        f"contributors with most entries then spend epsilon {spent}; the others spend less, so they are over-protected.",
        "- `scale` divides the clip by about the number of entries. Where most gradients are shorter than the clip (icu), the "
        "others hardly clip and `scale` clips every entry, which changes what it learns.",
        "- Not private: the same model fitted to convergence, every contributor with weight 1, unit ridge penalty.",
        "- Runs are seeded so that the figures repeat; a seeded run is for testing only and protects nobody.",
        "",
        f"Command: `{document['command']}` ({document['cpu_seconds'] / 60:.0f} minutes on one core of "
        f"{hardware['processor']}; Python {hardware['python']}, torch {hardware['torch']}, numpy {hardware['numpy']}). Data of "
        "every split: `benchmarks/utility/results.json`.",
        "",
    ]
    return "\n".join(lines)


def marker(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    if kind == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{colour}"/>'
    if kind == "diamond":
        return f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z" fill="{colour}"/>'
    if kind == "triangle":
        return f'<path d="M{x:.1f} {y - 5:.1f}l5 8.5h-10z" fill="{colour}"/>'
    return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2.2"/>'


def picture(measured: Measured) -> str:
    """Two panels side by side, one a data set; intervals as thin bars, non-private as a dashed line."""
    wide, high, left, top, gap = 360, 300, 56, 46, 60
    width, height = left + 2 * wide + gap + 24, top + high + 116
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>AUROC on held-out contributors over epsilon, for every strategy</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for panel, name in enumerate(measured.sets):
        x0 = left + panel * (wide + gap)
        lows = [measured.summary(name, m, e)[1] for m in measured.methods for e in measured.epsilons]
        highs = [measured.summary(name, m, e)[2] for m in measured.methods for e in measured.epsilons]
        plain = measured.summary(name, "not private", None)[0]
        bottom, ceiling = math.floor(min(lows) * 20) / 20, math.ceil(max(*highs, plain) * 20) / 20
        step = 0.05 if ceiling - bottom <= 0.5 else 0.1

        def at(value: float, bottom: float = bottom, ceiling: float = ceiling) -> float:
            return top + high * (ceiling - value) / (ceiling - bottom)

        out.append(f'<text x="{x0}" y="{top - 18}" font-weight="bold">{escape(TITLES[name])}</text>')
        for tick in np.arange(bottom, ceiling + 1e-9, step):
            out.append(f'<path d="M{x0} {at(tick):.1f}h{wide}" stroke="#e3e3e3"/>')
            out.append(f'<text x="{x0 - 8}" y="{at(tick) + 4:.1f}" text-anchor="end" fill="#444">{tick:.2f}</text>')
        out.append(f'<path d="M{x0} {at(plain):.1f}h{wide}" stroke="#444" stroke-dasharray="6 4"/>')
        slots = {e: x0 + wide * (i + 0.5) / len(measured.epsilons) for i, e in enumerate(measured.epsilons)}
        for epsilon, x in slots.items():
            out.append(f'<text x="{x:.1f}" y="{top + high + 20}" text-anchor="middle" fill="#444">{epsilon:g}</text>')
        out.append(f'<text x="{x0 + wide / 2:.1f}" y="{top + high + 40}" text-anchor="middle">epsilon</text>')
        for number, method in enumerate(measured.methods):
            colour, shape = STYLES[method]
            shift = (number - (len(measured.methods) - 1) / 2) * 11
            points = []
            for epsilon, x in slots.items():
                mean, low, top_ = measured.summary(name, method, epsilon)
                points.append((x + shift, at(mean)))
                bar = f"M{x + shift:.1f} {at(low):.1f}V{at(top_):.1f}"
                out.append(f'<path d="{bar}" stroke="{colour}" stroke-opacity="0.55" stroke-width="1.5"/>')
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-opacity="0.35"/>')
            out += [marker(shape, x, y, colour) for x, y in points]
        out.append(
            f'<text x="{x0 + 4}" y="{at(plain) - 6:.1f}" fill="#444" stroke="#ffffff" stroke-width="4" paint-order="stroke">not private</text>'
        )
    for number, method in enumerate(measured.methods):
        x, y = left + (number % 4) * 195, top + high + 70 + 24 * (number // 4)
        colour, shape = STYLES[method]
        out += [marker(shape, x, y - 4, colour), f'<text x="{x + 12}" y="{y}">{escape(method)}</text>']
    out.append(
        f'<text x="14" y="{top + high / 2}" transform="rotate(-90 14 {top + high / 2})" text-anchor="middle">AUROC</text>'
    )
    return "\n".join([*out, "</svg>", ""])


def write(document: dict[str, Any], pilot: dict[str, Any]) -> None:
    (DOCS / "utility.md").write_text(page(document, pilot))
    (DOCS / "utility.svg").write_text(picture(Measured(document)))
