"""Drawing the tables of a release, a block of patients at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from confide.studies.synthesis_run import FittedTables, generator_of
from confide.synthesis import Panel
from confide.synthesis.decoding import decode
from confide.synthesis.study import SynthesisStudy

DRAW_PATIENTS = 20_000
ROW_GROUP = 250_000


@dataclass(frozen=True, eq=False)
class Drawn:
    """Synthetic tables on disk, and the panel behind them (or the first block of it)."""

    files: dict[str, Path]
    panel: Panel


def draw_tables(
    study: SynthesisStudy,
    fitted: FittedTables,
    folder: Path,
    *,
    number: int = 1,
    whole: bool = True,
    key: str = "",
    progress: Callable[[str], None] = lambda what: None,
) -> Drawn:
    """Draw all tables of a release from the noisy model; costs nothing.

    Parameters
    ----------
    folder : Path
        Where the files go.
    number : int
        Which of several draws; the first one also gets CSV files and the joined table.
    whole : bool
        Keep the panel of all blocks in memory, or of the first one.
    key : str
        Secret of the run, so that a resumed run draws the same tables.
    progress : function, optional
        Told what is being done.
    """
    first = number == 1
    total = max(1, round(fitted.main.patients)) if study.sample.patients is None else study.sample.patients
    stream = 0 if first else 2 * number
    codes, values = generator_of(study, stream, key), generator_of(study, stream + 1, key)
    panels: list[Panel] = []
    parts: dict[str, list[Path]] = {}
    csv: dict[str, Path] = {}
    before = 0
    for block, size in enumerate(_sizes(total)):
        progress(f"drawing patients from {before + 1:,} of {total:,}")
        panel, events = fitted.sample(size, codes)
        tables = decode(study, panel, values, events)
        if whole or not panels:
            panels.append(panel)
        tables = {name: table.with_columns(pl.col("patient") + before) for name, table in tables.items()}
        for name, table in _with_joined(tables) if first else tables.items():
            parts.setdefault(name, []).append(folder / f"drawn-{number}-{name}-{block:05d}.parquet")
            table.write_parquet(parts[name][-1])
            if first:
                csv[f"{name}.csv"] = folder / f"{name}.csv"
                with csv[f"{name}.csv"].open("ab") as file:
                    table.write_csv(file, include_header=block == 0)
        before += size
    files: dict[str, Path] = {}
    for name, blocks in parts.items():
        target = folder / (f"{name}.parquet" if first else f"{name}-{number}.parquet")
        if len(blocks) == 1:
            blocks[0].rename(target)
        else:
            pl.scan_parquet(blocks).sink_parquet(target, row_group_size=ROW_GROUP)
            for block_file in blocks:
                block_file.unlink()
        files[target.name] = target
    return Drawn(files | csv, Panel.joined(panels[0].domain, panels))


def _sizes(total: int) -> Iterator[int]:
    """Return nearly equal numbers of patients that add up to the total."""
    blocks = -(-total // DRAW_PATIENTS)
    for block in range(blocks):
        yield total // blocks + (block < total % blocks)


def _with_joined(tables: Mapping[str, pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Return the tables, and before them visits with their patients side by side."""
    joined = tables["patients"]
    if "visits" in tables:
        joined = tables["visits"].join(tables["patients"], on="patient", how="left", maintain_order="left")
    yield "table", joined
    yield from tables.items()
