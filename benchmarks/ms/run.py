"""The multiple-sclerosis study on a SIMULATION, and a small real check; results in benchmarks/ms/results.json.

    python benchmarks/ms/run.py            # all of it, about ten minutes on one core
    python benchmarks/ms/run.py --page     # writes the tables of docs/ms_study.md from the results

The real check needs ms_cis_conversion.csv (Mendeley Data 8wk5hjx7x2) in the folder CONFIDE_DATA; without it that part
is left out and the results say so.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
EPSILONS, REPEATS = (1.0, 3.0, 8.0), 2
CIS_EPSILONS, CIS_SPLITS = (1.0, 3.0, 10.0), 20
DMTS = ("dimethyl fumarate", "fingolimod", "glatiramer acetate", "interferon beta", "natalizumab", "teriflunomide")


def design(frame: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    number = {
        n: frame[n].cast(pl.Float64).to_numpy() for n in ("age_first", "duration_first", "edss", "relapses_before")
    }
    terms = {
        "constant": np.ones(frame.height),
        "age, per 10 years": (number["age_first"] - 40) / 10,
        "duration, per 10 years": number["duration_first"] / 10,
        "man": (frame["sex"] == "m").to_numpy().astype(float),
        "EDSS": number["edss"] - 2,
        "relapses before": number["relapses_before"],
        "line": frame["line"].cast(pl.Float64).to_numpy() - 1,
    }
    for dmt in DMTS[1:]:
        terms[dmt] = (frame["dmt"] == dmt).to_numpy().astype(float)
    return np.column_stack(list(terms.values())), list(terms)


def concordance(risk: np.ndarray, count: np.ndarray, exposure: np.ndarray) -> float:
    """Return the share of pairs with different rates in which the higher rate was predicted higher."""
    rate = count / exposure
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, len(rate), (2, 400_000))
    keep = rate[a] != rate[b]
    a, b = a[keep], b[keep]
    agree = np.sign(risk[a] - risk[b]) * np.sign(rate[a] - rate[b])
    return float(((agree > 0) + 0.5 * (agree == 0)).mean())


def models(train: pl.DataFrame, test: pl.DataFrame) -> dict[str, Any]:
    """Fit the two models of Stuehler et al. and score them on later patients."""
    import statsmodels.api as sm

    x, names = design(train)
    z, _ = design(test)
    months = np.maximum(train["months"].cast(pl.Float64).to_numpy(), 1.0)
    count = np.minimum(train["n_relapses"].cast(pl.Float64).to_numpy(), 4.0)
    relapses = sm.GLM(count, x, family=sm.families.NegativeBinomial(alpha=0.5), offset=np.log(months / 12)).fit()
    cdp = train["cdp"].cast(pl.Float64).to_numpy()
    # a little ridge: a therapy without any progression must not run away
    progression = sm.GLM(cdp, x, family=sm.families.Binomial()).fit_regularized(alpha=1e-3, L1_wt=0.0)
    from confide.evaluation import auroc

    exposure = np.maximum(test["months"].cast(pl.Float64).to_numpy(), 1.0)
    return {
        "relapse C": concordance(z @ relapses.params, test["n_relapses"].cast(pl.Float64).to_numpy(), exposure),
        "cdp C": float(auroc(test["cdp"].cast(pl.Int64).to_numpy(), z @ progression.params)),
        "coefficients": dict(zip(names, map(float, relapses.params), strict=True)),
        "standard errors": dict(zip(names, map(float, relapses.bse), strict=True)),
    }


def simulation() -> dict[str, Any]:
    from confide.data import load
    from confide.ledger import Ledger
    from confide.studies.evaluate_tables import measure_tables
    from confide.studies.synthesis_run import load_synthesis, run_synthesis
    from confide.studies.tables_read import read_for_evaluation

    text = (ROOT / "examples" / "ms_synthesis.toml").read_text()
    patients, cycles = load("ms_simulated_patients"), load("ms_simulated_cycles")
    whole = cycles.join(patients, on="patient_id").with_columns(pl.col("line").cast(pl.Int64))
    found: dict[str, Any] = {"patients": patients.height, "cycles": cycles.height, "runs": []}
    for epsilon in EPSILONS:
        for repeat in range(REPEATS):
            start = time.process_time()
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "study.toml").write_text(re.sub(r"epsilon = 3\.0", f"epsilon = {epsilon}", text))
                url = f"sqlite:///{folder}/l.sqlite"
                Ledger.create(url, cap_epsilon=50, cap_delta=1e-3).close()
                made = run_synthesis(folder / "study.toml", accept=lambda lines: None, ledger_url=url)
                seconds = time.process_time() - start
                study, _ = load_synthesis(folder / "study.toml")
                tables = read_for_evaluation(study, made.release, base=folder)
                figures = measure_tables(tables, made.release, refits=0)
                later = whole.filter(pl.col("first_year") >= 2017)
                early = whole.filter(pl.col("patient_id").cast(pl.String).is_in(tables.train.ids.tolist()))
                synthetic = pl.read_parquet(made.release.path / "table.parquet")
                if not found.get("trained on real"):
                    found["trained on real"] = models(early, later)
                    found["training patients"] = tables.train.panel.patients
                    found["later patients"] = int(later["patient_id"].n_unique())
                run = {
                    "epsilon": epsilon,
                    "repeat": repeat,
                    "cpu_seconds": round(seconds, 1),
                    "tv2": next(d.mean for d in figures.fidelity if d.ways == 2 and d.per == "visit"),
                    "floor2": next(d.floor for d in figures.fidelity if d.ways == 2 and d.per == "visit"),
                    "violations": sum(v.synthetic for v in figures.violations),
                    "utility": [u.model_dump(exclude={"note"}) for u in figures.utility],
                    "models": models(synthetic, later),
                    "augmented": models(pl.concat([_alike(early), _alike(synthetic)]), later),
                }
                found["runs"].append(run)
                print(epsilon, repeat, run["models"]["relapse C"], run["models"]["cdp C"], flush=True)
    return found


def _alike(frame: pl.DataFrame) -> pl.DataFrame:
    kinds = {"sex": pl.String, "dmt": pl.String}
    names = [
        "sex",
        "age_first",
        "duration_first",
        "line",
        "dmt",
        "edss",
        "relapses_before",
        "months",
        "n_relapses",
        "cdp",
    ]
    return frame.select(pl.col(n).cast(kinds.get(n, pl.Float64)) for n in names)


def real_check() -> dict[str, Any]:
    """Train on synthetic patients with a clinically isolated syndrome, test on real held-out ones."""
    from sklearn.linear_model import LogisticRegression

    from confide.evaluation import auroc, split_contributors
    from confide.synthesis import Column, Domain, Meter, Panel, PatientUnit

    file = Path(os.environ.get("CONFIDE_DATA", "")) / "ms_cis_conversion.csv"
    if not file.is_file():
        return {"left out": "ms_cis_conversion.csv is not in CONFIDE_DATA"}
    frame = pl.read_csv(file)
    # declared from the data dictionary of the publication: codes from 0 or 1 up to 3
    declared = dict.fromkeys(("Breastfeeding", "Varicella", "Mono_or_Polysymptomatic"), (1, 3))
    declared |= {"Gender": (1, 2), "class_name": (1, 2), "Oligoclonal_Bands": (0, 2)}
    columns = [(n, *declared.get(n, (0, 1))) for n in frame.columns]
    codes = np.column_stack([frame[n].to_numpy() - low for n, low, _ in columns]).astype(np.int64)
    sizes = [high - low + 1 for _, low, high in columns]
    domain = Domain(tuple(Column(n, s) for (n, _, _), s in zip(columns, sizes, strict=True)), (), target="class_name")

    def onehot(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:, [i]] == np.arange(s) for i, s in enumerate(sizes[:-1])], axis=1).astype(float)

    def score(train: np.ndarray, test: np.ndarray) -> float:
        y = train[:, -1] == 0  # class 1: converted
        if y.all() or not y.any():
            return 0.5
        model = LogisticRegression(max_iter=500).fit(onehot(train), y)
        return float(auroc((test[:, -1] == 0).astype(int), model.predict_proba(onehot(test))[:, 1]))

    rows: list[dict[str, float]] = []
    for split in range(CIS_SPLITS):
        held = split_contributors([str(i) for i in range(len(codes))], holdout=0.3, key=b"cis", repeat=split)
        train, test = codes[~held], codes[held]
        row = {"real": score(train, test)}
        for epsilon in CIS_EPSILONS:
            panel = Panel.from_codes(domain, static=train, visit=np.zeros((0, 0)), counts=[0] * len(train))
            made = PatientUnit(estimand="patient").fit(panel, Meter(epsilon=epsilon, delta=1e-4)).sample(5_000).static
            row[f"epsilon {epsilon:g}"] = score(made, test)
            row[f"epsilon {epsilon:g} + real"] = score(np.vstack([train, made[: len(train)]]), test)
        rows.append(row)
    return {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "patients": len(codes),
        "splits": CIS_SPLITS,
        "auroc": {k: [float(np.mean([r[k] for r in rows])), float(np.std([r[k] for r in rows]))] for k in rows[0]},
    }


def page() -> None:
    results = json.loads(RESULTS.read_text())
    target = ROOT / "docs" / "ms_study.md"
    text = target.read_text()
    for name, table in (("prediction", _prediction(results)), ("models", _models(results)), ("cis", _cis(results))):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: m.group(1) + t + m.group(2), text, flags=re.S
        )
    target.write_text(text)


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.3f}"


def _prediction(results: dict[str, Any]) -> str:
    s = results["simulation"]
    lines = ["| epsilon | tested on | learner | synthetic | real | both | 100 real | 100 real + synthetic |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    kinds = ("synthetic", "real", "real + synthetic", "100 real patients", "100 real + synthetic")
    for epsilon in EPSILONS:
        runs = [r for r in s["runs"] if r["epsilon"] == epsilon]
        for number, tested in enumerate(("held out", "later")):
            for learner in ("logistic regression", "boosted trees", "random forest"):
                cells = []
                for kind in kinds:
                    values = [row["value"] for r in runs for row in r["utility"][number]["rows"]
                              if row["learner"] == learner and row["trained_on"] == kind]  # fmt: skip
                    cells.append(_mean(values))
                lines.append(f"| {epsilon:g} | {tested} | {learner} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def _models(results: dict[str, Any]) -> str:
    s = results["simulation"]
    real = s["trained on real"]
    lines = ["| trained on | relapses, C | progression, C | pair distance (floor) | rule violations | CPU s |",
             "| --- | --- | --- | --- | --- | --- |",
             f"| real | {real['relapse C']:.3f} | {real['cdp C']:.3f} | | | |"]  # fmt: skip
    for epsilon in EPSILONS:
        runs = [r for r in s["runs"] if r["epsilon"] == epsilon]
        for kind, key in (("synthetic", "models"), ("real + synthetic", "augmented")):
            relapse, cdp = ([r[key][name] for r in runs] for name in ("relapse C", "cdp C"))
            more = " | | |"
            if kind == "synthetic":
                more = (
                    f" {_mean([r['tv2'] for r in runs])} ({_mean([r['floor2'] for r in runs])}) | "
                    f"{sum(r['violations'] for r in runs)} | {np.mean([r['cpu_seconds'] for r in runs]):.0f} |"
                )
            lines.append(f"| {kind}, epsilon {epsilon:g} | {_mean(relapse)} | {_mean(cdp)} |{more}")
    return "\n".join(lines) + "\n\n"


def _cis(results: dict[str, Any]) -> str:
    check = results["real check"]
    if "auroc" not in check:
        return "Not run: the file was not there.\n\n"
    lines = ["| trained on | AUROC, mean over splits | standard deviation |", "| --- | --- | --- |"]
    lines += [f"| {name} | {mean:.3f} | {sd:.3f} |" for name, (mean, sd) in check["auroc"].items()]
    return "\n".join(lines) + "\n\n"


def main() -> None:
    if "--page" in sys.argv:
        page()
        return
    results = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": os.getloadavg(),
        "real check": real_check(),
        "simulation": simulation(),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
