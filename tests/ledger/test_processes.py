"""Several real processes on one ledger: nothing overspent, nothing lost, whoever is killed and whenever."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from confide.ledger import Ledger

from .conftest import gaussian

WORKER = """
import sys, numpy as np, time
from confide.accounting import Gaussian
from confide.errors import BudgetError
from confide.ledger import Ledger
url, key, go = sys.argv[1:4]
ledger = Ledger.open(url, key=key)
people = [f"p{i}" for i in range(50)]
price = [Gaussian(noise_multiplier=4.0).guarantee()]
import os
while not os.path.exists(go):
    time.sleep(0.002)
while True:
    try:
        kept = ledger.reserve(release="r", contributors=people, class_of=np.zeros(50, int), classes=price, data_set="d")
    except BudgetError:
        break
    print("reserved", kept.id, flush=True)
    ledger.start(kept.id)
    print("started", kept.id, flush=True)
    ledger.commit(kept.id, release_hash="ab" * 32)
    print("committed", kept.id, flush=True)
print("done", flush=True)
"""


def spawn(url, key, go):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(key), str(go)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def capacity(ledger):
    """How many of the workers' releases fit into one balance."""
    charge = ledger.rule.charge(gaussian(0.25))[:-1]
    return int((2**31 // charge.astype(np.int64)).max())


def test_two_runs_at_once_cannot_overspend(new, url, key, tmp_path):
    ledger = new(epsilon=4.0)
    room = capacity(ledger)
    workers = [spawn(url, key, tmp_path / "go") for _ in range(2)]
    (tmp_path / "go").touch()
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs
    counts = [out.count("committed") for out, _ in outputs]
    assert sum(counts) == room > 4
    assert all(len(ledger.history(f"p{i}")) == room for i in (0, 49))
    assert ledger.used(["p0"])[0] <= 1
    ledger.verify()


@pytest.mark.slow
def test_writers_killed_at_random(new, url, key, tmp_path):
    """Four writers, killed at random moments and replaced: what any of them reported is there, exactly once."""
    random.seed(7)
    ledger = new(epsilon=40.0)
    (tmp_path / "go").touch()
    workers: list[tuple[subprocess.Popen[bytes], Path]] = []
    outputs: list[Path] = []
    killed, finish = 0, time.monotonic() + 90
    while time.monotonic() < finish and killed < 15:
        while len(workers) < 4:
            output = tmp_path / f"out{len(outputs)}"
            outputs.append(output)
            command = [sys.executable, "-c", WORKER, url, str(key), str(tmp_path / "go")]
            with output.open("wb") as file, (tmp_path / "errors").open("ab") as errors:
                workers.append((subprocess.Popen(command, stdout=file, stderr=errors), output))
        time.sleep(random.uniform(0.02, 0.3))
        # Only those that have begun to write: a process that is still importing is no test.
        victims = [w for w in workers if w[1].stat().st_size]
        if victims:
            victim = random.choice(victims)
            workers.remove(victim)
            victim[0].kill()
            victim[0].wait()
            killed += 1
    for worker, _ in workers:
        worker.kill()
        worker.wait()
    told = [tuple(line.split()) for path in outputs for line in path.read_text().splitlines(True) if line[-1] == "\n"]
    told = [line for line in told if len(line) == 2]
    states = {r.id: r.state for r in ledger.reservations()}
    order = ("reserved", "started", "committed")
    assert killed >= 3 and told, (tmp_path / "errors").read_text()
    for step, name in told:
        assert order.index(states[name]) >= order.index(step)
    assert len(states) <= capacity(ledger)
    assert len(ledger.history("p7")) == len(states)
    charge = ledger.rule.charge(gaussian(0.25))[:-1].astype(float)
    assert ledger.used(["p7"])[0] == pytest.approx(min(len(states) * charge) / 2**31)
    ledger.verify()


STEPS = """
import json, os, signal, sys
import numpy as np
import sqlalchemy as sa
from confide.accounting import Gaussian
from confide.ledger import Ledger
url, key = sys.argv[1:3]

def run(stop, tell):
    ledger, count = Ledger.open(url, key=key), 0
    def tick(*_):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
    for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sa.event.listen(ledger._store.engine, event, tick)
    kept = ledger.reserve(release="r", contributors=["a", "b"], class_of=np.zeros(2, int),
                          classes=[Gaussian(noise_multiplier=4.0).guarantee()], data_set="d")
    tell("reserved")
    ledger.start(kept.id)
    tell("started")
    ledger.commit(kept.id, release_hash="ab" * 32)
    tell("committed")

# One import, then a fresh process for each moment of death.
stop = 0
while True:
    stop += 1
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(stop, lambda word: os.write(writer, word.encode() + b" "))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        told = pipe.read().split()
    with Ledger.open(url, key=key) as ledger:
        states = [r.state for r in ledger.reservations()]
        print(json.dumps([told, states, ledger.used(["a"])[0], status]), flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.slow
def test_killed_at_every_single_statement(new, url, key):
    """The process dies before and after every statement of reserve, start and commit, one run each."""
    ledger = new(epsilon=40.0)
    result = subprocess.run([sys.executable, "-c", STEPS, url, str(key)], capture_output=True, text=True, check=True)
    order = ("nothing", "reserved", "started", "committed")
    cost = float(min(ledger.rule.charge(gaussian(0.25))[:-1])) / 2**31
    before: list[str] = []
    seen = set()
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for told, states, used, _ in lines:
        assert states[: len(before)] == before and len(states) - len(before) <= 1
        state = states[-1] if len(states) > len(before) else "nothing"
        # What was reported has happened; at most the step in flight may have happened as well.
        assert 0 <= order.index(state) - len(told) <= 1
        assert used == pytest.approx(cost * len(states))
        before = states
        seen.add(state)
    assert seen == set(order) and len(lines) > 20 and lines[-1][3] == 0
    ledger.verify()


def test_a_busy_ledger_says_so(tmp_path, monkeypatch):
    import sqlite3

    from confide.errors import RunError

    from .conftest import take

    ledger = Ledger.create(tmp_path / "l.sqlite", cap_epsilon=8, cap_delta=1e-6)
    other = sqlite3.connect(tmp_path / "l.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    import sqlalchemy as sa

    sa.event.listen(ledger._store.engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout=50"))
    with pytest.raises(RunError, match="another run holds"):
        take(ledger, ["a"])
    other.execute("ROLLBACK")
    other.close()
    take(ledger, ["a"])
