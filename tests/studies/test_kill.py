"""Killed at any moment: nothing half-written, the reservation stays counted, resume ends at the same weights."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic
from safetensors.numpy import load_file

from confide.errors import InputError, RunError
from confide.ledger import Ledger
from confide.release import Release

RUN = """
import sys
from confide.studies import run_study
run_study(sys.argv[1], ledger_url=sys.argv[2], resume=sys.argv[3] == "resume")
"""


def start(clinic: Clinic, mode: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(clinic.study), clinic.url, mode],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def weights(release: Release) -> dict[str, bytes]:
    return {k: v.tobytes() for k, v in load_file(release.file("model.safetensors")).items()}


def only_release(clinic: Clinic) -> Release:
    (folder,) = (clinic.home / "releases").iterdir()
    return Release.load(folder)


@pytest.mark.slow
def test_killed_anywhere_then_resumed_bit_for_bit(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> None:
    # a seed makes the two runs comparable; it changes keys, not the order of anything
    texts = {"steps = 30": "steps = 300\nseed = 11", "checkpoint_every = 5": "checkpoint_every = 7"}
    clinic.write(texts=texts)
    whole = Clinic(tmp_path_factory.mktemp("whole"))
    whole.write(texts=texts)
    reference = weights(whole.run().release)
    rng = random.Random(5)
    first = start(clinic, "new")
    wait_for(lambda: list((clinic.home / "internal").glob("*.run/checkpoint.pt")), first)
    kills = 0
    process = first
    while True:
        time.sleep(rng.uniform(0.0, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        left = [p.name for p in (clinic.home / "releases").glob("*")] if (clinic.home / "releases").exists() else []
        assert all(
            not name.startswith("clinic-") or (clinic.home / "releases" / name / "certificate.json").exists()
            for name in left
        )
        with Ledger.open(clinic.url) as ledger:
            (record,) = ledger.reservations()
            assert record.state in ("reserved", "started", "committed")
        if record.state == "committed" or kills >= 6:
            break
        process = start(clinic, "resume")
        time.sleep(4.0 + kills)
    if record.state != "committed":
        process = start(clinic, "resume")
        assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    assert kills >= 1
    assert weights(only_release(clinic)) == reference
    with Ledger.open(clinic.url) as ledger:
        (record,) = ledger.reservations()
        assert record.state == "committed"
        assert record.release_hash == only_release(clinic).digest


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < end
        time.sleep(0.02)


class Stop(Exception):
    """Raised in the middle of a run, in place of a crash."""


def crash_at(step: int):
    from confide.studies.watch import Quiet

    class Crashing(Quiet):
        def step(self, done: int, *, note: str = "") -> None:
            if done == step:
                raise Stop

    return Crashing()


def crashed(clinic: Clinic, step: int = 12) -> None:
    with pytest.raises(Stop):
        clinic.run(watcher=crash_at(step))


def seeded(home: Path) -> Clinic:
    home.mkdir()
    clinic = Clinic(home)
    clinic.write(texts={"steps = 30": "steps = 30\nseed = 3"})
    return clinic


def test_crash_keeps_the_reservation_and_resume_ends_at_the_same_weights(tmp_path: Path) -> None:
    broken, whole = seeded(tmp_path / "broken"), seeded(tmp_path / "whole")
    crashed(broken)
    with Ledger.open(broken.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["started"]
    resumed = broken.run(resume=True)
    assert broken.spent() == 1
    assert weights(resumed.release) == weights(whole.run().release)


def test_a_device_that_fails_leaves_a_checkpoint_and_what_was_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.training.engine.fast import FastClippingEngine

    broken = seeded(tmp_path / "broken")
    real, calls = FastClippingEngine.add, iter(range(10**6))

    def failing(self: FastClippingEngine, *args: Any, **settings: Any) -> None:
        if next(calls) == 20:
            raise RuntimeError("CUDA error: device-side assert triggered (injected)")
        real(self, *args, **settings)

    monkeypatch.setattr(FastClippingEngine, "add", failing)
    with pytest.raises(RunError, match="the device failed") as caught:
        broken.run()
    assert caught.value.exit_code == 1 and "--resume" in str(caught.value)
    with Ledger.open(broken.url) as ledger:
        before = [(r.id, r.state, r.admitted) for r in ledger.reservations()]
    assert [state for _, state, _ in before] == ["started"]
    release = broken.run(resume=True).release
    with Ledger.open(broken.url) as ledger:
        after = [(r.id, r.state, r.admitted) for r in ledger.reservations()]
        assert ledger.reservations()[0].release_hash == release.digest
    assert after == [(before[0][0], "committed", before[0][2])], "the same reservation, and no other"


def test_resume_refuses_changed_data(clinic: Clinic) -> None:
    crashed(clinic)
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    (clinic.home / "visits.csv").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(InputError, match="data changed"):
        clinic.run(resume=True)


def test_resume_refuses_a_changed_study(clinic: Clinic) -> None:
    crashed(clinic)
    clinic.write(texts={"lr = 0.5": "lr = 0.6"})
    with pytest.raises(InputError, match="study file changed"):
        clinic.run(resume=True)


def test_resume_without_a_run(clinic: Clinic) -> None:
    with pytest.raises(InputError, match="no unfinished run"):
        clinic.run(resume=True)
    assert clinic.spent() == 0


def test_damaged_checkpoint_is_named(clinic: Clinic) -> None:
    crashed(clinic)
    (file,) = (clinic.home / "internal").glob("*.run/checkpoint.pt")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="checkpoint"):
        clinic.run(resume=True)
    with Ledger.open(clinic.url) as ledger:
        assert ledger.reservations()[0].state == "started"


def test_crash_between_folder_and_commit_only_commits(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Ledger, reservation_id: str, *, release_hash: str) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", stop)
        with pytest.raises(Stop):
            clinic.run()
    digest = only_release(clinic).digest
    outcome = clinic.run(resume=True)
    assert outcome.release.digest == digest
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed"]
    assert not list((clinic.home / "internal").glob("*.run"))


def test_two_releases_are_never_made_under_one_charge(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies before the commit, the folder is taken away and the checkpoint is gone: no second model is made."""

    def stop(self: Ledger, reservation_id: str, *, release_hash: str) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", stop)
        with pytest.raises(Stop):
            clinic.run()
    only_release(clinic).path.rename(clinic.home / "published")
    (checkpoint,) = (clinic.home / "internal").glob("*.run/checkpoint.pt")
    kept = checkpoint.read_bytes()
    checkpoint.unlink()
    with pytest.raises(RunError, match="checkpoint of this run is gone"):
        clinic.run(resume=True)
    checkpoint.write_bytes(kept)
    again = clinic.run(resume=True)
    assert weights(again.release) == weights(Release.load(clinic.home / "published"))


