"""What needs the method to run again, on made-up patients only: coverage of error bars and the membership game.

The base is the synthetic table itself: its patients are public, so nothing more is spent, and the truth is known.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from confide.audit.tables import membership_game
from confide.evaluation.tables_inference import REACH, combine, covers
from confide.mechanisms import OSNoise
from confide.release import Release
from confide.report import Coverage, Game, Inference
from confide.studies.tables_read import EvaluationTables
from confide.studies.watch import Watcher
from confide.synthesis import Meter, NoisyModel, Panel
from confide.synthesis.domain import Floats, Ints
from confide.synthesis.study import SynthesisStudy

TABLES = 5
MOST_PATIENTS = 4_000
GAME_PATIENTS = 300
_RARE = 0.02

Key = tuple[str, ...]


def _fit(study: SynthesisStudy, panel: Panel) -> NoisyModel:
    meter = Meter(epsilon=study.privacy.epsilon, delta=study.delta, noise=OSNoise(), part=study.share)
    return study.synthesizer().fit(panel, meter, rules=study.row_rules())


def inference_figures(tables: EvaluationTables, release: Release, refits: int, watcher: Watcher) -> dict[str, Any]:
    """Return whether error bars hold: those of released marginals, and rules for several synthetic tables."""
    inside, cells = _marginals(tables, release)
    if refits < 2 or not tables.synthetic.panel.patients:
        note = "Rules for several synthetic tables were not simulated: this evaluation ran without refits."
        return {"inference": Inference(marginal_cells=cells, marginal_inside=inside, note=note)}
    coverage = simulated_coverage(tables.study, tables.synthetic.panel, replicates=max(2, refits // 2), watcher=watcher)
    note = (
        f"Simulation: the synthetic patients were taken for a population, as many patients as they are (at most "
        f"{MOST_PATIENTS:,}) were drawn from it, the whole method ran again, and {TABLES} tables came from each noisy "
        "model. Estimands: the share of each cell of each column that at least 2% have."
    )
    return {
        "inference": Inference(marginal_cells=cells, marginal_inside=inside, coverage=coverage, note=note),
    }


def _marginals(tables: EvaluationTables, release: Release) -> tuple[float | None, int]:
    file = release.path / "marginals.json"
    if not file.exists():
        return None, 0
    real = _shares(tables.train.panel)
    inside = []
    for table in json.loads(file.read_text(encoding="utf-8"))["tables"]:
        key = (table["level"], *table["columns"])
        if table.get("table") or len(table["columns"]) != 1 or key not in real:
            continue
        gap = np.abs(np.asarray(table["noisy"], dtype=np.float64) - real[key])
        inside += (gap <= REACH * table["standard_error"]).tolist()
    return (float(np.mean(inside)) if inside else None), len(inside)


def _shares(panel: Panel) -> dict[Key, Floats]:
    """Return the exact share of every cell, per patient for the patient's columns, per visit for all."""

    def share(codes: Ints, cells: int) -> Floats:
        return np.bincount(codes, minlength=cells) / max(len(codes), 1)

    found: dict[Key, Floats] = {}
    for position, column in enumerate(panel.domain.static):
        found["patient", column.name] = share(panel.static[:, position], column.cells)
        found["visit", column.name] = share(panel.static[panel.of_visit, position], column.cells)
    for position, column in enumerate(panel.domain.visit):
        found["visit", column.name] = share(panel.visit[:, position], column.cells)
    if panel.domain.visit:
        found["patient", "number of visits"] = share(panel.count_codes(), len(panel.domain.count_starts))
    return found


def _errors(panel: Panel, shares: dict[Key, Floats]) -> dict[Key, Floats]:
    """Return the sampling variance of each share, whole patients drawn."""
    found: dict[Key, Floats] = {}
    n = max(panel.patients, 1)
    for (level, name), p in shares.items():
        if level == "patient":
            found[level, name] = p * (1 - p) / n
            continue
        position = [c.name for c in panel.domain.visit].index(name)
        cells = len(p)
        table = np.bincount(panel.of_visit * cells + panel.visit[:, position], minlength=panel.patients * cells)
        rest = table.reshape(panel.patients, cells) - panel.counts[:, None] * p
        found[level, name] = (rest**2).sum(0) / max(float(panel.counts.sum()), 1.0) ** 2
    return found


