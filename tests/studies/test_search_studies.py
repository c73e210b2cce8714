"""A study with a private search: only the winner leaves, nothing about the data steers it, a crash changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clinic import Clinic
from safetensors.numpy import load_file
from test_kill import Stop, crash_at

from confide.errors import InputError, RunError
from confide.ledger import Ledger
from confide.mechanisms import SeededNoise
from confide.release import Release, verify
from confide.studies import load, load_study
from confide.studies import search as searching
from confide.studies import state as states

SEARCH = """
[search]
law = "negative-binomial"
mean_runs = 3
shape = 1
score_noise_multiplier = 10
[[search.candidates]]
optimizer.lr = 0.1
[[search.candidates]]
optimizer.lr = 0.9
privacy.clip_norm = 0.5
[[search.candidates]]
model.name = "mlp"
model.options = {hidden = [4]}
"""


def with_search(clinic: Clinic, search: str = SEARCH, **texts: str) -> None:
    clinic.write(texts={"[evaluation]": search + "\n[evaluation]", "noise_multiplier = 1.5": "noise_multiplier = 4.0"})
    text = clinic.study.read_text()
    for old, new in texts.items():
        assert old in text
        text = text.replace(old, new)
    clinic.study.write_text(text)


def rows_of(clinic: Clinic) -> list[str]:
    return (clinic.home / "visits.csv").read_text().splitlines()


@pytest.fixture
def three_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of candidates 1, 2 and 3, instead of a random number."""
    monkeypatch.setattr(searching, "draw_runs", lambda noise, **_: [0, 1, 2])


def test_from_study_to_verified_release(clinic: Clinic, three_runs: None) -> None:
    with_search(clinic)
    release = clinic.run().release
    found = release.certificate
    (selection,) = (p.mechanism for p in found.worst.parts)
    assert selection["mechanism"] == "private-selection"
    assert found.worst.epsilon <= 3.0
    assert found.plan["search"]["mean_runs"] == 3
    assert verify(release.path, second_opinions=0).ok
    winner = json.loads(release.file("winner.json").read_text())
    assert winner["candidate"] in (1, 2, 3)
    loaded = load(release.path)
    assert loaded.predict(clinic.home / "visits.csv").height == len(rows_of(clinic)) - 1
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed"]
    # what must not leave: how many runs, scores, losers
    assert sorted(p.name for p in release.path.iterdir()) == sorted(
        ["certificate.json", "model.safetensors", "report.html", "study.toml", "winner.json"]
    )
    text = "".join(p.read_text(errors="replace") for p in release.path.iterdir() if p.suffix != ".safetensors")
    assert '"picks"' not in text
    assert '"best"' not in text
    assert not list((clinic.home / "internal").glob("*.run"))


