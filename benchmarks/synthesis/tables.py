"""The benchmark's tables: public hard-coded bins, split 70/30 by patient; more in others.py."""

from __future__ import annotations

from functools import cache

import numpy as np
import polars as pl

from confide.data import load
from confide.evaluation.tables import CodedTable
from confide.synthesis import Column, Domain, Panel

STATIC = {"nafld": ("age", "male", "bmi", "target"), "pbcseq": ("trt", "age", "sex", "target")}
NOMINAL = {"trt", "sex", "target", "male"}
# Public knowledge of the two studies: the protocol of pbcseq has yearly visits over 14 years; 300 laboratory days.
GAPS = {"bmi", "hdl", "sbp", "smoke", "fib4", "ascites", "hepato", "spiders", "chol", "alkphos", "platelet"}
MISSING = {"calories", "protein", "nodes", "differ", "dose", "risk"}
MAX_VISITS = {"nafld": 300, "pbcseq": 20}


def cut(values: np.ndarray, edges: list[float], missing: bool = False) -> tuple[np.ndarray, int]:
    x = np.asarray(values, dtype=float)
    codes, n = np.digitize(x, edges), len(edges) + 1
    if missing:
        codes, n = np.where(np.isnan(x), n, codes), n + 1
    return codes.astype(np.int64), n


def cat(values: np.ndarray, k: int, missing: bool = False) -> tuple[np.ndarray, int]:
    x = np.asarray(values, dtype=float)
    return np.where(np.isnan(x), k, x).astype(np.int64), k + int(missing)


def pbcseq() -> tuple[dict, np.ndarray]:
    p = load("pbcseq")
    g = {c: p[c].to_numpy() for c in p.columns}
    f = {c: p[c].cast(pl.Float64, strict=False).to_numpy() for c in p.columns if c not in ("sex",)}
    columns = {
        "trt": cat(f["trt"], 2),
        "age": cut(f["age"], [40, 50, 60, 70]),
        "sex": cat((g["sex"] == "m").astype(float), 2),
        "visit_yr": cut(f["day"] / 365.25, [0.25, 0.75, 1.5, 2.5, 4, 6, 9]),
        "ascites": cat(f["ascites"], 2, True),
        "hepato": cat(f["hepato"], 2, True),
        "spiders": cat(f["spiders"], 2, True),
        "edema": cat(f["edema"] * 2, 3),
        "bili": cut(f["bili"], [1, 2, 4, 8, 16]),
        "chol": cut(f["chol"], [200, 240, 300, 400], True),
        "albumin": cut(f["albumin"], [2.5, 3, 3.5, 4]),
        "alkphos": cut(f["alk.phos"], [500, 1000, 1500, 2500], True),
        "ast": cut(f["ast"], [50, 80, 120, 200]),
        "platelet": cut(f["platelet"], [100, 150, 250, 350], True),
        "protime": cut(f["protime"], [10, 11, 12, 14]),
        "stage": cat(f["stage"] - 1, 4),
        "target": cat((f["status"] == 2).astype(float), 2),
    }
    return columns, f["id"].astype(np.int64)


def nafld() -> tuple[dict, np.ndarray]:
    patients = load("nafld1").select("id", "age", "male", "bmi", "status").cast(pl.Float64, strict=False)
    v = load("nafld2").with_columns(pl.col("id", "days", "value").cast(pl.Float64, strict=False))
    # as shipped hdl equals chol and sbp equals dbp: one of each is enough
    v = v.filter(pl.col("test").is_in(["hdl", "sbp", "smoke", "fib4"]))
    v = v.group_by("id", "days", "test").agg(pl.col("value").median())
    v = v.pivot("test", index=["id", "days"], values="value").join(patients, on="id", how="left")
    v = v.filter(pl.col("age").is_not_null()).sort("id", "days")
    f = {c: v[c].to_numpy() for c in v.columns}
    columns = {
        "age": cut(f["age"], [30, 40, 50, 60, 70, 80]),
        "male": cat(f["male"], 2),
        "bmi": cut(f["bmi"], [18.5, 25, 30, 35, 40, 50], True),
        "visit_yr": cut(f["days"] / 365.25, [-12, -8, -4, -1, 1, 4, 8]),
        "hdl": cut(f["hdl"], [30, 40, 50, 60, 75, 100], True),
        "sbp": cut(f["sbp"], [110, 120, 130, 140, 160, 180], True),
        "smoke": cat(np.round(f["smoke"]), 2, True),
        "fib4": cut(f["fib4"], [2.8, 3.25, 5], True),
        "target": cat(f["status"], 2),
    }
    return columns, f["id"].astype(np.int64)


@cache
def _columns(name: str) -> tuple[dict, np.ndarray]:
    if name in STATIC:
        return {"pbcseq": pbcseq, "nafld": nafld}[name]()
    from others import OTHERS

    columns, pid = OTHERS[name]()
    order = np.argsort(pid, kind="stable")
    return {c: (np.asarray(x)[order], n) for c, (x, n) in columns.items()}, pid[order]


def about(name: str) -> tuple[tuple[str, ...], set[str], int, str]:
    """Return static columns, nominal columns, public bound on visits, time column."""
    if name in STATIC:
        return STATIC[name], NOMINAL, MAX_VISITS[name], "visit_yr"
    from others import ABOUT

    return ABOUT[name]


def split(name: str, seed: int = 0) -> tuple[CodedTable, CodedTable]:
    """Return training and test visits; seed 0 is the split of the reported table."""
    columns, pid = _columns(name)
    ids = np.unique(pid)
    rng = np.random.default_rng(seed)
    rng.shuffle(ids)
    test = np.isin(pid, ids[: int(0.3 * len(ids))])
    cells = {c: n for c, (_, n) in columns.items()}
    return tuple(CodedTable({c: x[m] for c, (x, _) in columns.items()}, cells, pid[m]) for m in (~test, test))  # type: ignore[return-value]


def panel_of(name: str, table: CodedTable) -> Panel:
    static, nominal, most, time = about(name)
    visit = tuple(c for c in table.columns if c not in static)
    missing = GAPS if name in STATIC else MISSING

    def column(c: str) -> Column:
        return Column(c, table.cells[c], c not in nominal, c in missing)

    domain = Domain(
        tuple(column(c) for c in static), tuple(column(c) for c in visit), max_visits=most, min_visits=1, time=time,
        target="target",
    )  # fmt: skip
    _, first, counts = np.unique(table.patient, return_index=True, return_counts=True)
    order = np.argsort(first)
    return Panel.from_codes(
        domain,
        static=np.column_stack([table.columns[c][np.sort(first)] for c in static]),
        visit=np.column_stack([table.columns[c] for c in visit]),
        counts=counts[order],
    )


def table_of(panel: Panel, like: CodedTable) -> CodedTable:
    columns = {c.name: panel.visit[:, i] for i, c in enumerate(panel.domain.visit)}
    columns |= {c.name: panel.static[panel.of_visit, i] for i, c in enumerate(panel.domain.static)}
    return CodedTable({c: columns[c] for c in like.columns}, like.cells, panel.of_visit)