def simulated_coverage(
    study: SynthesisStudy, population: Panel, *, replicates: int, watcher: Watcher | None = None
) -> list[Coverage]:
    """Simulate how often intervals of nominally 95% hold the truth, for several rules.

    Parameters
    ----------
    study : SynthesisStudy
    population : Panel
        Made-up patients whose shares are the truth.
    replicates : int
        Each draws patients, runs the method once and draws `TABLES` tables from the noisy model.
    """
    rng = np.random.default_rng()
    size = min(population.patients, MOST_PATIENTS)
    visit = {c.name for c in population.domain.visit}
    truth = {key: p for key, p in _shares(population).items() if (key[0] == "patient") != (key[1] in visit)}
    rules = ("as if one synthetic table were real", "Raghunathan, Reiter, Rubin", "Raab, Nowok, Dibben",
             "privacy noise added (known)")  # fmt: skip
    hits: dict[str, list[bool]] = {rule: [] for rule in rules}
    widths: dict[str, list[float]] = {rule: [] for rule in rules}
    if watcher is not None:
        watcher.begin("error bars: runs on made-up patients", replicates)
    for replicate in range(replicates):
        model = _fit(study, drawn(population, rng.integers(0, population.patients, size)))
        noise: dict[Key, float] = {
            (m.level, m.columns[0]): m.deviation for m in model.measurements if len(m.columns) == 1
        }
        made = [model.sample(size, rng=rng) for _ in range(TABLES)]
        shares = [_shares(panel) for panel in made]
        errors = [_errors(panel, {k: s[k] for k in truth}) for panel, s in zip(made, shares, strict=True)]
        for key, p in truth.items():
            for cell in np.flatnonzero((p > _RARE) & (p < 1 - _RARE)):
                one = combine([float(s[key][cell]) for s in shares], [float(e[key][cell]) for e in errors])
                found = (one.naive(), one.reiter(), one.raab(), one.noise_aware(noise.get(key, 0.0)))
                for rule, error in zip(rules, found, strict=True):
                    hits[rule].append(covers(float(shares[0][key][cell]) if rule == rules[0] else one.value, error,
                                             float(p[cell])))  # fmt: skip
                    widths[rule].append(2 * REACH * error)
        if watcher is not None:
            watcher.step(replicate + 1)
    if watcher is not None:
        watcher.end()
    return [
        Coverage(
            rule=rule,
            coverage=float(np.mean(hits[rule])) if hits[rule] else None,
            width=float(np.mean(widths[rule])) if widths[rule] else None,
            estimands=len(hits[rule]) // max(replicates, 1),
            replicates=replicates,
        )
        for rule in rules
    ]


def drawn(panel: Panel, patients: Ints) -> Panel:
    """Return some patients with all their visits, each as often as it is named."""
    counts = panel.counts[patients]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(panel.starts[patients], counts) + offsets
    return Panel(panel.domain, panel.static[patients], panel.visit[rows], counts)


def audit_figures(tables: EvaluationTables, refits: int, watcher: Watcher) -> dict[str, Any]:
    """Return the membership game on made-up patients with one planted patient."""
    if refits < 4 or not tables.synthetic.panel.patients:
        return {"left_out": ["Membership game: needs at least 4 refits."]}
    study, panel = tables.study, tables.synthetic.panel
    base = panel.slice(0, min(panel.patients, GAME_PATIENTS))
    visits = study.visits.max_visits if study.visits is not None else 0
    watcher.begin("membership game: runs on made-up patients", refits)
    result = membership_game(
        lambda people: _fit(study, people), base, runs=refits, visits=visits, delta=study.delta, progress=watcher.step
    )
    watcher.end()
    game = Game(
        canary=result.canary,
        runs=result.runs,
        false_positive=result.false_positive,
        true_positive=result.true_positive,
        epsilon_lower=result.epsilon_lower,
        claimed=study.privacy.epsilon,
        largest_possible=result.largest_possible,
        advantage=result.advantage,
        note="Played on synthetic patients with one planted patient, who took part or did not. A bound above the claim "
        "would show that the claim is false. A bound below it proves nothing: the guarantee rests on its proof.",
    )
    return {"audit": [game]}
