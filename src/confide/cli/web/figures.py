"""What the pages show, as figures with the rows behind them: every figure can be taken away as SVG and as CSV."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confide.ledger import Distribution, Person, Record
from confide.ledger.export import csv_text
from confide.report.format import escape
from confide.report.svg import Series, plot


@dataclass(frozen=True)
class Figure:
    """A drawing (a `<figure>` as HTML) and its rows."""

    html: str
    names: tuple[str, ...]
    rows: list[dict[str, Any]]

    def csv(self) -> str:
        """Return the rows as CSV."""
        return csv_text(self.names, self.rows)

    def svg(self) -> str:
        """Return the drawing as a file of its own."""
        start, end = self.html.index("<svg "), self.html.index("</svg>") + 6
        head, body = self.html[start:end].split(">", 1)
        title = self.html.split("<b>", 1)[1].split("</b>", 1)[0]
        box = head.split('viewBox="', 1)[1].split('"', 1)[0].split()
        sized = f'{head} width="{box[2]}" height="{box[3]}">'
        return f"{sized}<title>{title}</title><style>{escape(_svg_css())}</style>{body}\n"


def balances(found: Distribution) -> Figure:
    """Draw how many contributors have used which share of their balance."""
    rows = [
        {"used_from": low, "used_to": high, "contributors": n}
        for low, high, n in zip(found.edges, found.edges[1:], found.counts, strict=False)
    ]
    middle = [50 * (r["used_from"] + r["used_to"]) for r in rows]
    drawn = plot(
        [Series("", middle, [float(r["contributors"]) for r in rows], "bars")],
        title="Balances used",
        x_label="share of the balance used (%)",
        y_label="contributors",
        x_range=(0.0, 100.0),
        note="By the rule that admits: at 100% nothing more is admitted.",
    )
    return Figure(drawn, ("used_from", "used_to", "contributors"), rows)


def timeline(records: Sequence[Record]) -> Figure:
    """Draw all releases over time, by their state."""
    when = [datetime.fromisoformat(r.created) for r in records]
    first = min(when, default=None)
    seconds = [(w - first).total_seconds() if first else 0.0 for w in when]
    span = max(seconds, default=0.0)
    units = (
        *(("seconds", 1.0, 120.0), ("minutes", 60.0, 7200.0)),
        *(("hours", 3600.0, 3 * 86400.0), ("days", 86400.0, math.inf)),
    )
    unit, size = next((name, length) for name, length, most in units if span < most)
    along = [s / size for s in seconds]
    last = max(along, default=0.0) or 1.0
    since = "" if first is None else first.strftime("%Y-%m-%d" if unit == "days" else "%Y-%m-%d %H:%M UTC")
    rows = [
        {
            "created": r.created,
            "release": r.release,
            "data_set": r.data_set,
            "state": r.state,
            "admitted": r.admitted,
            "dropped": r.dropped,
            "reservation": r.id,
        }
        for r in records
    ]
    known = ("committed", "started", "reserved", "abandoned", "aborted")
    series = [
        Series(
            state,
            [d for d, r in zip(along, records, strict=True) if r.state == state],
            [float(r.admitted) for r in records if r.state == state],
            "dots",
            style=i,
        )
        for i, state in enumerate(known)
        if any(r.state == state for r in records)
    ]
    drawn = plot(
        series or [Series("", [], [], "dots")],
        title="Releases over time",
        x_label=f"{unit} since {since}" if first else "days",
        y_label="contributors charged",
        x_range=(-0.03 * last, 1.03 * last),
        y_range=(0.0, 1.1 * max((float(r.admitted) for r in records), default=1.0) or 1.0),
        note="Aborted releases were given back before they had read anything.",
    )
    return Figure(drawn, ("created", "release", "data_set", "state", "admitted", "dropped", "reservation"), rows)


def course(person: Person, used: Sequence[float], epsilons: Sequence[float]) -> Figure:
    """Draw how one contributor's balance was used up, release by release."""
    rows = [
        {
            "created": s.created,
            "release": s.release,
            "data_set": s.data_set,
            "state": s.state,
            "epsilon": round(e, 6),
            "used_after": round(u, 6),
        }
        for s, u, e in zip(person.spends, used, epsilons, strict=True)
    ]
    count = [float(i) for i in range(len(used) + 1)]
    drawn = plot(
        [
            Series("used", count, [0.0, *(100 * u for u in used)], "step"),
            Series("full", [0.0, max(1.0, count[-1])], [100.0, 100.0], "guide"),
        ],
        title="Balance used, release by release",
        x_label="releases, in their order",
        y_label="share of the balance used (%)",
        x_range=(0.0, max(1.0, count[-1])),
        y_range=(0.0, 108.0),
        note="By the rule that admits.",
    )
    return Figure(drawn, ("created", "release", "data_set", "state", "epsilon", "used_after"), rows)


def tradeoff(fpr: Sequence[float], fnr: Sequence[float]) -> Figure:
    """Draw what the best membership test could reach against the class with the least protection."""
    rows = [{"false_positive_rate": a, "power": 1 - b} for a, b in zip(fpr, fnr, strict=True)]
    drawn = plot(
        [
            Series("best possible attack", list(fpr), [1 - v for v in fnr], "line"),
            Series("guessing", [0.0, 1.0], [0.0, 1.0], "guide"),
        ],
        title="What an attacker could do at best",
        x_label="false positive rate",
        y_label="power (true positive rate)",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        note="Membership of one contributor, the class with the least protection.",
    )
    return Figure(drawn, ("false_positive_rate", "power"), rows)


def _svg_css() -> str:
    whole = importlib.resources.files("confide.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        "".join(line.removeprefix("svg ") for line in whole.splitlines() if line.startswith("svg "))
        .replace("var(--ink)", "#1a1a1a")
        .replace("var(--soft)", "#4d4d4d")
    )
