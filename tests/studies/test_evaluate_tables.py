"""``confide evaluate`` on a small release: what it measures, what it leaves out, and that nothing of it leaves."""

from __future__ import annotations

import itertools
import json
import stat

import numpy as np
import polars as pl
import pytest

from confide.audit.tables import membership_game
from confide.cli import main
from confide.errors import InputError
from confide.evaluation import tables_utility
from confide.ledger import Ledger
from confide.mechanisms import SeededNoise
from confide.release import Release
from confide.report import table_release_report
from confide.studies.evaluate_tables import evaluate_tables
from confide.studies.synthesis_run import run_synthesis
from confide.synthesis import Column, Domain, Meter, Panel, PatientUnit

STUDY = """
name = "clinic"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[patients.columns.start]
type = "integer"
bounds = [2000, 2019]
bins = [2005, 2010, 2015]
[patients.columns.futime]
type = "integer"
bounds = [0, 4000]
bins = [500, 1000, 2000]
[patients.columns.died]
type = "categorical"
categories = [0, 1]
[visits]
source = "visits.csv"
contributor = "id"
time = "day"
max_visits = 8
[visits.columns.day]
type = "integer"
bounds = [0, 4000]
bins = [500, 1000, 2000]
[visits.columns.stage]
type = "ordinal"
categories = [0, 1, 2]
missing = "indicator"
[[rules]]
column = "stage"
never = "decreases"
[[rules]]
column = "day"
not_after = "futime"
[privacy]
epsilon = 5.0
delta = 1e-5
[sample]
tables = 2
[evaluation]
holdout = 0.3
outcome = "died"
positive = [1]
subgroups = ["sex"]
over_time = {column = "start", cut = 2016}
survival = {time = "futime", event = "died", is = [1], covariates = ["sex", "start"]}
"""


# One synthesis and one evaluation, most of a minute, stand behind these tests.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic")
    rng = np.random.default_rng(0)
    n = 900
    sex = rng.integers(0, 2, n)
    died = rng.random(n) < 0.25 + 0.4 * sex
    futime = np.clip(rng.exponential(np.where(died, 700, 2000)), 0, 4000).astype(int)
    pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)],
            "sex": [["f", "m"][s] for s in sex],
            "start": rng.integers(2000, 2020, n),
            "futime": futime,
            "died": died.astype(int),
        }
    ).write_csv(folder / "patients.csv")
    rows = []
    for i in range(n):
        stage = 0
        for day in sorted(rng.integers(0, futime[i] + 1, rng.integers(0, 7)).tolist()):
            stage = min(2, stage + int(rng.random() < 0.3))
            rows.append((f"p{i}", day, None if rng.random() < 0.1 else stage))
    pl.DataFrame(rows, schema=["id", "day", "stage"], orient="row").write_csv(folder / "visits.csv")
    (folder / "study.toml").write_text(STUDY)
    url = f"sqlite:///{folder}/l.sqlite"
    Ledger.create(url, cap_epsilon=50, cap_delta=1e-4).close()
    release = run_synthesis(folder / "study.toml", accept=lambda lines: None, ledger_url=url).release.path
    return folder, release


