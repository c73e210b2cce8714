"""Random patients for tests."""

from __future__ import annotations

import numpy as np

from confide.synthesis import Column, Domain, Panel


def random_panel(rng: np.random.Generator, *, patients: int = 12, heavy: int = 40, min_visits: int = 0) -> Panel:
    """Return a small random panel; patient 0 has many visits, all alike or all different."""
    static = tuple(
        Column(f"s{i}", int(rng.integers(1, 5)), bool(rng.integers(2))) for i in range(int(rng.integers(1, 4)))
    )
    visit = tuple(
        Column(f"v{i}", int(rng.integers(2, 6)), bool(rng.integers(2))) for i in range(int(rng.integers(1, 4)))
    )
    time = "v0" if rng.random() < 0.5 else None
    domain = Domain(static, visit, max_visits=int(rng.integers(3, 30)), min_visits=min_visits, time=time)
    counts = rng.integers(min_visits, 6, patients)
    counts[0] = heavy
    codes = np.column_stack([rng.integers(0, c.cells, int(counts.sum())) for c in visit])
    if rng.random() < 0.7:
        codes[: counts[0]] = codes[0]
    return Panel.from_codes(
        domain, static=np.column_stack([rng.integers(0, c.cells, patients) for c in static]), visit=codes, counts=counts
    )


def dependent_panel(rng: np.random.Generator, *, patients: int = 3000) -> Panel:
    """Return patients whose visits depend on a static column, on each other and on the visit before."""
    domain = Domain(
        (Column("sex", 2), Column("risk", 3, ordinal=True)),
        (Column("year", 4, ordinal=True), Column("stage", 4, ordinal=True), Column("drug", 2)),
        max_visits=8,
        min_visits=1,
        time="year",
    )
    sex = rng.integers(0, 2, patients)
    risk = np.clip(sex + rng.integers(0, 2, patients), 0, 2)
    counts = np.clip(1 + risk * 2 + rng.integers(0, 3, patients), 1, 8)
    rows = []
    for r, k in zip(risk, counts, strict=True):
        years = np.sort(rng.integers(0, 4, k))
        stage = int(rng.integers(0, 2)) + int(r > 1)
        for year in years:
            if rng.random() < 0.2:
                stage = min(3, stage + 1)
            rows.append((year, stage, int(rng.random() < 0.15 + 0.25 * stage)))
    return Panel.from_codes(domain, static=np.column_stack([sex, risk]), visit=np.array(rows), counts=counts)
