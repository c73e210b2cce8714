"""`evaluate_model`: internal figures of a release on people who took no part, in the report and nowhere else."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from clinic import Clinic

from confide.accounting import Gaussian
from confide.cli import main
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies import evaluate_model, load_study, measure, run_study
from confide.studies.people import only
from confide.studies.prepare import holdout_key, prepare

GROUPS = 'subgroups = {sex = "sex", pressure = {column = "pressure", cuts = [130]}}\nvalidation = 0.3\n'


def with_groups(clinic: Clinic, more: str = GROUPS) -> None:
    text = clinic.study.read_text().replace("holdout = 0.25\n", "holdout = 0.6\n" + more)
    clinic.study.write_text(text)


def test_groups_multiplicity_and_budgets_reach_the_internal_report_and_nothing_leaves(clinic: Clinic) -> None:
    with_groups(clinic)
    outcome = clinic.run()
    folder = outcome.release.path
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    spent = clinic.spent()
    found = evaluate_model(folder, members=3, budgets=(1.0,))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert clinic.spent() == spent
    f = found.figures
    assert f.multiplicity is not None
    assert f.multiplicity.models == 4
    assert 1 <= f.multiplicity.admitted <= 4
    assert len(f.multiplicity.conflict) == f.multiplicity.admitted
    # from a bare majority to all: fewer answers, at the end those of the unanimous ensemble
    votes = f.multiplicity.votes
    assert len(votes) == f.multiplicity.admitted - f.multiplicity.admitted // 2
    # equal also where nobody gets an answer, whose accuracy is no number
    np.testing.assert_equal(votes[-1], (f.multiplicity.coverage, f.multiplicity.accuracy))
    assert [c for c, _ in votes] == sorted((c for c, _ in votes), reverse=True)
    assert [m.model for m in f.budgets] == ["epsilon 1", "non-private"]
    assert {g.attribute for g in f.groups} == {"sex", "pressure"}
    shown = {(g.attribute, g.group) for g in f.groups}
    assert {("pressure", "below 130"), ("pressure", "130 and above")} <= shown
    assert any("validation rows" in note for note in f.group_notes)
    page = found.report.read_text()
    assert page.count("What depends on chance") >= 1
    assert "Groups of people" in page
    assert "must not leave" in page
    again = json.loads(found.data.read_text())
    assert again["multiplicity"]["models"] == 4
    # run a second time, figures are replaced and not piled up
    second = evaluate_model(folder).figures
    assert len(second.metrics) == len(f.metrics)


def test_a_small_group_is_suppressed_with_its_reason(clinic: Clinic) -> None:
    with_groups(clinic, 'subgroups = {pressure = {column = "pressure", cuts = [219]}}\n')
    found = evaluate_model(clinic.run().release.path).figures
    (row, *_) = [g for g in found.groups if g.group == "219 and above"]
    assert row.suppressed == "fewer than 10 people"
    assert row.value is None
    assert any("219 and above" in note for note in found.group_notes)


def test_an_unknown_column_is_found_in_the_study_file(clinic: Clinic) -> None:
    with_groups(clinic, 'subgroups = {sex = "sx"}\n')
    with pytest.raises(InputError, match="did you mean 'sex'"):
        load_study(clinic.study)


def test_without_an_internal_folder_nothing_can_be_measured(clinic: Clinic) -> None:
    outcome = clinic.run()
    outcome.release.internal.rename(clinic.home / "elsewhere")
    with pytest.raises(InputError, match="no internal folder"):
        evaluate_model(outcome.release.path)


def test_command_line(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    with_groups(clinic)
    folder = clinic.run().release.path
    assert main(["evaluate", str(folder), "--members", "1"]) == 0
    shown = capsys.readouterr().out
    assert "internal report" in shown
    assert "2 models cannot be told apart" in shown
    assert main(["evaluate", str(folder), "--budgets", "much"]) == 2


_VOLUMES = """
version = 1
name = "volumes"
[[data]]
source = "volumes.npz"
contributor = "patient"
images = {array = "scans", size = [10, 9, 8]}
[columns.finding]
role = "label"
classes = [0, 1]
positive = [1]
[public]
max_entries = 2
max_contributors = 60
[privacy]
epsilon = 8.0
delta = 1e-3
strategy = "contributor"
noise_multiplier = 1.0
steps = 2
[model]
name = "slices"
[model.options]
features = 8
heads = 2
backbone_options = {widths = [4], groups = 2}
[optimizer]
name = "sgd"
lr = 0.1
[evaluation]
holdout = 0.4
[ledger]
url = "sqlite:///ledger.sqlite"
"""


def test_slice_weights_of_both_models_are_drawn_over_the_volume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "volumes.npz",
        scans=rng.integers(0, 256, (60, 8, 9, 10), dtype=np.uint8),
        finding=np.arange(60) % 2,
        patient=np.array([f"p{i // 2}" for i in range(60)]),
    )
    (tmp_path / "study.toml").write_text(_VOLUMES)
    Ledger.create(f"sqlite:///{tmp_path}/ledger.sqlite", cap_epsilon=30.0, cap_delta=0.1).close()
    release = run_study(tmp_path / "study.toml", device="cpu").release
    found = evaluate_model(release.path, device="cpu")
    curves = found.figures.slices
    assert {c.y_label: len(c.x) for c in curves} == {"depth": 8, "height": 9, "width": 10}
    for label in ("this release, with the finding", "this release, without", "non-private, without"):
        mine = [c for c in curves if c.label == label]
        assert len(mine) == 3
        assert sum(v for c in mine for v in c.y if v is not None) == pytest.approx(27, rel=1e-4)  # 1 is the mean
    assert found.report.read_text().count("Slices along the") >= 3
    assert "Which slices mattered" not in (release.path / "report.html").read_text()


def test_held_out_people_of_one_class_are_said_and_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _VOLUMES.replace('images = {array = "scans", size = [10, 9, 8]}\n', "").replace("volumes.npz", "t.csv")
    text = text.replace("[columns.finding]", '[columns.x]\ntype = "real"\nbounds = [0, 1]\n[columns.finding]')
    text = text.split("[model]")[0] + '[model]\nname = "logistic"\n[optimizer]' + text.split("[optimizer]")[1]
    lines = ["patient,x,finding", *(f"p{i},{(i * 37 % 60) / 60},0" for i in range(60))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "study.toml").write_text(text)
    Ledger.create(f"sqlite:///{tmp_path}/ledger.sqlite", cap_epsilon=30.0, cap_delta=0.1).close()
    folder = run_study(tmp_path / "study.toml", device="cpu").release.path
    assert main(["evaluate", str(folder), "--members", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "of one class: AUROC is undefined" in said
    assert "3 of 3 models are kept, with nothing to compare them by" in said
    found = evaluate_model(folder, members=1).figures.multiplicity
    assert found is not None and not found.compared


def test_other_findings_are_counted_into_groups(tmp_path: Path) -> None:
    """Co-morbidity from declared columns of two categories; the predicted finding has no say."""
    lines = ["patient,diabetes,copd,finding"]
    lines += [f"p{i},{i % 2},{'' if i % 20 == 0 else 'ny'[i % 3 == 0]},{i % 4 // 2}" for i in range(120)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    columns = """[columns.diabetes]
