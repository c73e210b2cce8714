"""Many writers on one ledger, killed at random: nothing lost, nothing charged twice, nothing overspent.

python benchmarks/ledger/kill.py                       # 32 writers, 5 minutes on SQLite, 5 on PostgreSQL -> faults.json
python benchmarks/ledger/kill.py --store sqlite --seconds 20

Each writer is a process of its own. It notes what it is about to ask for, asks, and notes what it was told. A
controller kills one (SIGKILL) every few hundred milliseconds and puts a new one in its place, which first takes up what
the dead one left open, with the same idempotency key. On PostgreSQL connections are cut as well (by the server), and
the server itself is crashed and recovers.

Afterwards the ledger's journal is replayed step by step against a plain model: the sum of mu^2 of every person, whose
limit is the ledger's declared allowance. At every reservation exactly those people must have been admitted for whom the
model has room, and every change of state must be one that is allowed. What writers were told must be there; what was
started must never have been given back; the composed epsilon of everybody, by the closed formula for Gaussians, must be
within the cap.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from confide.accounting import Gaussian
from confide.errors import BudgetError, InputError, RunError
from confide.ledger import Ledger

HERE = Path(__file__).parent
STRENGTHS = (0.15, 0.3, 0.6)  # mu of a release
CAP = (8.0, 1e-6)
CROWD = 200  # people that releases are drawn from at a time; the crowd moves on, so that balances keep running out
SPEED = 2.0  # new people a second


def prices() -> list[Any]:
    """Return the guarantee of each class."""
    return [Gaussian(noise_multiplier=1 / mu).guarantee() for mu in STRENGTHS]


class Writer:
    """What one process does until it is killed."""

    def __init__(self, url: str, key: Path, log: Path, began: float, inherit: Path | None) -> None:
        self.url, self.key, self.began = url, key, began
        self.inherited = None if inherit is None else last_open(inherit)
        self.out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.random = random.Random(os.urandom(16))
        self.classes = prices()

    def note(self, **what: Any) -> None:
        """Write one line; a kill cannot take back what was written."""
        os.write(self.out, (json.dumps(what) + "\n").encode())

    def run(self) -> None:
        """Reserve, start, commit or abort, over and over."""
        ledger = self.open()
        if self.inherited is not None:
            self.one(ledger, self.inherited)
        while True:
            first = int((time.time() - self.began) * SPEED)
            people = self.random.sample(range(first, first + CROWD), self.random.randint(10, 60))
            self.one(
                ledger,
                {
                    "key": os.urandom(8).hex(),
                    "people": people,
                    "classes": [self.random.randrange(len(STRENGTHS)) for _ in people],
                    "exhausted": self.random.choice(["drop", "drop", "drop", "refuse"]),
                },
            )

    def open(self) -> Ledger:
        """Open the ledger, again if the server is just recovering."""
        while True:
            try:
                return Ledger.open(self.url, key=self.key)
            except RunError as error:
                self.note(event="error", what=error.what)
                time.sleep(0.2)

    def one(self, ledger: Ledger, ask: dict[str, Any]) -> None:
        """One release from its reservation to its end."""
        self.note(event="ask", **ask)
        while True:
            try:
                kept = ledger.reserve(
                    release="r",
                    data_set="d",
                    contributors=[f"p{i}" for i in ask["people"]],
                    class_of=np.array(ask["classes"]),
                    classes=self.classes,
                    exhausted=ask["exhausted"],
                    idempotency_key=ask["key"],
                )
                break
            except BudgetError:
                self.note(event="refused", key=ask["key"])
                return
            except InputError:
                # The predecessor had ended this one: the key is spent.
                self.note(event="ended before", key=ask["key"])
                return
            except RunError as error:
                self.note(event="error", what=error.what)
                time.sleep(0.2)
        self.note(event="reserved", key=ask["key"], id=kept.id, admitted=np.flatnonzero(kept.admitted).tolist())
        plan = self.random.choice(["commit", "commit", "abort at once", "abort later"])
        if plan != "abort at once" and not self.step(ledger, "started", lambda: ledger.start(kept.id), kept.id):
            return
        if plan == "commit":
            self.step(ledger, "committed", lambda: ledger.commit(kept.id, release_hash="ab" * 32), kept.id)
        else:
            self.step(ledger, "ended", lambda: ledger.abort(kept.id), kept.id)
        if self.random.random() < 0.1:  # a replay must be refused and change nothing
            with contextlib.suppress(InputError, RunError):
                ledger.commit(kept.id, release_hash="cd" * 32)
                self.note(event="replay accepted", id=kept.id)

    def step(self, ledger: Ledger, name: str, call: Any, reservation: str) -> bool:
        """Do one step, again after an error whose outcome is unknown."""
        while True:
            try:
                refunded = call()
            except InputError:
                # An earlier try had gone through (or the predecessor's): the state says so.
                self.note(event="found ended", id=reservation)
                return False
            except RunError as error:
                self.note(event="error", what=error.what)
                time.sleep(0.2)
                continue
            if name == "ended":  # of an abort: what the ledger answered
                name = "aborted" if refunded else "abandoned"
            self.note(event=name, id=reservation)
            return True


def last_open(log: Path) -> dict[str, Any] | None:
    """Return what a dead writer had asked for and not ended."""
    asked: dict[str, Any] | None = None
    for line in lines(log):
        if line["event"] == "ask":
            asked = {name: line[name] for name in ("key", "people", "classes", "exhausted")}
        elif line["event"] in ("refused", "ended before", "found ended", "committed", "aborted", "abandoned"):
            asked = None
    return asked


def lines(log: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a log."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("\n")]


def spawn(url: str, key: Path, log: Path, began: float, inherit: Path | None) -> int:
    """Fork a writer: it has every module already, so that nearly all kills hit the ledger and not an import."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Writer(url, key, log, began, inherit).run()
        except BaseException as error:
            with contextlib.suppress(OSError):
                (log.parent / "crashes").open("a").write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    return child


