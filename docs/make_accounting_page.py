"""Write docs/accounting.md from running code: oracles, speed, shortcuts, currencies.

python docs/make_accounting_page.py
"""

from __future__ import annotations

import json
from pathlib import Path

from confide.accounting import (
    CappedSampledGaussian,
    Gaussian,
    ReclippedSampledGaussian,
    SampledGaussian,
    rdp_epsilon,
)
from confide.risk import information_bits, sentences

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "accounting" / "results.json"

# (mechanism, steps, delta, value computed with another tool, which tool)
ORACLES = [
    (SampledGaussian(1.0, 0.01, 1), 1000, 1e-5, 1.82824, "dp_accounting, grid 1e-4"),
    (SampledGaussian(1.0, 0.01, 2), 1000, 1e-5, 3.979090, "dp_accounting, grid 1e-4"),
    (SampledGaussian(1.0, 0.01, 5), 1000, 1e-5, 11.637977, "dp_accounting, grid 1e-4"),
    (SampledGaussian(1.0, 0.01, 10), 1000, 1e-5, 27.89956, "dp_accounting, grid 1e-4"),
    (SampledGaussian(1.0, 0.01, 50), 1000, 1e-5, 290.8719, "dp_accounting, grid 1e-3"),
    (SampledGaussian(0.8, 0.001, 4), 10_000, 1e-6, 4.139, "dp_accounting, grid 1e-4"),
    (SampledGaussian(2.0, 0.1, 4), 500, 1e-5, 32.19, "dp_accounting, grid 1e-3"),
    (CappedSampledGaussian(1.0, 0.05, 8, 1), 500, 1e-5, 74.2, "dp_accounting, grid 1e-3"),
    (ReclippedSampledGaussian(1.0, 0.01, 4), 1000, 1e-5, 8.35, "dp_accounting, grid 1e-3"),
    (Gaussian(1.0), 1, 1e-5, 4.3772, "closed form"),
]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def oracles() -> str:
    """Certified interval against values computed elsewhere."""
    rows = []
    for mechanism, steps, delta, value, source in ORACLES:
        low, high = mechanism.guarantee(steps).epsilon_interval(delta)
        text = ", ".join(f"{k}={v}" for k, v in mechanism.to_dict().items() if k not in ("mechanism", "relation"))
        rows.append(
            [
                f"{type(mechanism).__name__}({text})",
                str(steps),
                f"{delta:g}",
                f"{low:.5g} to {high:.5g}",
                f"{value:g}",
                f"{100 * (high / value - 1):+.3f}%",
                source,
            ]
        )
    return table(
        ["mechanism", "steps", "delta", "certified epsilon", "elsewhere", "upper end differs by", "source"], rows
    )


def shortcuts() -> str:
    """The popular shortcuts for k entries, beside the truth."""
    rows = []
    for k in (2, 4, 8):
        low, high = SampledGaussian(1.0, 0.01, k).guarantee(1000).epsilon_interval(1e-5)
        one = SampledGaussian(1.0, 0.01).guarantee(1000)
        rows.append(
            [
                str(k),
                f"{low:.2f} to {high:.2f}",
                f"{k * one.epsilon(1e-5):.2f}",
                f"{SampledGaussian(1.0, 0.01 * k).guarantee(1000).epsilon(1e-5):.2f}",
                f"{SampledGaussian(1.0, 0.01).guarantee(1000 * k).epsilon(1e-5):.2f}",
            ]
        )
    return table(["entries k", "certified", "k times epsilon", "rate times k", "steps times k"], rows)


def currencies() -> str:
    """One guarantee in every currency."""
    g = SampledGaussian(1.0, 0.01, 4).guarantee(1000)
    bits = information_bits(g, candidates=100)
    rows = [
        ["epsilon at delta 1e-5 (certified interval)", "{:.4f} to {:.4f}".format(*g.epsilon_interval(1e-5))],
        ["delta at epsilon 4", f"{g.delta(4.0):.4g}"],
        ["epsilon by Renyi conversion (looser)", f"{rdp_epsilon(g.rdp(), 1e-5):.3f}"],
        ["membership advantage", f"{g.advantage():.4f}"],
        ["area under the ROC curve, at most", f"{g.auc():.4f}"],
        ["true positive rate at 1% false positives, at most", f"{1 - float(g.tradeoff(0.01)):.4f}"],
        ["precision at base rate 1% and 1% false positives, at most", f"{g.posterior(0.01, 0.01):.4f}"],
        ["picking the right one of 100, at most", f"{g.reconstruction(0.01):.4f}"],
        ["picking the right one of a million, at most", f"{g.reconstruction(1e-6):.3g}"],
        ["information about one contributor, at most (bits)", f"{bits['mutual']:.3f}"],
    ]
    return table(["currency", "value"], rows) + "\n\n" + "\n".join(f"- {text}" for text in sentences(g))