def test_paid_figures_are_drawn_once(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.write(texts={"bootstrap = 60": "bootstrap = 60\nmetrics = {epsilon = 1.0}"})

    def stop(self: Ledger, reservation_id: str, *, release_hash: str) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit", stop)
        with pytest.raises(Stop):
            clinic.run()
    first = only_release(clinic)
    first.path.rename(clinic.home / "published")
    again = clinic.run(resume=True)
    assert again.release.certificate.evaluation == first.certificate.evaluation
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed", "committed"]


def test_a_run_is_held_by_one_process(clinic: Clinic) -> None:
    from confide.studies import state as states

    crashed(clinic)
    state = states.pick(clinic.home / "internal", "clinic")
    with states.alone(clinic.home / "internal", state), pytest.raises(InputError, match="another process"):
        clinic.run(resume=True)
    clinic.run(resume=True)


def test_private_files_have_private_modes(clinic: Clinic) -> None:
    crashed(clinic)
    (folder,) = (clinic.home / "internal").glob("*.run")
    assert folder.stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())


def test_full_disk_leaves_nothing_half_written(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    import confide.studies.write as write

    real, (soft, hard) = write.weights_of, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(model):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # Python ignores the signal: writing fails, as on a disk
        return real(model)

    with monkeypatch.context() as patch:
        patch.setattr(write, "weights_of", full)
        try:
            with pytest.raises(RunError, match="could not write the release"):
                clinic.run()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    releases = clinic.home / "releases"
    assert not [p for p in releases.glob("*") if not p.name.startswith(".")]
    with Ledger.open(clinic.url) as ledger:
        assert ledger.reservations()[0].state == "started"
    clinic.run(resume=True)
    assert only_release(clinic).certificate.name == "clinic"
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (soft, hard)
