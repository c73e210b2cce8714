"""Learning the marked values of a drafted study privately: bounds, categories, caps on visits; the ledger is charged.

Each marked value is replaced by a differentially private one at patient level: bounds and the cap on visits by DP
quantiles over round public numbers (exponential mechanism, every patient weighs 1), categories by partition selection
(a value that one patient alone has is named with probability at most delta). Types, and which columns belong to the
patient, were guessed from the data: they stay for a person to confirm.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from confide.accounting import ApproximateBudget, Gaussian, Guarantee, Laplace, Mechanism, compose
from confide.data import linked_ids, read_source
from confide.data.convert import Origin, numbers, text_of
from confide.errors import InputError
from confide.mechanisms import NoiseSource, OSNoise, private_selection, select_partitions
from confide.mechanisms.released import owner_codes, shares
from confide.studies.opening import flow_of, open_ledger
from confide.synthesis.draft import MARK
from confide.synthesis.meter import gaussian_mu
from confide.synthesis.sections import PatientsSection, VisitsSection
from confide.synthesis.study import SynthesisStudy, parse_synthesis_study

LOW, HIGH = 0.03, 0.97
VISITS = 0.95
MOST_VALUES = 20
_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
# Public: each round number further out is thought this much less likely (in the exponent) before the data are asked.
_OUTWARD = 0.3


@dataclass(frozen=True)
class Marked:
    """One marked value: its line, section, column (or None) and key."""

    line: int
    section: str
    column: str | None
    key: str

    @property
    def path(self) -> str:
        """As ``[public.paid_schema] values`` names it."""
        middle = f".columns.{self.column}" if self.column is not None else ""
        return f"{self.section}{middle}" + (f".{self.key}" if self.column is None else "")


@dataclass(frozen=True)
class Estimated:
    """The new text, what was learnt (may be shown), and the price."""

    text: str
    lines: tuple[str, ...]
    guarantee: Guarantee
    receipt: str


def round_numbers() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the public candidates of a bound: 0, and plus or minus 1, 1.2, 1.5, 2, ... times powers of ten."""
    positive = np.array([round(s * 10.0**e, 6) for e in range(-3, 6) for s in _STEPS] + [1e6])
    return np.concatenate([-positive[::-1], [0.0], positive])


def marked_values(text: str) -> list[Marked]:
    """List the values of a draft that wait to be confirmed."""
    found, section, column = [], "", None
    for number, line in enumerate(text.splitlines()):
        header = re.match(r"\s*\[([^\]]+)\]", line)
        if header:
            parts = re.match(r"(.+?)\.columns\.(.+)$", header.group(1))
            section = parts.group(1) if parts else header.group(1)
            column = parts.group(2).strip() if parts else None
            if column is not None and column.startswith('"'):
                column = str(json.loads(column))
            continue
        key = re.match(r"\s*([a-z_]+)\s*=", line)
        if key and MARK in line:
            found.append(Marked(number, section, column, key.group(1)))
    return found


def estimate_schema(
    path: Path,
    *,
    epsilon: float,
    delta: float,
    accept: Callable[[list[str]], None],
    ledger_url: str | None = None,
    noise: NoiseSource | None = None,
) -> Estimated:
    """Replace the marked bounds, categories and caps of a draft by private estimates.

    Parameters
    ----------
    path : Path
        The draft.
    epsilon, delta : float
        The whole price for every patient; split evenly over the marked values.
    accept : callable
        Takes lines about the price; raises to stop.
    ledger_url : str, optional
    noise : NoiseSource, optional
        Default: seeded by the operating system.

    Raises
    ------
    InputError
        There is nothing to estimate, or the tables do not fit the draft.
    BudgetError
        The ledger refuses.
    """
    text = path.read_text(encoding="utf-8")
    study = parse_synthesis_study(text, where=str(path))
    wanted = [m for m in marked_values(text) if m.key in ("bounds", "categories", "max_visits", "max_events")]
    if not wanted:
        raise InputError("no value of this study is marked for confirmation", where=str(path))
    if not (epsilon > 0 and 0 < delta < 1):
        raise InputError(f"the price is ({epsilon}, {delta})", expected="epsilon above 0 and delta between 0 and 1")
    each, choices = epsilon / len(wanted), sum(m.key == "categories" for m in wanted)
    failure = delta / max(choices, 1)
    parts: list[Mechanism] = []
    for m in wanted:
        parts += (
            [ApproximateBudget(epsilon=each, failure=failure)]
            if m.key == "categories"
            else [Laplace(2 / each), Laplace(2 / each)]
            if m.key == "bounds"
            else [Laplace(1 / each)]
        )
    guarantee = compose([part.guarantee() for part in parts])
    sources = {section: _source(study, section, path.parent) for section in {m.section for m in wanted}}
    people = sorted({one for _, ids, _ in sources.values() for one in ids})
    source = noise or OSNoise()
    with open_ledger(study, path.parent, ledger_url) as ledger:
        accept(
            [
                f"Price: epsilon {epsilon:g}, delta {delta:.3g} for each patient, for {len(wanted)} values.",
                "Bounds will hold about 94% of the patients' weight; values beyond are moved to them and counted.",
            ]
        )
        reservation = ledger.reserve(
            release=f"{study.name}-schema",
            contributors=people,
            class_of=np.zeros(len(people), dtype=np.int64),
            classes=[guarantee],
            data_set=" + ".join(sorted({section.label for _, _, section in sources.values()})),
            exhausted="drop",
            **flow_of(study),
        )
        ledger.start(reservation.id)
        admitted = set(np.asarray(people)[np.asarray(reservation.admitted, dtype=bool)].tolist())
        lines, said = text.splitlines(), []
        for m in wanted:
            frame, ids, section = sources[m.section]
            keep = np.array([one in admitted for one in ids], dtype=bool)
            value, more = _estimate(
                m, frame.filter(pl.Series(keep)), np.asarray(ids)[keep], section, each, failure, source
            )
            lines[m.line] = f"{m.key} = {value}   # learnt privately"
            lines[m.line] += "".join(f"\n{extra}" for extra in more)
            said.append(f"{m.path}: {m.key} = {value}")
        new = "\n".join(lines) + "\n" + _paid(epsilon, delta, reservation.id, wanted)
        ledger.commit(reservation.id, release_hash=hashlib.sha256(new.encode()).hexdigest())
    parse_synthesis_study(new, where=str(path))
    return Estimated(new, tuple(said), guarantee, reservation.id)


