"""Checkpoints: a resumed run equals an uninterrupted one bit for bit; changes, damage and full disks are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import small_plan

from confide.errors import InputError, RunError
from confide.training import (
    Augmentation,
    ContributorDataset,
    EngineOptions,
    Methods,
    PrivateRun,
    delete_checkpoint,
    fit,
    make_optimizer,
)
from confide.training import read_checkpoint as read
from confide.training.keys import RunKeys

KEY = bytes(range(32))


def loss(out, y):
    return nn.functional.mse_loss(out.squeeze(1), y, reduction="none")


def parts(optimizer="adam", width=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Tanh(), nn.Linear(width, 1))
    return model, make_optimizer(optimizer, model.parameters(), lr=0.1)


def data(change=0.0, people=30):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(2 * people, 3)), dtype=torch.float32)
    x[5, 1] += change
    return ContributorDataset(TensorDataset(x, x[:, 0]), [f"c{i // 2}" for i in range(2 * people)])


def plan(steps=25, **rest):
    return small_plan("individual", {2: 30}, steps=steps, **rest)


class Stop(Exception):
    pass


def interrupted(path, at, **settings):
    """Run until step `at` is done, then stop as a crash would."""
    model, optimizer = parts()

    def progress(done, steps):
        if done == at:
            raise Stop

    with pytest.raises(Stop):
        fit(model, loss, optimizer, plan(), data(), run_key=KEY, checkpoint=path, checkpoint_every=7,
            progress=progress, **settings)  # fmt: skip


def outcome(path=None, resume=False, **settings):
    model, optimizer = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5) if settings.pop("schedule", False) else None
    return fit(model, loss, optimizer, settings.pop("plan", plan()), settings.pop("data", data()),
               checkpoint=path, checkpoint_every=7, resume=resume, scheduler=scheduler, **settings)  # fmt: skip


@pytest.mark.parametrize("at", [1, 7, 13, 24])
@pytest.mark.parametrize("physical", [None, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, at, physical):
    options = EngineOptions(physical_batch=physical)
    whole = outcome(run_key=KEY, options=options)
    path = tmp_path / "run.checkpoint"
    interrupted(path, at, options=options)
    assert read(path)["keys"]["step"] == at // 7 * 7
    resumed = outcome(path, resume=True, options=options)
    for name, value in whole.state_dict.items():
        assert torch.equal(value, resumed.state_dict[name]), name
    assert resumed.internal == whole.internal and resumed.steps == 25


def test_a_finished_run_resumes_to_its_result_without_reading_data(tmp_path):
    first = outcome(tmp_path / "c", run_key=KEY)
    again = outcome(tmp_path / "c", resume=True, on_start=lambda: pytest.fail("nothing is left to start"))
    assert all(torch.equal(value, again.state_dict[name]) for name, value in first.state_dict.items())


def test_a_checkpoint_is_private_and_can_be_deleted(tmp_path):
    path = tmp_path / "run.checkpoint"
    outcome(path, run_key=KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / ".run.checkpoint.k1lled").write_bytes(b"half")
    delete_checkpoint(path)
    delete_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_does_not_hold_what_past_noise_follows_from(tmp_path):
    path = tmp_path / "run.checkpoint"
    outcome(path, run_key=KEY)
    content = path.read_bytes()
    keys, past = RunKeys.start(KEY), [KEY]
    for _ in range(25):
        past += [keys.current, keys.noise_key()]
        keys.advance()
    assert keys.current.hex().encode() in content
    for secret in past:
        assert secret.hex().encode() not in content and secret not in content


def test_key_order_no_step_shares_a_key_and_coins_change_by_stretches():
    keys, noise, coins = RunKeys.start(KEY), set(), []
    for _ in range(120):
        noise.add(keys.noise_key())
        coins.append(keys.coins)
        keys.advance()
    assert len(noise) == 120
    assert [coins.index(c) for c in dict.fromkeys(coins)] == [0, 50, 100]
    again = RunKeys.from_dict(keys.to_dict())
    assert again == keys


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": plan(noise_multiplier=1.5)}, "the plan changed"),
        ({"data": data(change=1.0)}, "the data changed"),
        ({"data": data(people=29)}, "the data changed"),
        ({"admitted": np.arange(30) > 3}, "admitted contributors changed"),
        ({"noise": "secure"}, "kind of noise changed"),
    ],
)
def test_changes_are_refused_on_resume(tmp_path, change, words):
    interrupted(tmp_path / "c", 8)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(InputError, match=words):
        outcome(tmp_path / "c", resume=True, **change)
    assert (tmp_path / "c").read_bytes() == before


def views(factor):
    def shaken(inputs, numbers):
        return inputs * factor

    def still(inputs, numbers):
        return inputs

    return shaken, still


def test_a_transformation_of_ones_own_is_the_same_in_the_next_process(tmp_path):
    """There it is another object with the same name."""
    made = [Methods(augmentation=Augmentation(views=2, transform=way)) for f in (1.0, 1.0) for way in views(f)]
    interrupted(tmp_path / "c", 8, methods=made[0])
    with pytest.raises(InputError, match="the methods changed"):
        outcome(tmp_path / "c", resume=True, methods=made[3])
    assert outcome(tmp_path / "c", resume=True, methods=made[2]).steps == 25


def test_another_model_or_optimizer_is_refused_on_resume(tmp_path):
    interrupted(tmp_path / "c", 8)
    for model, optimizer in (parts(width=5), parts("sgd")):
        with pytest.raises(InputError, match="changed since the checkpoint"):
            PrivateRun(model, loss, optimizer, plan(), data(), checkpoint=tmp_path / "c", resume=True)


def test_damage_is_told_wherever_it_is(tmp_path):
    path = tmp_path / "c"
    interrupted(path, 8)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", b"x" + whole[1:], whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged") as error:
            outcome(path, resume=True)
        assert error.value.exit_code == 1


def test_no_checkpoint_is_told(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        outcome(tmp_path / "none", resume=True)


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "c"
    interrupted(path, 8)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        outcome(path, resume=True)
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c"]
    assert outcome(path, resume=True).steps == 25


def test_a_learning_rate_schedule_goes_on_where_it_was(tmp_path):
    whole = outcome(run_key=KEY, schedule=True)
    model, optimizer = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)

    def progress(done, steps):
        if done == 13:
            raise Stop

    with pytest.raises(Stop):
        fit(model, loss, optimizer, plan(), data(), run_key=KEY, checkpoint=tmp_path / "c", checkpoint_every=7,
            scheduler=scheduler, progress=progress)  # fmt: skip
    resumed = outcome(tmp_path / "c", resume=True, schedule=True)
    assert all(torch.equal(value, resumed.state_dict[name]) for name, value in whole.state_dict.items())


def test_a_seeded_run_stays_marked_after_a_resume(tmp_path):
    model, optimizer = parts()
    fit(model, loss, optimizer, plan(), data(), seed=1, checkpoint=tmp_path / "c")
    assert outcome(tmp_path / "c", resume=True).testing_only


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_resumes_bit_for_bit(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import torch
        torch.set_num_threads(1)
        import test_checkpoint as t
        from pathlib import Path
        path = Path(sys.argv[2])
        model, optimizer = t.parts()
        settings = {"resume": True} if path.exists() else {"run_key": t.KEY}
        result = t.fit(model, t.loss, optimizer, t.plan(60), t.data(), checkpoint=path, checkpoint_every=1,
                       progress=lambda *a: (print(a, flush=True), time.sleep(0.02)), **settings)
        torch.save(result.state_dict, sys.argv[3])
    """)
    path, target = tmp_path / "c", tmp_path / "state"
    rng, kills = np.random.default_rng(0), 0
    while not target.exists():
        command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path), str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if kills < 4:
            process.stdout.readline()  # at least one step further, so that the test ends
            time.sleep(float(rng.uniform(0, 0.3)))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
    model, optimizer = parts()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = fit(model, loss, optimizer, plan(60), data(), run_key=KEY)
    torch.set_num_threads(threads)
    resumed = torch.load(target, weights_only=True)
    assert kills == 4 and all(torch.equal(value, resumed[name]) for name, value in whole.state_dict.items())
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["c", "state"]
    delete_checkpoint(path)  # takes along what a kill in the middle of a write left
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
