"""``confide evaluate`` for synthetic tables: what they are worth, measured on the real ones. All of it is internal.

The figures go to ``internal/<name of the release>/`` as ``evaluation.json`` and ``evaluation.html``. They are exact and
are not covered by the guarantee of the release.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from confide._files import write_atomic
from confide.errors import InputError, MissingExtraError
from confide.release import Release
from confide.report import TableFigures, guarantee_sentence, table_evaluation_report
from confide.studies.synthesis_run import load_synthesis
from confide.studies.tables_fidelity import fidelity_figures
from confide.studies.tables_models import survival_figures, utility_figures
from confide.studies.tables_over_time import longitudinal_figures
from confide.studies.tables_read import EvaluationTables, check_same_study, read_for_evaluation
from confide.studies.tables_refits import audit_figures, inference_figures
from confide.studies.watch import Quiet, Watcher
from confide.synthesis.study import SynthesisStudy

DEFAULT_REFITS = 20


@dataclass(frozen=True)
class Evaluated:
    """Where the figures are, and the figures."""

    figures: TableFigures
    paths: dict[str, Path]


def evaluate_tables(
    folder: str | Path,
    *,
    study_path: Path | None = None,
    data: Path | None = None,
    refits: int = DEFAULT_REFITS,
    watcher: Watcher | None = None,
) -> Evaluated:
    """Measure a release of synthetic tables against the real ones.

    Parameters
    ----------
    folder : path
        The release.
    study_path : Path, optional
        The study file; default the one kept with the internal figures.
    data : Path, optional
        Folder that relative sources start from; default that of the study file.
    refits : int
        Runs of the method on made-up patients, for the coverage of error bars and the membership game; 0 leaves them
        out.
    watcher : Watcher, optional
        Sees the progress.

    Raises
    ------
    InputError
        The release holds no tables, the study did not make it, or the data do not fit.
    """
    release = Release.load(Path(folder))
    if release.certificate.kind != "table":
        raise InputError(f"this release holds a {release.certificate.kind}, not tables", where=str(folder))
    internal = release.path.parent.parent / "internal" / release.path.name
    path = study_path or internal / "study.toml"
    study, text = load_synthesis(path)
    check_same_study(text, release, str(path))
    base = data if data is not None else (study_path.parent if study_path else _home(release.path, study))
    watcher = watcher or Quiet()
    watcher.say("reading the real and the released tables")
    tables = read_for_evaluation(study, release, base=base)
    figures = measure_tables(tables, release, refits=refits, watcher=watcher)
    if not internal.exists():
        internal.mkdir(mode=0o700, parents=True)
    paths = {"figures": internal / "evaluation.json", "internal report": internal / "evaluation.html"}
    write_atomic(paths["figures"], figures.to_json(), mode=0o600)
    write_atomic(paths["internal report"], table_evaluation_report(figures), mode=0o600)
    return Evaluated(figures, paths)


def _home(release: Path, study: SynthesisStudy) -> Path:
    """Return the folder of the study file if releases lie where the study says: [output] dir in its own folder."""
    home = release.parent
    for _ in Path(study.output.dir).parts:
        home = home.parent
    return home


def measure_tables(
    tables: EvaluationTables, release: Release, *, refits: int = DEFAULT_REFITS, watcher: Watcher | None = None
) -> TableFigures:
    """Measure everything that can be measured; what cannot is named under ``left_out``."""
    watcher = watcher or Quiet()
    study, found, left_out, seconds = tables.study, {}, [], {}
    if not tables.held_out.panel.patients:
        left_out.append(
            "Everything that needs patients who took no part (floors, models tested on real people): the study sets "
            "nobody aside. Declare [evaluation] holdout before the next synthesis; it cannot be made up for."
        )
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "fidelity": lambda: fidelity_figures(tables),
        "over time": lambda: longitudinal_figures(tables),
        "time to an event": lambda: survival_figures(tables),
        "models": lambda: utility_figures(tables, watcher.say),
        "error bars": lambda: inference_figures(tables, release, refits, watcher),
        "membership game": lambda: audit_figures(tables, refits, watcher),
    }
    for name, part in parts.items():
        start = time.perf_counter()
        watcher.say(name)
        try:
            result = part()
        except MissingExtraError as error:
            left_out.append(f"{name}: {error.what}; {error.remedy}")
            continue
        left_out += [str(one) for one in result.pop("left_out", [])]  # type: ignore[attr-defined]
        found.update(result)
        seconds[name] = round(time.perf_counter() - start, 2)
    sets = {"training": tables.train, "held out": tables.held_out, "synthetic": tables.synthetic}
    if tables.later is not None:
        sets["later"] = tables.later
    return TableFigures.model_validate(
        {
            "name": study.name,
            "release": release.path.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "guarantee": guarantee_sentence(release.certificate),
            "patients": {name: coded.panel.patients for name, coded in sets.items()},
            "visits": {name: len(coded.panel.visit) for name, coded in sets.items()},
            "left_out": left_out,
            "seconds": seconds,
            **found,
        }
    )


def summary_lines(figures: TableFigures) -> list[str]:
    """Say the main figures in a few lines; internal like the rest."""
    lines = []
    for d in figures.fidelity:
        if d.ways == 2:
            floor = "" if d.floor is None else f" (two samples of real patients differ by {d.floor:.3f})"
            lines.append(f"2-way total variation per {d.per}: {d.mean:.3f}{floor}, worst {d.worst:.3f}")
    for u in figures.utility:
        best: dict[str, float] = {}
        for row in u.rows:
            if row.value is not None and not np.isnan(row.value):
                best[row.trained_on] = max(best.get(row.trained_on, 0.0), row.value)
        lines.append(f"AUROC for {u.outcome} on {u.tested_on}: " + ", ".join(f"{k} {v:.3f}" for k, v in best.items()))
    if figures.violations:
        broken = sum(v.synthetic for v in figures.violations)
        lines.append(f"rule violations in the synthetic tables: {broken}")
    for game in figures.audit:
        lines.append(
            f"membership game: epsilon at least {game.epsilon_lower:.2f} proven, {game.claimed:.2f} claimed; "
            + (
                "no evidence of a false claim, and no proof of a true one"
                if (game.largest_possible or 0.0) > (game.claimed or 0.0)
                else f"{game.runs} runs are too few to contradict it (give --refits 200)"
            )
        )
    return lines