def _paid(epsilon: float, delta: float, receipt: str, wanted: Sequence[Marked]) -> str:
    values = json.dumps([m.path for m in wanted])
    return (
        "\n[public.paid_schema]          # written by `confide schema estimate`\n"
        f"epsilon = {epsilon:g}\ndelta = {delta:g}\nreceipt = {json.dumps(receipt)}\nvalues = {values}\n"
    )


def _source(study: SynthesisStudy, name: str, base: Path) -> tuple[pl.DataFrame, list[str], Any]:
    section: PatientsSection | VisitsSection | None
    if name == "patients":
        section = study.patients
    elif name == "visits":
        section = study.visits
    else:
        section = study.events.get(name.removeprefix("events."))
    assert section is not None
    frame, origin = read_source(section, base=base)
    return frame, linked_ids(frame, section, origin, "patient id", base=base), section


def _estimate(
    m: Marked,
    frame: pl.DataFrame,
    ids: np.ndarray[Any, Any],
    section: Any,
    epsilon: float,
    failure: float,
    noise: NoiseSource,
) -> tuple[str, list[str]]:
    if m.key in ("max_visits", "max_events"):
        counts = np.unique(ids, return_counts=True)[1].astype(np.float64)
        grid = np.unique(np.round(np.geomspace(1, 2_000, 60)))
        return f"{int(_round_quantile(counts, np.arange(len(counts)), VISITS, grid, epsilon, noise))}", []
    assert m.column is not None
    column = section.columns[m.column]
    if m.key == "categories":
        words = text_of(frame[m.column])
        present = words.is_not_null().to_numpy()
        # half of the failure for the Gaussian's own delta, half for naming what one patient alone has
        sigma = 1 / gaussian_mu(epsilon, failure / 2)
        released = select_partitions(
            words.drop_nulls().to_list(),
            ids[present],
            Gaussian(noise_multiplier=sigma),
            delta=failure / 2,
            max_partitions=MOST_VALUES,
            noise=noise,
        )
        named = sorted(sorted(released.value, key=lambda v: -released.value[v])[:60])
        named = [value for value in named if value != "other"]
        return json.dumps([*named, "other"], ensure_ascii=False), ['other = "other"']
    values = _numbers(frame[m.column], m.column, column)
    keep = np.isfinite(values)
    if column.type == "date":
        grid, centre = np.arange(-25_567.0, 29_220.0, 365.25), 10_957.0  # new year's days from 1900 to 2049; 2000
    else:
        grid, centre = round_numbers(), 0.0
    low, high = (_round_quantile(values[keep], ids[keep], q, grid, epsilon / 2, noise, centre) for q in (LOW, HIGH))
    if not low < high:  # the noise had its way: the next public candidates around it
        place = int(np.searchsorted(grid, low))
        low, high = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, len(grid) - 1)])
    if column.type == "date":
        days = [str(np.datetime64(math.floor(v), "D")) for v in (low, high)]
        return json.dumps(days), ['outside = "clip"']
    shown = [math.floor(low), math.ceil(high)] if column.type == "integer" else [low, high]
    return json.dumps(shown), ['outside = "clip"']


def _numbers(series: pl.Series, name: str, column: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = numbers(series, name, column, Origin(name))
    return np.asarray(found.fill_null(float("nan")).to_numpy(), dtype=np.float64)


def _round_quantile(
    values: np.ndarray[Any, np.dtype[np.float64]],
    owners: np.ndarray[Any, Any],
    q: float,
    grid: np.ndarray[Any, np.dtype[np.float64]],
    epsilon: float,
    noise: NoiseSource,
    centre: float = 0.0,
) -> float:
    """Choose a public candidate near a quantile; every patient weighs 1.

    The score of candidate x is -|W(<= x) - q W|: one patient of weight 1 moves it by at most max(q, 1 - q), as in
    `confide.mechanisms.quantile`, whose evenly spaced candidates do not suit an unknown range.
    """
    weights = shares(owner_codes(owners, len(values)))
    order = np.argsort(values, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    below = total[np.searchsorted(values[order], grid, side="right")]
    sensitivity = max(q, 1 - q)
    # beyond all values every candidate scores the same: a public preference for near ones decides among them
    outward = np.abs(np.arange(len(grid)) - int(np.searchsorted(grid, centre)))
    scores = -np.abs(below - q * total[-1]) - _OUTWARD * outward * 2 * sensitivity / epsilon
    chosen = private_selection(scores, epsilon=epsilon, noise=noise, sensitivity=sensitivity)
    return float(grid[chosen.value])
