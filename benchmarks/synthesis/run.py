"""Fidelity and utility of every method at patient level; python benchmarks/synthesis/run.py, then page.py.

One JSON line a run in results.jsonl; runs that stand there are not repeated. Seeds fix the privacy noise so that the
table can be made again; a release never has a seed.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from tables import about, panel_of, split, table_of

from confide.evaluation import tables as score
from confide.evaluation.tables_time import intraclass_correlation
from confide.mechanisms import SeededNoise
from confide.synthesis import Autoregressive, FlatAIM, FlatTree, Meter, PateGAN, PatientUnit, SplineFlow

HERE = Path(__file__).parent
OUT = HERE / "results.jsonl"
SMALL = 2000
# Of the default method (and of independence, which is made by it): rows of an earlier version are taken out of results.
VERSION = 2


def methods(name: str) -> dict[str, object]:
    caps = {"nafld": (1.0, 18.0, 36.0), "pbcseq": (1.0, 4.0)}.get(name, (1.0, 3.0))
    found: dict[str, object] = {
        "patient-unit": PatientUnit(),
        "independence": PatientUnit(structure="none"),
        "patient-unit, per patient": PatientUnit(estimand="patient"),
        "patient-unit, focus visit": PatientUnit(focus="visit"),
    }
    for cap in caps:
        found[f"mst, cap {cap:g}"] = FlatTree(cap=cap)
    found[f"flat independence, cap {caps[1]:g}"] = FlatTree(edges=False, cap=caps[1], name="flat independence")
    if name in ("nafld", "pbcseq"):
        found["aim, 8 slots"] = FlatAIM()
        found["autoregressive"] = Autoregressive()
        found["flow"] = SplineFlow()
        found["pate-gan"] = PateGAN()
    return found


def boosting(x: np.ndarray, y: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    return HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(x, y).predict_proba(held_out)[:, 1]


def auroc(synthetic, test) -> float:
    """Area under the curve where the outcome has two values, else not a number."""
    if test.cells["target"] > 2:
        return float("nan")
    return score.train_on_synthetic(synthetic, test, target="target", learner=boosting)


def by_column(table, names) -> list[float]:
    """Intraclass correlation of every visit column's codes; 0 where it is not defined."""
    found = [intraclass_correlation(table.columns[c].astype(float), table.patient) for c in names]
    return [0.0 if np.isnan(value) else value for value in found]


def within(table, names) -> float:
    """Mean intraclass correlation over visit columns."""
    return float(np.mean(by_column(table, names)))


def measure(name, train, test, synthetic) -> dict[str, float]:
    moving = [c for c in train.columns if c not in about(name)[0]]
    weights = train.per_patient_weights()
    pairs = score.fidelity(train, synthetic, ways=2)
    # as the anchors score: synthetic visits count one each, real ones 1 or 1/k
    by_patient = np.mean(
        [score.total_variation(score.shares(train, c, weights), score.shares(synthetic, c)) for c in pairs.by_columns]
    )
    return {
        "tv1": score.fidelity(train, synthetic, ways=1).mean,
        "tv2": pairs.mean,
        "tv2_worst": pairs.worst,
        "tv2_patient": float(by_patient),
        "auroc": auroc(synthetic, test),
        "transitions": float(np.mean(list(score.transition_distance(train, synthetic, moving).values()))),
        "icc": within(synthetic, moving),
        "icc_error": float(np.mean(np.abs(np.subtract(by_column(synthetic, moving), by_column(train, moving))))),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="nafld, pbcseq, or a table of others.py")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--only", default="", help="labels, separated by |")
    options = parser.parse_args()
    done = {tuple(json.loads(line)["key"]) for line in OUT.read_text().splitlines()} if OUT.exists() else set()

    def put(key: list, row: dict) -> None:
        with OUT.open("a") as file:
            file.write(json.dumps({"key": key, **row}) + "\n")
        print(key, {k: round(v, 4) for k, v in row.items()}, flush=True)

    for number in range(options.splits):
        train, test = split(options.data, number)
        key = [options.data, "real", 0.0, 0, number]
        if tuple(key) not in done:
            floor = score.fidelity(train, test, ways=2).mean
            moving = [c for c in train.columns if c not in about(options.data)[0]]
            put(key, {"floor": floor, "auroc": auroc(train, test), "icc": within(train, moving)})
        panel = panel_of(options.data, train)
        for seed in range(options.seeds):
            for epsilon in (1.0, 3.0):
                for label, method in methods(options.data).items():
                    key = [options.data, label, epsilon, seed, number]
                    if tuple(key) in done or (options.only and label not in options.only.split("|")):
                        continue
                    start = time.process_time()
                    model = method.fit(
                        panel, Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(1000 * number + seed))
                    )
                    size = None
                    if isinstance(method, FlatTree | PateGAN):
                        size = len(
                            panel.visit
                        )  # one visit a patient: as many rows as the real table, as other tools do
                    drawn = model.sample(size, rng=np.random.default_rng(seed))
                    row = measure(options.data, train, test, table_of(drawn, train))
                    row["cpu_seconds"] = time.process_time() - start
                    if panel.patients < SMALL:  # drawing more costs no privacy: what is lost to the size of the table
                        more = model.sample(10 * (size or panel.patients), rng=np.random.default_rng(seed + 1))
                        row["auroc_tenfold"] = auroc(table_of(more, train), test)
                    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                    if isinstance(method, PatientUnit):
                        row["version"] = VERSION
                    row["tables"] = len(model.measurements)
                    put(key, row)


if __name__ == "__main__":
    main()
