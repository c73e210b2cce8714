"""Methods chosen in a study file by one line: the release holds, verifies, loads and predicts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import polars as pl
import pytest
from clinic import Clinic

import confide
from confide.cli import main
from confide.errors import InputError
from confide.ledger import Ledger
from confide.release import verify
from confide.studies import evaluate_model
from confide.studies.file import parse_study
from confide.studies.training_section import methods_of
from confide.training import de_2022


def write(clinic: Clinic, privacy: str = "", training: str = "") -> None:
    clinic.write(texts={"steps = 30": f"steps = 30\n{privacy}\n\n[training]\n{training}"})


CHOICES = {
    "automatic": ("", 'clipping = "automatic"'),
    "normalised": ("", 'clipping = "normalised"\naveraging = 0.9'),
    "bias-aware": ("", 'sharpness = "bias-aware"'),
    "previous": ("", 'sharpness = {rule = "previous", radius = 0.1}'),
    "quantile": ("clip_quantile = 0.5", ""),
    "banded": ('correlation = "banded(5)"', ""),
    "banded and quantile": ('correlation = "banded(5)"\nclip_quantile = {quantile = 0.7, share = 0.05}', ""),
    "snapshots": ("", "snapshots = 4"),
    "ensemble": ("", "ensemble = 3"),
    "temperature": ("", "temperature = {epsilon = 0.5, share = 0.3}"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_method_is_one_line_and_its_release_verifies_and_predicts(clinic: Clinic, name: str) -> None:
    privacy, training = CHOICES[name]
    write(clinic, privacy, training)
    release = clinic.run().release
    with Ledger.open(clinic.url) as ledger:
        assert verify(release.path, ledger=ledger, second_opinions=1).ok
    loaded = confide.load(release.path)
    found = loaded.predict(pl.DataFrame({"pressure": [100.0, 180.0], "sex": ["f", "m"]}))["probability"].to_numpy()
    assert ((found > 0) & (found < 1)).all()
    plan = release.certificate.plan
    assert ("clipping" in plan) == ("quantile" in name) and ("correlation" in plan) == ("banded" in name)
    if "banded" in name:
        assert all(part.steps == 6 for one in release.certificate.classes for part in one.parts)
    if training:
        chosen = {fact.what: fact.value for fact in release.certificate.assumed_public}["methods of training"]
        assert set(chosen) <= {"clipping", "averaging", "sharpness", "snapshots", "ensemble", "temperature"}


def test_a_plain_study_has_neither_keys_nor_facts_of_methods(clinic: Clinic) -> None:
    release = clinic.run().release
    assert not {"clipping", "correlation"} & set(release.certificate.plan)
    assert all(fact.what != "methods of training" for fact in release.certificate.assumed_public)


def test_a_temperature_is_charged_to_people_who_do_not_train(clinic: Clinic) -> None:
    write(clinic, "", "temperature = {epsilon = 0.5, share = 0.3}")
    release = clinic.run().release
    (metric,) = release.certificate.evaluation
    assert metric.metric == "temperature of the logits" and metric.who == "validation contributors"
    assert 0.4 < metric.epsilon <= 0.5 * (1 + 1e-9) and metric.parts[0].mechanism["mechanism"] == "laplace"
    assert metric.value == pytest.approx(float(confide.load(release.path).model.temperature), rel=1e-6)
    with Ledger.open(clinic.url) as ledger:
        rows = ledger.reservations()
    assert len(rows) == 2 and all(row.state == "committed" for row in rows)


@pytest.mark.parametrize(
    ("privacy", "training", "words"),
    [
        ('correlation = "banned(5)"', "", "did you mean banded"),
        ('correlation = "banded(31)"', "", "from 1 to 30"),
        ('correlation = "banded(5)"\nnoise = "secure"', "", "floating point"),
        ("clip_quantile = 0.5", 'clipping = "automatic"', "one of the two"),
        ("", "augmentation = 4", "need images"),
        ("", "averaging = 1.5", "less than 1"),
        ("", 'clipping = "automatik"', "clipping"),
        ("", 'recipe = "de-2022"\naugmentation = {views = 2, transform = "nowhere:change"}', "cannot import"),
        ("", "augmentaton = 4", "did you mean 'augmentation'"),
        ("", "ensemble = 1", "2"),
        ("", "ensemble = 31", "at least one step"),
        ("", "ensemble = 3\nsnapshots = 3", "one of the two"),
        ("clip_quantile = 1.5", "", "between 0 and 1|less than 1|below 1"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_spent(
    clinic: Clinic, privacy: str, training: str, words: str
) -> None:
    write(clinic, privacy, training)
    with pytest.raises(InputError, match=words):
        clinic.run()
    assert clinic.spent() == 0


def test_langevin_steps_take_the_public_number_of_records(clinic: Clinic) -> None:
    clinic.write(texts={'name = "sgd"\nlr = 0.5': 'name = "sgld"\nlr = 0.001\n[optimizer.options]\ntemperature = 1.0'})
    with pytest.raises(InputError, match="public number of records"):
        clinic.run()
    text = clinic.study.read_text().replace('strategy = "individual"', 'strategy = "contributor"')
    clinic.study.write_text(text)
    assert "sgld" in str(clinic.run().release.certificate.assumed_public)
    clinic.study.write_text(text.replace("lr = 0.001", "lr = 50"))
    before = clinic.spent()
    with pytest.raises(InputError, match="learning rate of at most"):
        clinic.run()
    assert clinic.spent() == before


def test_an_ensemble_leaves_for_the_price_of_one_run_and_defers_where_members_disagree(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = clinic.run().release.certificate
    write(clinic, "", "ensemble = {members = 5, agree = 1.0}")
    text = clinic.study.read_text().replace("holdout = 0.25", 'holdout = 0.5\nsubgroups = {sex = "sex"}')
    clinic.study.write_text(text)
    release = clinic.run().release
    assert [c.epsilon for c in release.certificate.classes] == [c.epsilon for c in plain.classes]
    frame = pl.DataFrame({"pressure": [60.0 + 8 * i for i in range(20)], "sex": ["f", "m"] * 10})
    found = confide.load(release.path).predict(frame)
    assert found.columns == ["probability", "answer", "votes"]
    for answer, votes in found.select("answer", "votes").iter_rows():
        assert 3 <= votes <= 5 and (answer in ("yes", "no")) == (votes == 5) and (answer == "deferred") == (votes < 5)
    figures = evaluate_model(release.path, members=2).figures
    shown = figures.multiplicity
    assert shown is not None and shown.released and shown.models == shown.admitted == 5
    assert "for all of them together" in shown.price and "own members" in " ".join(figures.group_notes)
    assert set(shown.coverage_by_group) == {"sex: f", "sex: m"}
    each = pl.read_csv(release.internal / "arbitrariness.csv")
    assert each["contributor"].is_unique().all() and ((each["votes_yes"] >= 0) & (each["votes_yes"] <= 5)).all()
    unanimous = each["votes_yes"].is_in([0, 5])
    assert (each["self_consistency"] == 1).to_list() == unanimous.to_list()
    assert shown.coverage == pytest.approx(unanimous.mean())
    # judged by the answers that `predict` gives, whatever threshold is chosen on private data for the rest
    module = importlib.import_module("confide.studies.evaluate_model")
    monkeypatch.setattr(module, "_threshold", lambda *_: (0.99, "chosen"))
    evaluate_model(release.path)
    file = release.internal / "arbitrariness.csv"
    assert pl.read_csv(file).equals(each) and file.stat().st_mode & 0o077 == 0


def test_models_of_other_noise_are_trained_as_the_release_was(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by plain steps: a learning rate that suits normalised gradients is another one without them."""
    from confide import training

    write(clinic, "", 'clipping = "normalised"\nsnapshots = 3')
    release = clinic.run().release
    seen = []
    real = training.PrivateRun

    def spy(*args, methods=None, **settings):
        seen.append(methods)
        return real(*args, methods=methods, **settings)

    monkeypatch.setattr(training, "PrivateRun", spy)
    evaluate_model(release.path, members=1, budgets=(1.0,))
    assert len(seen) == 2 and all(m.clipping.normalise and m.snapshots.keep == 3 for m in seen)


