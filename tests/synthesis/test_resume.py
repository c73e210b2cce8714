"""A run that is killed goes on with the answers it paid for, and pays once."""

from __future__ import annotations

import numpy as np
import pytest
from synthesis_panels import dependent_panel, random_panel

from confide.errors import InputError, RunError
from confide.ledger import Ledger
from confide.mechanisms import OSNoise
from confide.release import Release
from confide.studies.synthesis_run import load_synthesis, run_synthesis
from confide.synthesis import FlatAIM, Meter, PatientUnit
from confide.synthesis.coding import read_coded
from confide.synthesis.journal import FileJournal

STUDY = """
name = "ward"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[visits]
source = "visits.csv"
contributor = "id"
time = "day"
max_visits = 12
[visits.columns.day]
type = "integer"
bounds = [0, 9]
[privacy]
epsilon = 2.0
delta = 1e-5
"""


class Killed(BaseException):
    """Stands for a power cut: nothing catches it."""


@pytest.fixture
def killed_after(monkeypatch):
    """Let a run die right after so many answers are on disk."""

    def arm(answers):
        write = FileJournal.write
        left = [answers]

        def dying(self, name, released):
            write(self, name, released)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(FileJournal, "write", dying)
        return lambda: monkeypatch.setattr(FileJournal, "write", write)

    return arm


@pytest.mark.parametrize("method", [PatientUnit(), FlatAIM(visits=2, iterations=2)], ids=lambda m: m.name)
def test_a_resumed_fit_repeats_every_answer_it_had(method, tmp_path, killed_after):
    panel = dependent_panel(np.random.default_rng(0), patients=200)
    path = tmp_path / "answers.jsonl"
    disarm = killed_after(3)
    with pytest.raises(Killed):
        method.fit(panel, Meter(epsilon=1.0, delta=1e-5, journal=FileJournal(path, text="s", panel=panel)))
    disarm()
    with path.open("ab") as file:
        file.write(b'{"name": "half an ans')
    meter = Meter(
        epsilon=1.0, delta=1e-5, noise=OSNoise(), record=True, journal=FileJournal(path, text="s", panel=panel)
    )
    model = method.fit(panel, meter)
    again = Meter(epsilon=1.0, delta=1e-5, record=True, journal=FileJournal(path, text="s", panel=panel))
    method.fit(panel, again)
    assert len(meter.looks) == len(again.looks) > 3
    for a, b in zip(meter.looks, again.looks, strict=True):
        np.testing.assert_array_equal(a.released, b.released)
    assert model.guarantee().epsilon(1e-5) <= 1.0
    assert path.stat().st_mode & 0o077 == 0


def test_a_journal_of_other_data_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    panel = random_panel(rng)
    path = tmp_path / "answers.jsonl"
    FileJournal(path, text="s", panel=panel).close()
    with pytest.raises(InputError, match="changed"):
        FileJournal(path, text="s", panel=panel.without(0))
    with pytest.raises(InputError, match="changed"):
        FileJournal(path, text="t", panel=panel)
    path.write_text("{}\n")
    with pytest.raises(RunError, match="damaged"):
        FileJournal(path, text="s", panel=panel)


def test_a_killed_study_is_resumed_under_one_charge(tmp_path, killed_after):
    rng = np.random.default_rng(0)
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "patients.csv").write_text("id,sex\n" + "".join(f"p{i},{'fm'[i % 2]}\n" for i in range(150)))
    rows = "".join(f"p{i},{d}\n" for i in range(150) for d in sorted(rng.choice(10, 3, replace=False)))
    (tmp_path / "visits.csv").write_text("id,day\n" + rows)
    url = f"sqlite:///{tmp_path}/l.sqlite"
    Ledger.create(url, cap_epsilon=2.5, cap_delta=1e-4).close()

    def run(**more):
        return run_synthesis(
            tmp_path / "study.toml", accept=lambda lines: None, ledger_url=url, output=tmp_path / "releases", **more
        )

    disarm = killed_after(2)
    with pytest.raises(Killed):
        run()
    disarm()
    spent = []
    outcome = run(resume=True, progress=lambda name, share: spent.append(share))
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(1.0, abs=1e-6)
    with Ledger.open(url) as ledger:
        assert len(ledger.reservations()) == 1
    assert Release.load(outcome.release.path).certificate.name == "ward"
    assert not list((tmp_path / "internal").glob("*.run"))
    with pytest.raises(InputError, match="no unfinished run"):
        run(resume=True)


BUDGET = 'budget = {column = "consent", levels = {basic = 1.0, full = 2.0}}\n'
CONSENT = '[patients.columns.consent]\nrole = "attribute"\n[visits]\n'


def ward(tmp_path, *, consent="full"):
    rng = np.random.default_rng(0)
    (tmp_path / "study.toml").write_text(STUDY.replace("[visits]\n", CONSENT, 1) + BUDGET)
    rows = [f"p{i:03d},{'fm'[i % 2]},{consent if i == 7 else 'basic'}\n" for i in range(150)]
    (tmp_path / "patients.csv").write_text("id,sex,consent\n" + "".join(rows))
    days = "".join(f"p{i:03d},{d}\n" for i in range(150) for d in sorted(rng.choice(10, 3, replace=False)))
    (tmp_path / "visits.csv").write_text("id,day\n" + days)


@pytest.fixture
def killed_ward(tmp_path, killed_after):
    ward(tmp_path, consent="basic")
    url = f"sqlite:///{tmp_path}/l.sqlite"
    Ledger.create(url, cap_epsilon=2.5, cap_delta=1e-4).close()

    def run(**more):
        return run_synthesis(
            tmp_path / "study.toml", accept=lambda lines: None, ledger_url=url, output=tmp_path / "releases", **more
        )

    disarm = killed_after(2)
    with pytest.raises(Killed):
        run()
    disarm()
    return run


def test_a_consent_that_rose_in_between_is_not_used_beyond_the_charge(tmp_path, killed_ward):
    ward(tmp_path, consent="full")
    with pytest.raises(InputError, match="changed"):
        killed_ward(resume=True)
    ward(tmp_path, consent="basic")
    assert killed_ward(resume=True).release.path.exists()


def test_a_lost_journal_is_not_drawn_again_under_the_same_charge(tmp_path, killed_ward):
    (folder,) = (tmp_path / "internal").glob("*.run")
    (folder / "answers-0.jsonl").unlink()
    with pytest.raises(RunError, match="journal of this run is gone"):
        killed_ward(resume=True)
    assert not (tmp_path / "releases").exists() or not list((tmp_path / "releases").iterdir())


def test_nobody_s_number_moves_when_a_person_leaves_the_tables(tmp_path):
    ward(tmp_path)
    study = load_synthesis(tmp_path / "study.toml")[0]
    whole = read_coded(study, base=tmp_path)
    for name in ("patients.csv", "visits.csv"):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(line for line in lines if not line.startswith("p000")))
    without = read_coded(study, base=tmp_path)
    assert without.panel.patients == whole.panel.patients - 1
    np.testing.assert_array_equal(without.panel.keys, whole.panel.keys[1:])
