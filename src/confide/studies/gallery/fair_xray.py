"""Does private training serve some groups of chest X-ray patients worse than ordinary training does?

The images of ChestX-ray14 do not come with any package; its table does (112,120 images of 30,805 people). The study
asks the paper's question of a model that sees the table alone: age, sex, view and follow-up number, to tell whether a
radiologist wrote down any finding. That is a weak predictor. It is real, has many images per person, and has groups.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError
from confide.evaluation import GroupRule, fairness, gap_correlation
from confide.studies.gallery.base import Context, GalleryStudy, Outcome, Verdict, over_repetitions

if TYPE_CHECKING:
    import polars as pl

    from confide.data import Table
    from confide.studies.gallery.tabular import Split

_DELTA = 1e-6
_EPSILONS = (1.0, 8.0)
_AGE = GroupRule("age", (40, 60, 80))
_COLUMNS = {
    "Image Index": "image",
    "Finding Labels": "labels",
    "Follow-up #": "followup",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Sex": "sex",
    "Patient Gender": "sex",
    "View Position": "view",
}
_GROWTH = 0.02


def read_nih(path: Path) -> pl.DataFrame:
    """Read ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv`` as NIH publishes it (.gz too), or Parquet.

    Raises
    ------
    InputError
        A column is missing.
    """
    import polars as pl

    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    frame = frame.rename({old: new for old, new in _COLUMNS.items() if old in frame.columns})
    missing = sorted(set(_COLUMNS.values()) - set(frame.columns))
    if missing:
        raise InputError(
            f"{path.name} has no column for {missing[0]!r}",
            where="--data",
            expected="Data_Entry_2017_v2020.csv of ChestX-ray14, with " + ", ".join(_COLUMNS),
        )
    age = pl.col("age").cast(pl.String).str.extract(r"(\d+)").cast(pl.Float64).clip(0, 100)
    return frame.select(
        "image",
        pl.col("patient").cast(pl.String),
        age,
        "sex",
        "view",
        pl.col("followup").cast(pl.Float64).clip(0, 200),
        finding=(pl.col("labels") != "No Finding").cast(pl.Int64),
    )


def _table(frame: pl.DataFrame) -> Table:
    from confide.data import Schema, SourceSpec, read_sources

    schema = Schema.from_dict(
        {
            "age": {"type": "real", "bounds": [0, 100]},
            "sex": {"type": "categorical", "categories": ["F", "M"]},
            "view": {"type": "categorical", "categories": ["PA", "AP"]},
            "followup": {"type": "real", "bounds": [0, 200]},
            "finding": {"role": "label", "classes": [0, 1], "positive": [1]},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nih.parquet"
        frame.write_parquet(file)
        return read_sources([SourceSpec(source=str(file), contributor="patient", entry="image")], schema)


def _run(context: Context) -> Outcome:
    from confide.planning import plan
    from confide.studies.gallery.tabular import split_people, train, train_plainly

    assert context.data is not None
    full = context.size == "full"
    table = _table(read_nih(context.data))
    repetitions, steps = (5, 200) if full else (1, 15)
    ks, ns = np.unique(table.index.counts, return_counts=True)
    counts = {int(k): float(n) * 0.75 for k, n in zip(ks, ns, strict=True)}
    found: dict[str, list[float]] = {}
    growth: dict[str, list[float]] = {}
    for number in range(repetitions):
        split = split_people(table, context.rng(number), train=0.75, validation=0.0)
        plain = _groups(split, train_plainly(split, context.rng(number, 1)))
        _put(found, "AUROC, non-private", plain["all"]["AUROC"])
        for epsilon in _EPSILONS:
            how = plan(
                counts,
                epsilon=epsilon,
                delta=_DELTA,
                noise_multiplier=8.0 if epsilon < 4 else 2.0,
                steps=steps,
                strategy="individual",
            )
            private = _groups(split, train(split, how, learning_rate=2.0)[0])
            _put(found, f"AUROC, epsilon {epsilon:g}", private["all"]["AUROC"])
            for name in private:
                if name == "all":
                    continue
                more = abs(private[name]["accuracy_difference"]) - abs(plain[name]["accuracy_difference"])
                growth.setdefault(f"epsilon {epsilon:g}, {name}", []).append(more)
            shown = [name for name in private if name != "all"]
            gaps = [private[n]["AUROC"] - plain[n]["AUROC"] for n in shown]
            for what, values in (
                ("number of people", [plain[n]["people"] for n in shown]),
                ("non-private AUROC", [plain[n]["AUROC"] for n in shown]),
            ):
                r, _ = gap_correlation(gaps, values)
                _put(found, f"Pearson r of the AUROC gap with the {what}, epsilon {epsilon:g}", r)
        context.say(f"split {number + 1} of {repetitions}: AUROC {plain['all']['AUROC']:.3f} non-private")
    figures = [over_repetitions(what, values, share=what.startswith("AUROC")) for what, values in found.items()]
    grown = [over_repetitions(f"growth of the accuracy difference, {name}", v) for name, v in growth.items()]
    worst = max(grown, key=lambda f: f.ours)
    beyond = [f for f in grown if (f.low if f.low is not None else f.ours) > _GROWTH]
    verdict: Verdict = "does not hold" if beyond else "holds"
    why = (
        f"the largest growth of a group's accuracy difference is {worst.ours:+.3f} ({worst.what.split(', ', 1)[1]}); "
        f"{len(beyond)} of {len(grown)} exceed {_GROWTH:g} beyond chance"
        + (f": {', '.join(f.what.split(', ', 1)[1] for f in beyond)}." if beyond else ".")
    )
    return Outcome(verdict, why, (*figures, *grown))


def _groups(split: Split, by_entry: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Per image figures of test people, in all and by group, with the prevalence of training as the threshold."""
    part, table = split.test, split.table
    assert table.labels is not None
    y, s = table.labels[part.entries], by_entry[part.entries]
    out: dict[str, dict[str, float]] = {}
    everybody = np.full(y.size, "all")
    rules: list[tuple[str, Any]] = [
        ("", everybody),
        ("age ", _AGE.assign(table.values("age")[part.entries])),
        ("sex ", table.values("sex")[part.entries]),
        ("view ", table.values("view")[part.entries]),
    ]
    for prefix, member in rules:
        for group in fairness(y, s, part.index.of_entry, member, unit="entry", replicates=2).groups:
            if group.suppressed:
                continue
            figures = {key: e.value for key, e in {**group.metrics, **group.differences}.items()}
            out[prefix + group.name] = {**figures, "people": float(group.contributors)}
    return out


def _put(found: dict[str, list[float]], what: str, value: float) -> None:
    found.setdefault(what, []).append(value)


STUDY = GalleryStudy(
    name="fair-xray",
    title="Private and fair: groups of chest X-ray patients",
    paper='Tayebi Arasteh et al., "Preserving fairness and diagnostic accuracy in private large-scale AI models '
    'for medical imaging", Communications Medicine 4:46, 2024',
    claim="Private training lowers accuracy and largely does not amplify discrimination by age or sex; difficult and "
    "small groups tend to lose more.",
    criterion="For no group of age, sex or view does the difference of accuracy to everybody else grow by more than "
    f"{_GROWTH:g} from non-private to private training, beyond the 95% interval over splits. Correlations with group "
    "size and difficulty are reported.",
    data="the table of NIH ChestX-ray14 (no images): 112,120 X-rays of 30,805 people; any finding, from age, sex, view "
    "and follow-up number; epsilon 1 and 8, delta 1e-6 per person",
    run=_run,
    own_data="Data_Entry_2017_v2020.csv of NIH ChestX-ray14, or the same columns as Parquet",
    needs_data=True,
    minutes=8.0,
)