type = "categorical"
categories = [0, 1]
[columns.copd]
type = "categorical"
categories = ["n", "y"]
missing = "indicator"
[columns.finding]"""
    text = _VOLUMES.replace('images = {array = "scans", size = [10, 9, 8]}\n', "").replace("volumes.npz", "t.csv")
    text = text.replace("[columns.finding]", columns).replace("max_contributors = 60", "max_contributors = 150")
    text = text.split("[model]")[0] + '[model]\nname = "logistic"\n[optimizer]' + text.split("[optimizer]")[1]
    groups = 'holdout = 0.9\nsubgroups = {sugar = "diabetes", illnesses = {count = ["diabetes", "copd"]}}'
    study = tmp_path / "study.toml"
    study.write_text(text.replace("holdout = 0.4", groups))
    Ledger.create(f"sqlite:///{tmp_path}/ledger.sqlite", cap_epsilon=30.0, cap_delta=0.1).close()
    found = evaluate_model(run_study(study, device="cpu").release.path, device="cpu").figures
    people = {g.group: g.contributors for g in found.groups if g.attribute == "illnesses"}
    assert sum("all groups together" in note and "r = " in note for note in found.group_notes) == 2
    assert list(people) == ["no other finding", "1 other finding", "2 or more other findings", "not known"]
    assert people["no other finding"] > people["2 or more other findings"] > 5 and people["not known"] <= 6
    for wrong, words in (
        ('count = ["diabetes", "cop"]', "did you mean 'copd'"),
        ('count = ["diabetes", "finding"]', "two categories"),
        ('count = ["copd"], column = "copd"', "a column, with or without cuts, or from a count"),
    ):
        study.write_text(text.replace("holdout = 0.4", groups.replace('count = ["diabetes", "copd"]', wrong)))
        with pytest.raises(InputError, match=words):
            load_study(study)


def test_several_classes_are_measured_by_their_most_likely_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["patient,x,sex,finding"]
    for i in range(150):
        lines += [f"p{i},{np.clip(rng.normal(i % 3, 0.4), -2, 4):.2f},{'fm'[i // 3 % 2]},{'abc'[i % 3]}"] * 2
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    columns = """[columns.x]
type = "real"
bounds = [-2, 4]
[columns.sex]
role = "attribute"
type = "categorical"
categories = ["f", "m"]
[columns.finding]"""
    text = _VOLUMES.replace('images = {array = "scans", size = [10, 9, 8]}\n', "").replace("volumes.npz", "t.csv")
    text = text.replace("[columns.finding]", columns).replace("max_contributors = 60", "max_contributors = 150")
    text = text.replace("classes = [0, 1]\npositive = [1]", 'classes = ["a", "b", "c"]').replace(
        "steps = 2", "steps = 30"
    )
    text = text.split("[model]")[0] + '[model]\nname = "mlp"\n[optimizer]' + text.split("[optimizer]")[1]
    text = text.replace("lr = 0.1", "lr = 1.0").replace("holdout = 0.4", 'holdout = 0.6\nsubgroups = {sex = "sex"}')
    (tmp_path / "study.toml").write_text(text)
    Ledger.create(f"sqlite:///{tmp_path}/ledger.sqlite", cap_epsilon=30.0, cap_delta=0.1).close()
    release = run_study(tmp_path / "study.toml", device="cpu").release
    found = evaluate_model(release.path, members=2, budgets=(2.0, 8.0), device="cpu").figures
    assert {g.metric for g in found.groups} == {"accuracy", "accuracy_difference"}
    assert [m.metric for m in found.budgets] == ["accuracy"] * 3
    assert any("most likely one is the answer" in note for note in found.group_notes)
    private = next(c for c in found.selective if c.label == "this release")
    accuracy = private.y[-1]
    by_sex = [g for g in found.groups if g.model == "this release" and g.metric == "accuracy"]
    assert accuracy is not None and min(g.value or 0 for g in by_sex) <= accuracy <= max(g.value or 0 for g in by_sex)
    assert found.multiplicity is not None and found.multiplicity.models == 3 and found.multiplicity.compared
    each = pl.read_csv(release.internal / "arbitrariness.csv")
    assert set(each["class_number"]) <= {0, 1, 2} and each["votes"].max() <= found.multiplicity.admitted
    known = {(m.model, m.metric) for m in found.metrics}
    assert ("this release", "ECE per entry (15 bins)") in known


def test_whom_the_ledger_left_out_is_trained_on_by_no_comparison(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, set[str]] = {}

    def spied(make: Any) -> Any:
        def spy(study: Any, prepared: Any, *rest: Any, **more: Any) -> Any:
            people = set(prepared.train_index.ids.tolist())
            index = prepared.table.index
            assert len(prepared.train) == prepared.train_index.n_entries
            assert set(index.ids[index.of_entry[prepared.train]].tolist()) == people
            used[more.get("what", "non-private")] = people
            return make(study, prepared, *rest, **more)

        return spy

    for name in ("fit_plainly", "fit_with"):
        spy = spied(getattr(measure, name))
        monkeypatch.setattr(measure, name, spy)
        monkeypatch.setattr(import_module("confide.studies.evaluate_model"), name, spy)
    baselines = 'holdout = 0.25\nbaselines = ["non-private", "uniform"]'
    clinic.study.write_text(clinic.study.read_text().replace("holdout = 0.25", baselines))
    price = [Gaussian(noise_multiplier=0.25).guarantee()]  # all but the whole of a lifetime's balance
    poor, gone = ["p000", "p001", "p002"], ["p003", "p004"]
    with Ledger.open(clinic.url) as ledger:
        kept = ledger.reserve(
            release="x", contributors=poor, class_of=np.zeros(3, dtype=int), classes=price, data_set="x"
        )
        assert kept.admitted.all()
        ledger.withdraw(gone)
    release = clinic.run().release
    everybody = {f"p{i:03d}" for i in range(60)}
    assert set(used) == {"non-private", "baseline: uniform"}
    for people in used.values():
        assert len(people) > 20 and not people & {*poor, *gone}
    took_part = used["non-private"]
    later, erased = sorted(took_part)[3], sorted(took_part)[8]
    with Ledger.open(clinic.url) as ledger:
        ledger.withdraw([later])
        ledger.erase([erased])
        ledger.set_consent(gone, "default")  # consent given after the training admits nobody to it
        said = ledger.admitted(release.certificate.ledger.reservation, [*sorted(everybody), "nobody known"])
    assert {one for one, yes in zip(sorted(everybody), said, strict=False) if yes} == took_part - {later, erased}
    assert not said[-1]
    used.clear()
    found = evaluate_model(release.path, members=1, budgets=(1.0,), device="cpu").figures
    assert set(used) == {"non-private", "model 1 of 1 with other noise", "a model for epsilon 1"}
    assert all(people == took_part - {later, erased} for people in used.values())
    (note,) = [one for one in found.group_notes if "without" in one and "training side" in one]
    assert f"without {2 + len({*poor, *gone} & training_side(clinic))} of {len(training_side(clinic))} people" in note

    Ledger.create(tmp_path / "other.sqlite", cap_epsilon=1.0, cap_delta=1e-3).close()
    used.clear()
    with pytest.raises(InputError, match="not the ledger of the release"):
        evaluate_model(release.path, ledger_url=f"sqlite:///{tmp_path}/other.sqlite")
    (tmp_path / "ledger.sqlite").rename(tmp_path / "away.sqlite")
    assert main(["evaluate", str(release.path), "--members", "0"]) == 2
    assert not used, "without the ledger somebody was trained on"
    with pytest.raises(InputError, match="nobody who took part"):
        only(prepared_of(clinic), np.zeros(len(training_side(clinic)), dtype=bool))


def prepared_of(clinic: Clinic) -> Any:
    study = load_study(clinic.study)
    return prepare(study, base=clinic.home, holdout_key=holdout_key(study, None))


def training_side(clinic: Clinic) -> set[str]:
    """Everybody who was not held out."""
    return set(prepared_of(clinic).train_index.ids.tolist())