def harass(url: str, key: Path, folder: Path, seconds: float, writers: int, server: Any) -> dict[str, Any]:
    """Run writers for a while, killing them at random; return what was done to them."""
    done: Counter[str] = Counter()
    began = time.time()
    alive: dict[int, Path] = {}
    logs: list[Path] = []

    def add(inherit: Path | None = None) -> None:
        logs.append(folder / f"writer{len(logs)}")
        alive[spawn(url, key, logs[-1], began, inherit)] = logs[-1]

    for _ in range(writers):
        add()
    crash_at = began + 45
    while time.time() - began < seconds:
        time.sleep(random.uniform(0.05, 0.4))
        victim = random.choice(list(alive))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        add(alive.pop(victim))
        done["writers killed"] += 1
        # Nobody may die by himself.
        for pid in list(alive):
            if os.waitpid(pid, os.WNOHANG)[0]:
                add(alive.pop(pid))
                done["writers that died by themselves"] += 1
        if server is not None and random.random() < 0.2:
            done["connections cut"] += cut_a_connection(server)
        if server is not None and time.time() > crash_at:
            server.stop(crash=True)
            server.start()
            done["server crashes"] += 1
            crash_at = time.time() + 60
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return {"seconds": time.time() - began, "writers at once": writers, **done, "logs": logs}


def cut_a_connection(server: Any) -> int:
    """Let the server end one session of a writer."""
    import psycopg

    try:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                "AND datname <> 'postgres' ORDER BY random() LIMIT 1"
            ).fetchall()
        return len(rows)
    except psycopg.Error:
        return 0


def gaussian_epsilon(squares: float, delta: float) -> float:
    """Return epsilon(delta) of a Gaussian with mu^2 = squares (Balle and Wang 2018, theorem 8)."""
    mu = squares**0.5

    def gap(eps: float) -> float:
        return float(stats.norm.cdf(-eps / mu + mu / 2) - np.exp(eps) * stats.norm.cdf(-eps / mu - mu / 2)) - delta

    return 0.0 if squares == 0 or gap(0.0) <= 0 else float(optimize.brentq(gap, 0.0, 200.0))