@pytest.fixture(autouse=True, scope="module")
def one_learner():
    """One quick learner instead of three: which of them wins is not what is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables_utility, "LEARNERS", ("logistic regression",))
        yield


@pytest.fixture(scope="module")
def evaluated(clinic):
    return evaluate_tables(clinic[1], refits=4)


def test_everything_declared_is_measured(evaluated):
    f = evaluated.figures
    assert f.left_out == []
    assert {(d.ways, d.per) for d in f.fidelity} == {(w, p) for w in (1, 2, 3) for p in ("visit", "patient")}
    assert all(d.floor is not None and d.worst >= d.mean for d in f.fidelity)
    assert {c.column for c in f.columns} == {"sex", "start", "futime", "died", "day", "stage"}
    assert [v.synthetic for v in f.violations] == [0, 0]
    assert {s.group for s in f.subgroups} == {"f", "m"}
    assert f.counts is not None and f.gaps is not None and sum(f.counts.real) == pytest.approx(1)
    assert f.survival is not None and {c.term for c in f.survival.cox} == {"sex = m", "start"}
    assert [u.tested_on[:5] for u in f.utility] == ["held-", "patie"]
    for u in f.utility:
        majority = [r.value for r in u.rows if r.learner == "any"]
        assert majority == [0.5]
        assert {r.trained_on for r in u.rows if r.learner != "any"} >= {
            "synthetic",
            "synthetic, all 2 tables",
            "real",
            "real + synthetic",
        }
    assert f.inference is not None and len(f.inference.coverage) == 4
    assert f.audit[0].epsilon_lower <= f.audit[0].claimed


def test_figures_stay_inside(clinic, evaluated):
    folder, release = clinic
    page = evaluated.paths["internal report"].read_text()
    assert evaluated.paths["figures"].parent == folder / "internal" / release.name
    assert stat.S_IMODE(evaluated.paths["figures"].stat().st_mode) == 0o600
    assert "must not leave" in page and "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.index("Worst cases first") < page.index("Every column")
    assert json.loads(evaluated.paths["figures"].read_text())["release"] == release.name
    assert not {"evaluation.json", "figures.json"} & {p.name for p in release.iterdir()}


def test_the_public_report_is_made_of_released_figures_alone(clinic):
    """Whoever holds the folder can make the page again, so no exact count or curve can be in it."""
    folder, release = clinic
    loaded = Release.load(release)
    marginals = json.loads((release / "marginals.json").read_text())
    others = {name: digest for name, digest in loaded.certificate.artefacts.items() if name != "report.html"}
    certificate = loaded.certificate.model_copy(update={"artefacts": others})
    page = table_release_report(certificate, (release / "study.toml").read_text(), marginals)
    assert page == (release / "report.html").read_text()
    real = pl.read_csv(folder / "patients.csv")["died"].mean()
    died = [t for t in marginals["tables"] if t["columns"] == ["died"] and t["level"] == "patient"]
    assert died and all(t["standard_error"] > 0 and t["noisy"][1] != pytest.approx(real, abs=1e-9) for t in died)


def test_a_release_is_evaluated_with_its_own_study_only(clinic, tmp_path):
    folder, release = clinic
    (folder / "other.toml").write_text(STUDY.replace("epsilon = 5.0", "epsilon = 4.0"))
    with pytest.raises(InputError, match="another study"):
        evaluate_tables(release, study_path=folder / "other.toml")


def test_the_command_prints_the_figures(clinic, capsys):
    folder, release = clinic
    assert main(["evaluate", str(release), "--study", str(folder / "study.toml"), "--refits", "0"]) == 0
    said = capsys.readouterr().out
    assert "2-way total variation" in said and "Membership game: needs" in said and "must not leave" in said


def test_without_patients_set_aside_it_says_what_is_missing(clinic, tmp_path):
    folder, _ = clinic
    for file in ("patients.csv", "visits.csv"):
        (tmp_path / file).write_text((folder / file).read_text())
    text = STUDY.replace("holdout = 0.3\n", "").replace('over_time = {column = "start", cut = 2016}\n', "")
    (tmp_path / "study.toml").write_text(text)
    url = f"sqlite:///{tmp_path}/l.sqlite"
    Ledger.create(url, cap_epsilon=50, cap_delta=1e-4).close()
    release = run_synthesis(tmp_path / "study.toml", accept=lambda lines: None, ledger_url=url).release.path
    found = evaluate_tables(release, refits=0).figures
    assert "cannot be made up for" in found.left_out[0]
    assert found.utility == [] and all(d.floor is None for d in found.fidelity)


def test_the_game_shows_a_mechanism_without_enough_noise():
    domain = Domain(static=(Column("a", 2), Column("b", 3)), visit=(Column("s", 3),), max_visits=5)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, 60)
    base = Panel.from_codes(
        domain,
        static=np.column_stack([rng.random(60) < 0.1, rng.integers(0, 3, 60)]).astype(int),
        visit=rng.integers(0, 3, (int(counts.sum()), 1)),
        counts=counts,
    )

    # other noise in every run of the game, the same in every run of the test: the scores of the broken mechanism lie
    # 7 standard deviations apart, so in one of 400 games one of ten falls on the wrong side of the middle
    seeds = itertools.count()

    def game(epsilon):
        return membership_game(
            lambda panel: PatientUnit(structure="none").fit(
                panel, Meter(epsilon=epsilon, delta=1e-5, noise=SeededNoise(next(seeds)))
            ),
            base,
            runs=20,
            visits=5,
            delta=1e-5,
        )

    honest, broken = game(0.5), game(60.0)  # the second pretends to spend 0.5
    assert honest.epsilon_lower <= 0.5
    assert broken.epsilon_lower > 0.5 and broken.true_positive > 0.9