def speed() -> str:
    """The committed benchmark results."""
    if not RESULTS.exists():
        return "Run `python benchmarks/accounting/run.py` first."
    found = json.loads(RESULTS.read_text())
    one, nih, machine, many = (found[key] for key in ("one_guarantee", "nih", "machine", "many_classes"))
    rows = [
        [f"one certified interval, {one['cases']} random mechanisms: median", f"{one['median_ms']:.0f} ms"],
        ["the same: 95th percentile", f"{one['p95_ms']:.0f} ms"],
        ["the same, processor time: median", f"{one['median_cpu_ms']:.0f} ms"],
        ["the same, processor time: 95th percentile", f"{one['p95_cpu_ms']:.0f} ms"],
        ["the same: share whose certified width reached 1e-3", f"{100 * one['share_within_1e-3']:.0f}%"],
        [
            f"rates of {nih['distinct_counts']} entry counts (NIH ChestX-ray14), wall / processor",
            f"{nih['rates_s']:.1f} s / {nih['rates_cpu_s']:.1f} s",
        ],
        ["clipping norms of the same", f"{nih['clips_s']:.1f} s / {nih['clips_cpu_s']:.1f} s"],
        ["certified epsilon of each of these classes", f"{nih['epsilons_s']:.1f} s / {nih['epsilons_cpu_s']:.1f} s"],
        [
            f"rates of {many['classes']:,} distinct (entries, budget) classes",
            f"{many['wall_s']:.0f} s / {many['cpu_s']:.0f} s",
        ],
        [
            "share of its budget that a class spends, 100 of them checked",
            f"{100 * many['least_spent']:.1f}% to {100 * many['most_spent']:.1f}%",
        ],
        ["import beyond numpy and scipy, processor time", f"{1e3 * found['import_cpu_s_beyond_numpy_scipy']:.0f} ms"],
        *(
            [
                f"{row['entries']} entries: advantage, true positives at 1%, posterior, then a whole risk profile "
                "(processor time)",
                f"{row['advantage_cpu_ms']:.0f}, {row['true_positives_at_1_percent_cpu_ms']:.0f}, "
                f"{row['posterior_cpu_ms']:.0f}, {row['risk_profile_cpu_ms']:.0f} ms",
            ]
            for row in found["read_outs"]
        ),
        ["largest memory of the whole run (dp_accounting included)", f"{found['peak_memory_mib']:.0f} MiB"],
    ]
    text = table(["what", "measured (wall time unless said)"], rows)
    if "against_dp_accounting" in found:
        peers = [
            [
                str(r["entries"]),
                f"{r['confide_low']:.4f} to {r['confide_high']:.4f}",
                f"{1e3 * r['confide_s']:.0f} ms",
                f"{r['dp_accounting']:.4f}",
                f"{r['dp_accounting_s']:.1f} s",
                f"{r['times_faster']:.0f}",
            ]
            for r in found["against_dp_accounting"]
        ]
        text += "\n\nNoise 1, rate 0.01, 1,000 steps, delta 1e-5; dp_accounting at grid 1e-3, in the same run:\n\n"
        text += table(["entries", "confide", "time", "dp_accounting", "time", "times faster"], peers)
    if one["wider"]:
        text += (
            "\n\nWhere the width was missed (rare events: rounding of the transform weighs more than the lattice):\n\n"
        )
        text += table(
            ["noise, rate, entries, steps, delta", "certified epsilon"],
            [[", ".join(f"{v:.3g}" for v in w["case"]), f"{w['low']:.5g} to {w['high']:.5g}"] for w in one["wider"]],
        )
    return (
        text
        + f"\n\nMachine: {machine['cores']} cores, load average {machine['load_average']:.1f} while measuring, "
        + (
            f"Python {machine['python']}, numpy {machine['numpy']}, scipy {machine['scipy']}, "
            f"dp-accounting {machine['dp-accounting']}."
        )
    )


def swept() -> str:
    """The committed sweep over random mechanisms, and the time of whole plans."""
    found = json.loads((RESULTS.parent / "sweep.json").read_text())
    ten = found["of these at a grid ten times finer (the rest: the finest that fits)"]
    both = found["comparisons (both directions)"]
    both = found["comparisons (both directions)"]
    text = (
        "`benchmarks/accounting/sweep.py` compared the certified intervals of "
        f"{found['mechanisms']:,} random mechanisms of {len(found['by kind'])} kinds, in both directions "
        f"({both:,} intervals), with bounds from a finer grid: ten times finer for {ten:,}, the finest that fits for "
        f"the rest. Contradictions found: {found['failures']}."
    )
    plans = RESULTS.parent / "plans.json"
    if plans.exists():
        timed = json.loads(plans.read_text())
        rows = [[name, f"{row['cpu_s']:.1f} s", f"{row['peak_memory_mib']} MiB"] for name, row in timed["rows"].items()]
        text += "\n\nWhole plans, each in a process of its own:\n\n"
        text += table(["what", "processor time", "largest memory"], rows)
    return text


def main() -> None:
    """Write the page."""
    page = f"""# The accountant

<!-- Written by docs/make_accounting_page.py; edit that. -->

`confide.accounting` gives every contributor's guarantee as a certified interval: the upper end is a proved upper bound
(spread the loss to lattice points, add every rounding and truncation), the lower end a proved lower bound (merge
outputs). `epsilon(delta)` is always the safe end.

## Replacing dp_accounting in a notebook

```python
from confide.accounting import SampledGaussian
g = SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=4).guarantee(steps=1000)
g.epsilon(delta=1e-5), g.epsilon_interval(delta=1e-5)
```

## Against values computed elsewhere

{oracles()}

## Speed

{speed()}

{swept()}

Budgets of a population are rounded down to a public ladder (0.3% at most), and k entries may take the rate of a larger
number of entries at the same chance of drawing none: it dominates. Every answer is a function of the class's own
entries and budget, whoever else is asked for. Where taking part at all is rarer than delta, epsilon is zero, and it
leaps as the rate passes that point: there no rate spends 99% of a small budget.

## Three shortcuts people use for k entries, and how wrong they are

Noise 1, rate 0.01 per entry, 1,000 steps, delta 1e-5. All three are below the certified lower end: they promise more
privacy than there is.

{shortcuts()}

## The same guarantee in every currency

`SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=4)`, 1,000 steps.

{currencies()}
"""
    (HERE / "accounting.md").write_text(page)


if __name__ == "__main__":
    main()