MOVES = {
    "start": {"reserved": "started"},
    "commit": {"reserved": "committed", "started": "committed"},
    "abort": {"reserved": "aborted", "started": "abandoned"},
}
RANK = {"reserved": 0, "started": 1, "committed": 2, "aborted": 2, "abandoned": 2}


def judge(url: str, key: Path, logs: list[Path]) -> dict[str, Any]:
    """Replay the journal against the model and compare what writers were told with what is there."""
    import sqlalchemy as sa

    from confide.ledger import _chunks, _schema, _tokens

    asks: dict[str, dict[str, Any]] = {}
    told: list[tuple[str, str]] = []
    told_admitted: dict[str, tuple[str, list[int]]] = {}
    counts: Counter[str] = Counter()
    for log in logs:
        for line in lines(log):
            counts[line["event"]] += 1
            if line["event"] == "ask":
                asks[line["key"]] = line
            elif line["event"] == "reserved":
                told.append((line["id"], "reserved"))
                told_admitted[line["id"]] = (line["key"], line["admitted"])
            elif line["event"] in RANK:
                told.append((line["id"], line["event"]))
    bad: Counter[str] = Counter()
    with Ledger.open(url, key=key) as ledger:
        verified = ledger.verify()
        with ledger._store.read() as connection:
            rows = {r.id: r for r in connection.execute(sa.select(_schema.reservation))}
            entries = connection.execute(
                sa.select(_schema.journal.c.action, _schema.journal.c.body).order_by(_schema.journal.c.seq)
            ).all()
            last = max((max(ask["people"]) for ask in asks.values()), default=0) + 1
            numbers = _tokens.lookup(connection, ledger._keys.tokens([f"p{i}" for i in range(last)]))
            codes = _chunks.read_codes(connection, 0)
        rule = ledger.rule
        room = max(2 * b / a for a, b in zip(rule.orders, rule.allowances, strict=True))
        people = [f"p{i}" for i in range(last) if numbers[i] >= 0]
        used = dict(zip(people, ledger.used(people).tolist(), strict=True)) if people else {}
    spent: defaultdict[int, float] = defaultdict(float)
    state: dict[str, str] = {}
    cost: dict[str, dict[int, float]] = {}
    keys_seen: Counter[str] = Counter()
    decided = partly = 0
    for action, text in entries:
        body = json.loads(text)
        if action == "reserve":
            name, row = body["reservation"], rows[body["reservation"]]
            keys_seen[row.idempotency_key] += 1
            ask = asks.get(row.idempotency_key)
            if ask is None:
                bad["reservations that nobody asked for"] += 1
                continue
            here = codes[row.seq]
            admitted = {
                i: STRENGTHS[c] ** 2
                for i, c in zip(ask["people"], ask["classes"], strict=True)
                if numbers[i] < len(here) and here[numbers[i]]
            }
            for i, c in zip(ask["people"], ask["classes"], strict=True):
                square = STRENGTHS[c] ** 2
                left = room - spent[i] - square
                decided += 1
                if abs(left) < 1e-6:
                    continue  # the stored counters are rounded up by some 5e-10 a release
                if (left > 0) != (i in admitted):
                    bad["people admitted without balance" if i in admitted else "people dropped with balance"] += 1
            partly += len(admitted) < len(ask["people"])
            if ask["exhausted"] == "refuse" and len(admitted) < len(ask["people"]):
                bad["refusals that charged"] += 1
            if name in told_admitted and len(told_admitted[name][1]) != len(admitted):
                bad["answers that differ from the ledger"] += 1
            for i, square in admitted.items():
                spent[i] += square
            state[name], cost[name] = "reserved", admitted
        elif action in MOVES:
            name = body["reservation"]
            after = MOVES[action].get(state.get(name, ""))
            if after is None or (body["from"], body["to"]) != (state[name], after):
                bad["changes of state that are not allowed"] += 1
                continue
            state[name] = after
            if after == "aborted":
                for i, square in cost[name].items():
                    spent[i] -= square
    for name, said in told:
        if name not in state:
            bad["lost: reported but not in the ledger"] += 1
        elif RANK[state[name]] < RANK[said] or (RANK[said] == 2 and state[name] != said):
            bad["lost: reported further than the ledger is"] += 1
        elif said == "started" and state[name] == "aborted":
            bad["freed after it had started"] += 1
    bad["charged twice: more than one reservation for one request"] += sum(n - 1 for n in keys_seen.values() if n > 1)
    bad["charged twice: balances above the model"] += sum(
        share > spent[int(p[1:])] / room + 1e-6 for p, share in used.items()
    )
    bad["lost: balances below the model"] += sum(share < spent[int(p[1:])] / room - 1e-6 for p, share in used.items())
    worst = max((gaussian_epsilon(v, CAP[1]) for v in spent.values()), default=0.0)
    bad["overspent: tight epsilon above the cap"] += sum(
        gaussian_epsilon(v, CAP[1]) > CAP[0] * (1 + 1e-9) for v in spent.values()
    )
    bad["replays accepted"] += counts["replay accepted"]
    states = Counter(state.values())
    full = sum(room - v < STRENGTHS[0] ** 2 for v in spent.values())
    return {
        "requests": len(asks),
        "reservations": len(state),
        "states": dict(states),
        "refused for lack of balance": counts["refused"],
        "reservations with people left out": partly,
        "decisions about one person checked": decided,
        "people": len(spent),
        "people whose balance ran out": full,
        "largest tight epsilon": worst,
        "cap": {"epsilon": CAP[0], "delta": CAP[1]},
        "answers checked": len(told),
        "journal entries replayed": len(entries),
        "errors that writers met and retried": counts["error"],
        "verify": f"{verified.journal} entries, nothing differs",
        "faults": {
            name: int(bad[name])
            for name in sorted(
                {
                    *bad,
                    "lost: reported but not in the ledger",
                    "lost: reported further than the ledger is",
                    "freed after it had started",
                    "people admitted without balance",
                    "people dropped with balance",
                    "changes of state that are not allowed",
                    "reservations that nobody asked for",
                    "answers that differ from the ledger",
                    "refusals that charged",
                }
            )
        },
    }