@pytest.mark.slow
def test_no_run_at_all_gives_the_untrained_first_candidate(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    with_search(clinic, SEARCH.replace('"negative-binomial"', '"poisson"').replace("shape = 1\n", ""))
    monkeypatch.setattr(searching, "draw_runs", lambda noise, **_: [])
    release = clinic.run().release
    assert json.loads(release.file("winner.json").read_text())["candidate"] is None
    assert all(not value.any() for value in load_file(release.file("model.safetensors")).values())  # logistic: zeros
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed"]  # it was paid for all the same


class Draws:
    """Records every draw and every run instead of making them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[list[int]] = []
        real = searching.draw_runs

        def draw(noise: object, **terms: object) -> list[int]:
            self.drawn.append(real(SeededNoise(5), **terms))  # type: ignore[arg-type]
            return self.drawn[-1]

        monkeypatch.setattr(searching, "draw_runs", draw)


def trace(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """The runs a search makes, in order: optimiser, learning rate, clipping norm."""
    from confide.studies.run import _Run

    seen: list[tuple[str, float, float]] = []
    real = _Run._train

    def train(self: _Run, plan, study, admitted, *, resume: bool, run: int | None = None):  # type: ignore[no-untyped-def]
        seen.append((study.model.name, study.optimizer.lr, study.privacy.clip_norm))
        return real(self, plan, study, admitted, resume=resume, run=run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_train", train)
        clinic.run()
    return seen


def test_runs_and_candidates_are_the_same_without_one_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Draws(monkeypatch)
    seen = []
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
        clinic = Clinic(tmp_path / name)
        with_search(clinic)
        if name == "without":
            rows = rows_of(clinic)
            (clinic.home / "visits.csv").write_text("\n".join(r for r in rows if not r.startswith("p003,")) + "\n")
        seen.append(trace(clinic, monkeypatch))
    assert seen[0] == seen[1]
    assert len(seen[0]) >= 1


def test_one_person_moves_a_score_by_at_most_the_claimed_sensitivity() -> None:
    class Silent(SeededNoise):
        def add_normal(self, values, *, scale):  # type: ignore[no-untyped-def]
            return np.asarray(values, dtype=np.float64)

    rng = np.random.default_rng(2)
    owners = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    admitted = np.ones(30, dtype=bool)
    for classes in (1, 3):
        labels = rng.integers(0, max(classes, 2), len(owners))
        for score in ("brier", "accuracy"):
            for adversarial in (False, True):
                p = rng.random(len(owners)) if classes == 1 else rng.dirichlet(np.ones(classes), len(owners))
                if adversarial:
                    p = np.where(rng.random(p.shape) < 0.3, np.nan, p * 1e9)
                full = searching.noisy_score(
                    p, labels, owners, admitted, score=score, noise_multiplier=5.0, noise=Silent(1)
                )
                for person in range(30):
                    less = admitted & (np.arange(30) != person)
                    other = searching.noisy_score(
                        p, labels, owners, less, score=score, noise_multiplier=5.0, noise=Silent(1)
                    )
                    assert abs(full - other) <= searching.SENSITIVITY + 1e-9


def test_the_noise_of_a_score_has_the_stated_size() -> None:
    values = [
        searching.noisy_score(
            np.full(4, 0.5),
            np.zeros(4, dtype=np.int64),
            np.arange(4),
            np.ones(4, dtype=bool),
            score="accuracy",
            noise_multiplier=6.0,
            noise=SeededNoise(i),
        )
        for i in range(2000)
    ]
    assert np.std(values) == pytest.approx(6.0 * searching.SENSITIVITY, rel=0.08)


@pytest.mark.parametrize("crash", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_crash_in_any_run_draws_nothing_again_and_ends_at_the_same_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int
) -> None:
    draws: list[int] = []

    def draw(noise: object, **_: object) -> list[int]:
        draws.append(1)
        return [1, 0, 2]

    monkeypatch.setattr(searching, "draw_runs", draw)
    ends = []
    for name in ("broken", "whole"):
        (tmp_path / name).mkdir()
        clinic = Clinic(tmp_path / name)
        with_search(clinic, **{"steps = 30": "steps = 12\nseed = 4"})
        # the key of the scores' noise is random; here it is fixed, so that the two runs can be compared
        monkeypatch.setattr("confide.studies.run.secrets.token_hex", lambda n: "ab" * n)
        if name == "broken":

            class Crashing(type(crash_at(0))):  # type: ignore[misc]
                runs = 0

                def begin(self, what: str, total: int) -> None:
                    type(self).runs += 1

                def step(self, done: int, *, note: str = "") -> None:
                    if type(self).runs == crash and done == 7:
                        raise Stop

            with pytest.raises(Stop):
                clinic.run(watcher=Crashing())
            assert not (clinic.home / "releases").exists() or not list((clinic.home / "releases").glob("clinic-*"))
            release = clinic.run(resume=True).release
        else:
            release = clinic.run().release
        ends.append((release.file("winner.json").read_text(), release.file("model.safetensors").read_bytes()))
        with Ledger.open(clinic.url) as ledger:
            assert len(ledger.reservations()) == 1
    assert len(draws) == 2  # once for each study, never for the resumed run
    assert ends[0] == ends[1]


def test_a_lost_checkpoint_is_not_run_again(clinic: Clinic, three_runs: None) -> None:
    with_search(clinic)
    with pytest.raises(Stop):
        clinic.run(watcher=crash_at(12))
    (checkpoint,) = (clinic.home / "internal").glob("*.run/checkpoint-*.pt")
    checkpoint.unlink()
    with pytest.raises(RunError, match="checkpoint of this run is gone"):
        clinic.run(resume=True)


def test_the_private_state_has_the_runs_and_only_its_owner_reads_it(clinic: Clinic, three_runs: None) -> None:
    with_search(clinic)
    with pytest.raises(Stop):
        clinic.run(watcher=crash_at(12))
    state = states.pick(clinic.home / "internal", "clinic")
    assert state.extra["search"]["picks"] == [0, 1, 2]
    (folder,) = (clinic.home / "internal").glob("*.run")
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('law = "negative-binomial"', 'law = "negative-binomal"', "did you mean 'negative-binomial'"),
        ("mean_runs = 3", "mean_runs = 0.5", "above 1"),
        ("mean_runs = 3\n", "", "mean_runs, or success"),
        ("optimizer.lr = 0.9", "optimizer.lrr = 0.9", "did you mean 'lr'"),
        ("privacy.clip_norm = 0.5", "privacy.noise_multiplier = 2.0", "unknown key 'noise_multiplier'"),
        ('model.name = "mlp"', 'model.name = "mpl"', "did you mean 'mlp'"),
        ("optimizer.lr = 0.1\n", 'optimizer.lr = "0.1"\n', "without quotes"),
    ],
)
def test_wrong_searches_are_refused_in_the_file(clinic: Clinic, old: str, new: str, complaint: str) -> None:
    with_search(clinic, **{old: new})
    with pytest.raises(InputError) as refused:
        load_study(clinic.study)
    assert complaint in str(refused.value)
    assert "line" in str(refused.value)


def test_report_and_risk_of_a_searched_release(clinic: Clinic, three_runs: None) -> None:
    from confide.report import release_report
    from confide.risk import profile

    with_search(clinic, **{"steps = 30": "steps = 5"})
    release = Release.load(clinic.run().release.path)
    page = release_report(release.certificate, release.file("study.toml").read_text())
    assert "hyper-parameter search" in page
    from confide.release.rebuild import guarantee_of

    one = profile(guarantee_of(release.certificate.worst), name="worst class", delta=1e-4)
    assert one.advantage <= 1


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('strategy = "individual"', 'strategy = "indivdual"', "did you mean 'individual'"),
        ('name = "sgd"', 'name = "sdg"', "did you mean 'sgd'"),
        ("epsilon = 3.0", 'epsilon = "3.0"', "without quotes: epsilon = 3.0"),
        ("steps = 30", "steps = true", "a number is needed"),
        ("[evaluation]", '[ledger]\nurl = "sqllite:///x.db"\n[evaluation]', "no address of a ledger"),
        ("[optimizer]", '[model]\nname = "logstic"\n[optimizer]', "did you mean 'logistic'"),
    ],
)
def test_wrong_names_and_numbers_in_quotes_are_found_in_the_file(
    clinic: Clinic, old: str, new: str, complaint: str
) -> None:
    clinic.write(texts={old: new})
    with pytest.raises(InputError) as refused:
        load_study(clinic.study)
    assert complaint in str(refused.value)
    assert "line" in str(refused.value)


def test_names_known_without_torch_are_those_that_torch_rooms_have() -> None:
    from confide.nn import registry
    from confide.studies.file import OPTIMIZERS, model_names
    from confide.training import optimizers

    built_in = {name for name in registry.names() if "for a test" not in name}  # other tests add their own
    assert set(model_names()) == built_in
    assert set(OPTIMIZERS) == set(optimizers._OPTIMIZERS)


def test_the_certificate_of_a_search_does_not_tell_when_it_ended(clinic: Clinic, three_runs: None) -> None:
    with_search(clinic)
    release = clinic.run().release
    assert release.certificate.created.replace("-", "").replace(":", "") == release.path.name.split("-")[-2]


def test_a_price_of_its_own_in_every_run_does_not_go_with_a_search(clinic: Clinic) -> None:
    with_search(clinic)
    clinic.study.write_text(clinic.study.read_text() + '\n[training]\nneuraldp = "one-shot"\n')
    with pytest.raises(InputError, match="does not go with"):
        load_study(clinic.study)
