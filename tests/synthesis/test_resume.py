"""A run that is killed goes on with the answers it paid for, and pays once."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from synthesis_panels import dependent_panel, random_panel
from wards import CONSENTS, STUDY, open_books, run_ward, url_of, write_ward

from confide.cli import main
from confide.errors import InputError, RunError
from confide.ledger import Ledger
from confide.mechanisms import OSNoise
from confide.release import Release
from confide.studies import state
from confide.studies.synthesis_run import generator_of, load_synthesis
from confide.synthesis import FlatAIM, Meter, PatientUnit
from confide.synthesis.coding import read_coded
from confide.synthesis.journal import FileJournal
from confide.synthesis.study import parse_synthesis_study


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


def ward(tmp_path, *, consent):
    """Write the ward; everybody agreed to basic use, patient 7 to what is said."""
    write_ward(tmp_path, CONSENTS, more="consent", cells=",".join([*["basic"] * 7, consent, *["basic"] * 142]))


@pytest.fixture
def ready_ward(tmp_path):
    ward(tmp_path, consent="basic")
    open_books(tmp_path)
    return partial(run_ward, tmp_path)


@pytest.fixture
def killed_ward(ready_ward, killed_after):
    disarm = killed_after(2)
    with pytest.raises(Killed):
        ready_ward()
    disarm()
    return ready_ward


def test_a_killed_study_is_resumed_under_one_charge(tmp_path, killed_ward):
    spent = []
    outcome = killed_ward(resume=True, progress=lambda name, share: spent.append(share))
    assert spent == sorted(spent)
    assert spent[-1] == pytest.approx(1.0, abs=1e-6)
    with Ledger.open(url_of(tmp_path)) as ledger:
        assert len(ledger.reservations()) == 1
    assert Release.load(outcome.release.path).certificate.name == "ward"
    assert not list((tmp_path / "internal").glob("*.run"))
    with pytest.raises(InputError, match="no unfinished run"):
        killed_ward(resume=True)


def test_a_consent_that_rose_in_between_is_not_used_beyond_the_charge(tmp_path, killed_ward):
    ward(tmp_path, consent="full")
    with pytest.raises(InputError, match="changed"):
        killed_ward(resume=True)
    ward(tmp_path, consent="basic")
    assert killed_ward(resume=True).release.path.exists()


def die(*_, **__):
    raise Killed


def test_killed_right_after_the_charge_a_refused_resume_keeps_the_way_back(tmp_path, ready_ward, monkeypatch):
    charge = Ledger.reserve

    def charged_and_killed(self, **what):
        charge(self, **what)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reserve", charged_and_killed)
        with pytest.raises(Killed):
            ready_ward()
    ward(tmp_path, consent="full")  # not the patients who were charged
    with pytest.raises(InputError, match="idempotency key"):
        ready_ward(resume=True)
    ward(tmp_path, consent="basic")
    assert ready_ward(resume=True).release.path.exists()
    with Ledger.open(url_of(tmp_path)) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed"]


def test_a_refused_new_run_leaves_no_run_behind(tmp_path, ready_ward, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "reserve", lambda self, **_: (_ for _ in ()).throw(InputError("no ids")))
        with pytest.raises(InputError, match="no ids"):
            ready_ward()
    assert not list((tmp_path / "internal").iterdir())


@pytest.mark.parametrize("moment", ["write_atomic", "os.rename"])
def test_killed_while_its_folder_is_made_a_run_has_not_begun(moment, tmp_path, ready_ward, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(f"confide.studies.state.{moment}", die)
        with pytest.raises(Killed):
            ready_ward()
    with pytest.raises(InputError, match="no unfinished run"):
        ready_ward(resume=True)
    ready_ward()
    assert not [path for path in (tmp_path / "internal").iterdir() if path.name.endswith((".run", ".lock"))]


SHOT = """
import os, signal, sys
from confide.studies import state
from confide.studies.synthesis_run import run_synthesis
from pathlib import Path
def shot(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
state.write_atomic = shot
home = Path(sys.argv[1])
run_synthesis(home / "study.toml", accept=lambda lines: None, ledger_url=sys.argv[2], output=home / "releases")
"""


def test_shot_while_its_folder_is_made_a_run_has_not_begun(tmp_path, ready_ward):
    shot = subprocess.run([sys.executable, "-c", SHOT, str(tmp_path), url_of(tmp_path)], check=False)
    assert shot.returncode == -signal.SIGKILL
    assert [path for path in (tmp_path / "internal").iterdir() if path.name.endswith(".run")]
    with pytest.raises(InputError, match="no unfinished run"):
        ready_ward(resume=True)
    assert ready_ward().release.path.exists()
    assert not [path for path in (tmp_path / "internal").iterdir() if path.name.endswith((".run", ".lock"))]


@pytest.mark.parametrize("name", ["commit", "forgetting"])
def test_killed_after_its_release_was_written_a_run_makes_no_second_one(name, tmp_path, ready_ward, monkeypatch):
    study = tmp_path / "study.toml"  # a name whose last letter the release folder does without
    study.write_text(study.read_text().replace('name = "ward"', 'name = "ward_"'))
    with monkeypatch.context() as patch:
        if name == "commit":
            patch.setattr(Ledger, "commit", die)
        else:
            patch.setattr("confide.studies.state.forget", die)
        with pytest.raises(Killed):
            ready_ward()
    (first,) = (tmp_path / "releases").iterdir()
    outcome = ready_ward(resume=True)
    assert outcome.release.path == first
    with Ledger.open(url_of(tmp_path)) as ledger:
        (record,) = ledger.reservations()
    assert (record.state, record.release_hash) == ("committed", outcome.release.digest)


def test_a_run_that_can_be_resumed_keeps_its_lock_when_tables_on_their_way_are_swept(tmp_path):
    made = state.RunState("ward-20260101T000000Z-abcdef", "", "00" * 32)
    state.save(tmp_path, made)
    (tmp_path / f".{made.name}.spool").mkdir()
    (lock := tmp_path / f".{made.name}.lock").touch()
    inode = lock.stat().st_ino
    state._sweep(tmp_path)
    assert not (tmp_path / f".{made.name}.spool").exists() and lock.stat().st_ino == inode


def test_draws_that_are_published_do_not_lead_back_to_the_key_of_the_noise(tmp_path):
    key = "5a" * 32
    study = parse_synthesis_study(STUDY)
    one, same, other = (generator_of(study, stream, key) for stream in (0, 0, 1))
    seed = int(one.bit_generator.seed_seq.entropy)
    assert seed.bit_length() > 200 and hex(seed)[2:].zfill(64) != key
    assert one.random() == same.random() != other.random()
    words = np.frombuffer(bytes.fromhex(key), np.uint32).tolist()
    assert one.random() != np.random.default_rng([0, *words]).random(2)[1]


def test_killed_while_its_folder_is_deleted_a_run_is_over(tmp_path, ready_ward, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("confide.studies.state.shutil.rmtree", die)
        state.save(tmp_path / "internal", run := state.RunState("ward-20260101T000000Z-abcdef", "", ""))
        with pytest.raises(Killed):
            state.forget(tmp_path / "internal", run)
    with pytest.raises(InputError, match="no unfinished run"):
        ready_ward(resume=True)


def test_a_lost_journal_is_not_drawn_again_under_the_same_charge(tmp_path, killed_ward):
    (folder,) = (tmp_path / "internal").glob("*.run")
    (folder / "answers-0.jsonl").unlink()
    with pytest.raises(RunError, match="journal of this run is gone"):
        killed_ward(resume=True)
    assert not (tmp_path / "releases").exists() or not list((tmp_path / "releases").iterdir())


def test_nobody_s_number_moves_when_a_person_leaves_the_tables(tmp_path):
    write_ward(tmp_path)
    study = load_synthesis(tmp_path / "study.toml")[0]
    whole = read_coded(study, base=tmp_path)
    for name in ("patients.csv", "visits.csv"):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(line for line in lines if not line.startswith("p000")))
    without = read_coded(study, base=tmp_path)
    assert without.panel.patients == whole.panel.patients - 1
    np.testing.assert_array_equal(without.panel.keys, whole.panel.keys[whole.ids != "p000"])


def test_the_command_asks_shows_what_is_spent_and_says_where_things_are(tmp_path, ready_ward, capsys):
    study = str(tmp_path / "study.toml")
    assert main(["synthesize", study, "--ledger", url_of(tmp_path)]) == 2  # nobody is there to accept the price
    assert "add --yes" in capsys.readouterr().err
    with Ledger.open(url_of(tmp_path)) as ledger:
        assert not ledger.reservations()
    assert main(["synthesize", study, "--ledger", url_of(tmp_path), "--yes"]) == 0
    said = capsys.readouterr()
    assert "drawing patients" in said.err and "100% of the budget" in said.err
    assert "report.html" in said.out and "Price: epsilon 2" in said.out
