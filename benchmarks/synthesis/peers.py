"""Tools of other projects on the same tables and splits, held to the same guarantee for a patient.

They protect rows, so each patient gives at most K visits (drawn at random, never shown) and, for K > 1, the tool gets
the epsilon at which K rows of one person cost the budget of a patient (zCDP, which both account in: rho grows with the
square of K). Each needs an environment of its own (Python 3.11):

    python -m venv dpmm && dpmm/bin/pip install dpmm==0.1.9
    python -m venv sns && sns/bin/pip install smartnoise-synth==1.0.8
    python benchmarks/synthesis/peers.py export FOLDER nafld pbcseq
    dpmm/bin/python benchmarks/synthesis/peers.py run FOLDER dpmm nafld --mechanism mst --rows 1 --epsilon 1
    sns/bin/python benchmarks/synthesis/peers.py run FOLDER sns nafld --mechanism mst --rows 1 --epsilon 1
    python benchmarks/synthesis/peers.py score FOLDER

`export` and `score` run in confide's environment; `score` adds lines to results.jsonl. What the tools release beyond
their noise (smartnoise-synth: the exact number of rows) is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from pathlib import Path

DELTA = 1e-5
HERE = Path(__file__).parent


def delta_of(rho: float, epsilon: float) -> float:
    """Smallest delta of rho-zCDP at an epsilon (Canonne, Kamath and Steinke, 2020, Corollary 13)."""
    low, high = 1.01, (epsilon + 1) / (2 * rho) + 2
    for _ in range(200):
        a = (low + high) / 2
        falling = (2 * a - 1) * rho - epsilon + math.log1p(-1 / a) < 0
        low, high = (a, high) if falling else (low, a)
    return math.exp((a - 1) * (a * rho - epsilon) + a * math.log1p(-1 / a)) / (a - 1)


def halved(holds, low: float, high: float) -> float:
    """Largest value at which something holds."""
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def epsilon_of_rows(epsilon: float, rows: int) -> float:
    """What a row may cost so that `rows` rows of a patient together cost at most (epsilon, delta), both by zCDP."""
    if rows == 1:
        return epsilon
    rho = halved(lambda rho: delta_of(rho, epsilon) <= DELTA, 1e-9, epsilon + 1)
    return halved(lambda e: delta_of(rho / rows**2, e) > DELTA, 1e-6, epsilon)


def export(folder: Path, names: list[str]) -> None:
    import polars as pl
    from tables import split

    for name in names:
        train, _ = split(name)
        frame = pl.DataFrame({**train.columns, "_pid": train.patient})
        (folder / name).mkdir(parents=True, exist_ok=True)
        frame.write_csv(folder / name / "train.csv")
        (folder / name / "domain.json").write_text(json.dumps(train.cells))


def run(folder: Path, tool: str, name: str, mechanism: str, rows: int, epsilon: float, seed: int) -> None:
    import numpy as np
    import pandas as pd

    domain = json.loads((folder / name / "domain.json").read_text())
    table = pd.read_csv(folder / name / "train.csv")
    size = len(table)
    order = table.assign(u=np.random.default_rng(1000 + seed).random(size)).groupby("_pid").u.rank(method="first")
    x = table[order <= rows].drop(columns="_pid").astype(int).reset_index(drop=True)
    price = epsilon_of_rows(epsilon, rows)
    np.random.seed(seed)  # noqa: NPY002  # what the tools draw from
    start = time.process_time()
    if tool == "dpmm":
        from dpmm.pipelines import AIMPipeline, MSTPipeline

        kind = {"mst": MSTPipeline, "aim": AIMPipeline}[mechanism]
        small = 8 if mechanism == "aim" else None
        pipeline = kind(epsilon=price, delta=DELTA, disable_processing=True, n_jobs=1, max_model_size=small,
                        gen_kwargs={"n_iters": 1000})  # fmt: skip
        pipeline.fit(x, domain=domain, random_state=seed)
        made = pipeline.generate(n_records=size, random_state=seed)
    else:
        from snsynth import Synthesizer

        more = {"max_model_size": 8} if mechanism == "aim" else {}
        synthesizer = Synthesizer.create(mechanism, epsilon=price, delta=DELTA, **more)
        synthesizer.fit(x, categorical_columns=list(x.columns), preprocessor_eps=0.0)
        made = pd.DataFrame(synthesizer.sample(size), columns=list(x.columns))
    used = resource.getrusage(resource.RUSAGE_SELF)
    tag = f"{name}-{tool}-{mechanism}-{rows}-{epsilon:g}-{seed}"
    made[list(domain)].astype(int).to_csv(folder / f"{tag}.csv", index=False)
    facts = {
        "key": [name, f"{tool} {mechanism}, {rows} visit{'s' * (rows > 1)}", epsilon, seed, 0],
        "cpu_seconds": time.process_time() - start,
        "peak_mb": used.ru_maxrss / 1024,
        "row_epsilon": price,
    }
    (folder / f"{tag}.json").write_text(json.dumps(facts))
    print(facts, flush=True)


def score(folder: Path) -> None:
    import numpy as np
    import polars as pl
    from run import OUT, measure
    from tables import split

    from confide.evaluation.tables import CodedTable

    done = {tuple(json.loads(line)["key"]) for line in OUT.read_text().splitlines()}
    for file in sorted(folder.glob("*.json")):
        facts = json.loads(file.read_text())
        if tuple(facts["key"]) in done:
            continue
        train, test = split(facts["key"][0])
        frame = pl.read_csv(file.with_suffix(".csv"))
        columns = {name: frame[name].to_numpy().astype(np.int64) for name in train.columns}
        made = CodedTable(columns, train.cells, np.arange(len(frame)))
        row = {**facts, **measure(facts["key"][0], train, test, made), "tables": 0}
        with OUT.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["export", "run", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="export: tables; run: tool and table")
    parser.add_argument("--mechanism", default="mst")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.step == "export":
        export(options.folder, options.names)
    elif options.step == "run":
        run(options.folder, *options.names, options.mechanism, options.rows, options.epsilon, options.seed)
    else:
        score(options.folder)


if __name__ == "__main__":
    main()
