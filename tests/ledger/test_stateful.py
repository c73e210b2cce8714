"""A ledger against a plain model of it, step by step."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from confide.errors import BudgetError, InputError
from confide.ledger import Ledger

from .conftest import gaussian

PEOPLE = [f"p{i}" for i in range(8)]
STRENGTHS = (0.3, 0.7, 1.05, 1.4)


class AgainstModel(RuleBasedStateMachine):
    """Model: for each reservation its state and the strength of each admitted person."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "l.sqlite"
        self.ledger = Ledger.create(self.file, cap_epsilon=6.0, cap_delta=1e-5)
        # For Gaussians the allowance at an order is an allowance of mu^2 = 2 rdp / order.
        self.room = max(2 * b / a for a, b in zip(self.ledger.rule.orders, self.ledger.rule.allowances, strict=True))
        self.model: dict[str, tuple[str, dict[str, float]]] = {}

    def spent(self, person: str) -> float:
        return sum(held[person] ** 2 for state, held in self.model.values() if state != "aborted" and person in held)

    @rule(
        people=st.lists(st.sampled_from(PEOPLE), min_size=1, unique=True),
        data=st.data(),
        exhausted=st.sampled_from(["drop", "refuse"]),
    )
    def reserve(self, people, data, exhausted):
        strengths = data.draw(st.lists(st.sampled_from(STRENGTHS), min_size=1, max_size=3, unique=True))
        class_of = np.array([data.draw(st.integers(0, len(strengths) - 1)) for _ in people])
        cost = {p: strengths[c] for p, c in zip(people, class_of, strict=True)}
        fits = [self.spent(p) + cost[p] ** 2 <= self.room for p in people]
        call = {
            "release": "r",
            "data_set": "d",
            "contributors": people,
            "class_of": class_of,
            "classes": [gaussian(s) for s in strengths],
        }
        assert (
            self.ledger.what_if(**{k: call[k] for k in ("contributors", "class_of", "classes")}).admitted.tolist()
            == fits
        )
        if not any(fits) or (exhausted == "refuse" and not all(fits)):
            with pytest.raises(BudgetError):
                self.ledger.reserve(**call, exhausted=exhausted)
            return
        kept = self.ledger.reserve(**call, exhausted=exhausted)
        assert kept.admitted.tolist() == fits
        self.model[kept.id] = ("reserved", {p: cost[p] for p, ok in zip(people, fits, strict=True) if ok})

    @precondition(lambda self: self.model)
    @rule(data=st.data(), move=st.sampled_from(["start", "commit", "abort"]))
    def move(self, data, move):
        # By position: the names are random, and hypothesis must be able to repeat a run.
        name = list(self.model)[data.draw(st.integers(0, len(self.model) - 1))]
        state, held = self.model[name]
        calls = {
            "start": lambda: self.ledger.start(name),
            "commit": lambda: self.ledger.commit(name, release_hash="ab" * 32),
            "abort": lambda: self.ledger.abort(name),
        }
        if state not in ("reserved", "started"):
            with pytest.raises(InputError):
                calls[move]()
            return
        calls[move]()
        after = {"start": "started", "commit": "committed", "abort": "aborted" if state == "reserved" else "abandoned"}
        self.model[name] = (after[move], held)

    @rule()
    def reopen(self):
        self.ledger.close()
        self.ledger = Ledger.open(self.file)

    @invariant()
    def balances_agree(self):
        used = self.ledger.used(PEOPLE)
        for person, share in zip(PEOPLE, used, strict=True):
            assert share == pytest.approx(self.spent(person) / self.room, abs=1e-6)
            assert share <= 1

    def teardown(self):
        self.ledger.verify()
        assert {r.id: r.state for r in self.ledger.reservations()} == {k: v[0] for k, v in self.model.items()}
        for person in PEOPLE:
            ids = [name for name, (_, held) in self.model.items() if person in held]
            assert sorted(s.reservation for s in self.ledger.history(person)) == sorted(ids)
        self.ledger.close()
        self.folder.cleanup()


TestAgainstModel = AgainstModel.TestCase
TestAgainstModel.settings = settings(
    max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestAgainstModelLonger(AgainstModel.TestCase):
    settings = settings(max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