def run(store: str, seconds: float, writers: int) -> dict[str, Any]:
    """One whole test on one store."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server, version = None, f"SQLite {__import__('sqlite3').sqlite_version}"
        url = f"sqlite:///{folder}/ledger.sqlite"
        if store == "postgresql":
            sys.path.insert(0, str(HERE))
            from server import postgres

            server = stack.enter_context(postgres())
            url, version = server.new_database(), server.version()
        key = folder / "ledger.key"
        Ledger.create(url, cap_epsilon=CAP[0], cap_delta=CAP[1], key=key).close()
        load = os.getloadavg()[0]
        done = harass(url, key, folder, seconds, writers, server)
        logs = done.pop("logs")
        result = {"store": version, **done, "load before": load, "load after": os.getloadavg()[0]}
        crashes = folder / "crashes"
        if crashes.exists():
            result["writers ended with"] = Counter(crashes.read_text().splitlines()).most_common(5)
        return result | judge(url, key, logs)


def main() -> int:
    """Run, print and write the fault table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE / "faults.json")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    wanted = ["sqlite", "postgresql"] if options.store == "both" else [options.store]
    faults = 0
    for store in wanted:
        results[store] = run(store, options.seconds, options.writers) | {
            "commit": commit.stdout.strip(),
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "command": "python benchmarks/ledger/kill.py " + " ".join(sys.argv[1:]),
        }
        faults += sum(results[store]["faults"].values())
        print(json.dumps({store: results[store]}, indent=1), flush=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
