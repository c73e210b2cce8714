"""``torchrun -m confide train``: one charge, one release, the same weights; a killed process can be resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from clinic import Clinic
from safetensors.numpy import load_file

from confide.ledger import Ledger
from confide.release import Release

pytestmark = pytest.mark.slow
SEED = {"steps = 30": "steps = 200\nseed = 5"}


def torchrun(clinic: Clinic, *options: str, processes: int = 2) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*start, "-m", "confide", "train", str(clinic.study), "--ledger", clinic.url, *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, text


def release_of(clinic: Clinic) -> Release:
    (folder,) = (clinic.home / "releases").iterdir()
    return Release.load(folder)


def same_weights(one: Release, other: Release) -> None:
    a, b = (load_file(r.file("model.safetensors")) for r in (one, other))
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=1e-4, atol=1e-5)


def test_two_processes_make_the_release_of_one(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> None:
    clinic.write(texts=SEED)
    code, text = finish(torchrun(clinic, "--yes"))
    assert code == 0, text
    assert text.count("Every person in these data") == 1, "the followers spoke too"
    with Ledger.open(clinic.url) as ledger:
        (record,) = ledger.reservations()
        assert record.state == "committed" and record.release_hash == release_of(clinic).digest
    assert not list((clinic.home / "internal").glob("*.run")), "the checkpoint with its keys is still there"
    alone = Clinic(tmp_path_factory.mktemp("alone"))
    alone.write(texts=SEED)
    same_weights(release_of(clinic), alone.run().release)


def test_a_model_in_shards_makes_the_release_of_one_process(
    clinic: Clinic, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards = {"steps = 30": "steps = 100\nseed = 5", "checkpoint_every = 5": "shards = true"}
    clinic.write(texts=shards)
    code, text = finish(torchrun(clinic, "--yes"))
    assert code == 0, text
    alone = Clinic(tmp_path_factory.mktemp("alone"))
    alone.write(texts=shards)
    same_weights(release_of(clinic), alone.run().release)
    whole = Clinic(tmp_path_factory.mktemp("whole"))
    whole.write(texts={"steps = 30": "steps = 100\nseed = 5"})
    ours, theirs = (load_file(r.file("model.safetensors")) for r in (release_of(clinic), whole.run().release))
    assert any(not np.array_equal(value, theirs[name]) for name, value in ours.items()), "noise by position is another"


def test_a_refusal_reaches_every_process_and_spends_nothing(clinic: Clinic) -> None:
    code, text = finish(torchrun(clinic))  # nobody accepts the price
    assert code != 0 and text.count("the price has to be accepted") == 1
    assert clinic.spent() == 0 and not (clinic.home / "releases").exists()
    (clinic.home / "visits.csv").unlink()
    code, text = finish(torchrun(clinic, "--yes"))
    assert code != 0 and "visits.csv" in text and clinic.spent() == 0


def test_a_killed_process_leaves_checkpoint_and_reservation(
    clinic: Clinic, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = {"steps = 30": "steps = 600\nseed = 5"}
    clinic.write(texts=texts)
    process = torchrun(clinic, "--yes")
    end = time.monotonic() + 120
    while not list((clinic.home / "internal").glob("*.run/checkpoint.pt")):
        assert time.monotonic() < end and process.poll() is None, finish(process)[1]
        time.sleep(0.1)
    os.kill(rank_process(process.pid, 1), signal.SIGKILL)
    code, _ = finish(process)
    assert code != 0
    with Ledger.open(clinic.url) as ledger:
        (record,) = ledger.reservations()
        assert record.state == "started"
    assert not (clinic.home / "releases").exists()
    resumed = clinic.run(resume=True).release  # by a single process
    with Ledger.open(clinic.url) as ledger:
        assert [r.state for r in ledger.reservations()] == ["committed"]
    whole = Clinic(tmp_path_factory.mktemp("whole"))
    whole.write(texts=texts)
    same_weights(resumed, whole.run().release)


def rank_process(agent: int, rank: int) -> int:
    """Process id of a rank: a child of the agent with that rank in its environment."""
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/environ", "rb") as file:
                    variables = file.read().split(b"\0")
                with open(f"/proc/{folder}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == agent and f"RANK={rank}".encode() in variables:
                return int(folder)
    raise AssertionError(f"no process of rank {rank}")