def test_a_recipe_is_its_parts_and_parts_override_it() -> None:
    from clinic import STUDY

    study = parse_study(STUDY + '\n[training]\nrecipe = "de-2022"\naugmentation = 8\n')
    assert study.training.views.views == 8 and study.training.averaged.decay == 0.999
    assert study.training.clip.normalise and study.training.clip.rule == "flat"
    assert methods_of(study, Path(".")) == de_2022(views=8)
    assert methods_of(parse_study(STUDY + '\n[training]\nrecipe = "de-2022"\n'), Path(".")) == de_2022()


def test_noised_activations_leave_with_their_price_for_vector_and_label(clinic: Clinic) -> None:
    write(clinic, "", 'neuraldp = {variant = "one-shot", width = 4, label_epsilon = 1.0}')
    text = clinic.study.read_text().replace("steps = 30", "steps = 1").replace('"individual"', '"contributor"')
    clinic.study.write_text(text.replace("noise_multiplier = 1.5", "noise_multiplier = 0.5"))
    with pytest.raises(InputError, match="at least"):
        clinic.run()
    assert clinic.spent() == 0
    clinic.study.write_text(text)
    release = clinic.run().release
    worst = release.certificate.worst
    assert worst.mu is None and {p.mechanism["mechanism"] for p in worst.parts} == {
        "sampled-gaussian",
        "randomised-response",
    }
    assert release.certificate.relation == "zero-out" and worst.replace_one_epsilon > worst.epsilon > 1.0
    with Ledger.open(clinic.url) as ledger:
        assert verify(release.path, ledger=ledger, second_opinions=1).ok
    frame = pl.DataFrame({"pressure": [100.0], "sex": ["f"]})
    assert 0 < confide.load(release.path).predict(frame)["probability"][0] < 1
    clinic.study.write_text(text.replace('"one-shot"', '"trained"'))
    with pytest.raises(InputError, match="not sound"):
        clinic.run()


@pytest.mark.parametrize("line", ["clip_quantile = 0.5", 'correlation = "banded(5)"', 'correlation = "blt(5)"'])
def test_a_study_with_a_method_can_be_planned_before_it_is_trained(
    clinic: Clinic, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(clinic.study), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)["strategies"]["individual"]["classes"]
    write(clinic, line)
    assert main(["plan", str(clinic.study), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["strategies"]["individual"]["classes"]
    # the count for the quantile comes out of the same noise; correlated noise lets everybody take part more rarely
    assert ([c["rate"] for c in found] == [c["rate"] for c in plain]) == ("quantile" in line)
