"""From codes back to tables: declared categories, numbers drawn within their bins, rules kept down to the value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from confide.synthesis.columns import SynthesisColumn
from confide.synthesis.declared_rules import Columns, Rule
from confide.synthesis.domain import Floats, Ints, Panel
from confide.synthesis.study import SynthesisStudy


def decode(
    study: SynthesisStudy, panel: Panel, rng: np.random.Generator, events: Mapping[str, Panel] | None = None
) -> dict[str, pl.DataFrame]:
    """Turn synthetic panels into tables with declared categories and numbers drawn evenly within their bins.

    Returns
    -------
    dict
        ``"patients"``, ``"visits"`` and the event tables if declared, linked by ``patient`` (a running number).
    """
    patients = {"patient": pl.Series(np.arange(1, panel.patients + 1))}
    for position, (name, column) in enumerate(study.features(study.patients).items()):
        patients[name] = _values(panel.static[:, position], column, rng, None)
    tables = {"patients": pl.DataFrame(patients)}
    if study.visits is not None:
        tables["visits"] = _table(study, "visits", study.features(study.visits), study.visits.time, panel, rng, tables)
    for name, event in (events or {}).items():
        section = study.events[name]
        tables[name] = _table(study, name, study.features(section), section.time, event, rng, tables)
    return tables


def _table(
    study: SynthesisStudy,
    table: str,
    columns: Mapping[str, SynthesisColumn],
    time: str,
    panel: Panel,
    rng: np.random.Generator,
    tables: Mapping[str, pl.DataFrame],
) -> pl.DataFrame:
    owner = panel.of_visit
    rows = {"patient": pl.Series(owner + 1, dtype=pl.Int64)}
    for position, (name, column) in enumerate(columns.items()):
        rows[name] = _values(panel.visit[:, position], column, rng, owner if name == time else None)
    for rule in study.rules:
        if rule.table == table and rule.limit is not None:
            rows[rule.column] = _bounded(rule, rows[rule.column], tables["patients"], owner, study.columns_of(table))
    return pl.DataFrame(rows)


def _bounded(rule: Rule, values: pl.Series, patients: pl.DataFrame, owner: Ints, columns: Columns) -> pl.Series:
    """Cut values at the patient's own number: their bin was chosen such that the cut stays inside it."""
    assert rule.limit is not None
    limit = patients[rule.limit].cast(pl.Float64 if patients[rule.limit].dtype != pl.Date else pl.Int32)
    edge = limit.cast(pl.Float64).fill_null(float("nan")).to_numpy()[owner]
    whole = values.cast(pl.Int32) if values.dtype == pl.Date else values
    now = whole.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    cut = np.fmin(now, edge) if rule.not_after is not None else np.fmax(now, edge)
    cut = np.where(np.isnan(now), now, cut)
    column = columns.find(rule.column)[1]
    if column.grid is not None:
        low, rounded = column.low_high[0], np.floor if rule.not_after is not None else np.ceil
        cut = low + column.grid * rounded((cut - low) / column.grid - (1e-9 if rounded is np.ceil else -1e-9))
    kept = pl.Series(values.name, cut, dtype=pl.Float64).fill_nan(None)
    if values.dtype == pl.Date:
        return kept.cast(pl.Int32).cast(pl.Date)
    return kept.cast(values.dtype)


def _values(codes: Ints, column: SynthesisColumn, rng: np.random.Generator, owner: Ints | None) -> pl.Series:
    gap = codes == column.coded("x").cells - 1 if column.missing == "indicator" else np.zeros(len(codes), dtype=bool)
    if column.type in ("categorical", "ordinal"):
        words = [*column.categories] if column.categories else []
        drawn_words = [None if g else words[c] for g, c in zip(gap, codes, strict=True)]
        # without rows or without values the type still is what the schema says
        kind = pl.String if any(isinstance(word, str) for word in words) else None
        if kind is None and not any(word is not None for word in drawn_words):
            kind = pl.Series(words).dtype  # type: ignore[assignment]
        return pl.Series(drawn_words, dtype=kind, strict=False)
    edges, grid = column.edges(), column.grid
    low, high = edges[np.where(gap, 0, codes)], edges[np.where(gap, 0, codes) + 1]
    drawn: Floats = low + rng.random(len(codes)) * (high - low)
    if grid is not None:
        first = column.low_high[0]
        drawn = first + grid * np.floor((drawn - first) / grid + 1e-9)
        drawn = np.clip(drawn, first + grid * np.ceil((low - first) / grid - 1e-9), column.low_high[1])
    if owner is not None:
        drawn = drawn[np.lexsort((drawn, owner))]
    if column.type == "real":
        if grid is None:
            digits = max(0, 3 - int(np.floor(np.log10(max(edges[-1] - edges[0], 1e-300)))))
            # rounded down, so that a value never leaves its bin
            drawn = np.maximum(np.floor(drawn * 10**digits) / 10**digits, low if owner is None else edges[0])
        else:
            drawn = np.round(drawn, 9)
        return pl.Series(drawn).set(pl.Series(gap), None)
    whole = pl.Series(np.round(drawn).astype(np.int64)).set(pl.Series(gap), None)
    return whole.cast(pl.Int32).cast(pl.Date) if column.type == "date" else whole
