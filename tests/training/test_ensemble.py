"""Members of an ensemble: a plan's steps in equal parts, each from where the run began, paid for together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import ZeroNoise, small_plan

from confide.errors import InputError
from confide.planning import QuantileClipping
from confide.training import (
    Averaging,
    ContributorDataset,
    Ensemble,
    Methods,
    PreviousDirection,
    PrivateRun,
    Snapshots,
    fit,
    make_optimizer,
)

KEY = bytes(32)
PEOPLE = 12


def data():
    torch.manual_seed(1)
    x = torch.randn(PEOPLE, 3)
    return ContributorDataset(TensorDataset(x, (x[:, 0] > 0).float()), [f"c{i}" for i in range(PEOPLE)])


def loss(out, y):
    return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none")


def everybody(steps):
    """A plan in which everybody takes part in every step: nothing is left to chance but the noise."""
    return small_plan("contributor", {1: PEOPLE}, steps=steps, noise_multiplier=3.0, epsilon=1e6)


def trained(steps, methods=None, optimizer="sgd", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    made = make_optimizer(optimizer, model.parameters(), lr=0.3, **options)
    return fit(model, loss, made, everybody(steps), data(), run_key=KEY, noise=ZeroNoise(), methods=methods)


@pytest.mark.parametrize(
    ("optimizer", "options", "more"),
    [
        ("sgd", {"momentum": 0.9}, {}),
        ("dp-adam", {}, {}),
        ("nadam", {}, {"averaging": Averaging(0.7)}),
        ("adagrad", {}, {}),
        ("sgd", {}, {"sharpness": PreviousDirection(0.2)}),
    ],
)
def test_without_chance_every_member_is_the_run_of_its_share_of_the_steps(optimizer, options, more):
    assert everybody(4).classes[0].rate == 1
    one = trained(4, Methods(**more), optimizer, **options).state_dict
    whole = trained(12, Methods(ensemble=Ensemble(3), **more), optimizer, **options)
    assert len(whole.snapshots) == 3 and whole.steps == 12
    for member in whole.snapshots:
        assert set(member) == set(one)
        assert all(torch.equal(member[name], value) for name, value in one.items())


def test_members_differ_by_noise_and_draws_and_the_plan_counts_all_their_steps():
    plan = small_plan("contributor", {1: PEOPLE}, steps=9, noise_multiplier=1.0, epsilon=5.0)
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    optimizer = make_optimizer("sgd", model.parameters(), lr=0.3)
    found = fit(model, loss, optimizer, plan, data(), run_key=KEY, methods=Methods(ensemble=Ensemble(4)))
    assert Ensemble(4).ends(9) == (2, 4, 6, 9)
    weights = torch.stack([member["weight"] for member in found.snapshots])
    assert torch.unique(weights, dim=0).shape[0] == 4
    assert found.steps == plan.steps == 9


class Recorder(torch.optim.Optimizer):
    """Sees every noisy gradient and moves nothing."""

    def __init__(self, params):
        super().__init__(params, {})
        self.seen = []

    def step(self, closure=None):
        self.seen.append(
            torch.cat([p.grad.reshape(-1) for group in self.param_groups for p in group["params"]]).clone()
        )


@pytest.mark.parametrize("extra", [{}, {"clipping": QuantileClipping()}])
def test_people_and_noise_of_every_step_are_those_of_the_plain_run(extra):
    """No member begins the coins or the noise anew: two steps of equal noise would tell what lies between them."""
    plan = small_plan("contributor", {1: PEOPLE}, steps=12, noise_multiplier=2.0, epsilon=3.0, **extra)
    assert plan.classes[0].rate < 1
    found = []
    for methods in (Methods(), Methods(ensemble=Ensemble(3))):
        torch.manual_seed(0)
        model, people = nn.Linear(3, 1), []
        optimizer = Recorder(model.parameters())
        run = PrivateRun(model, loss, optimizer, plan, data(), run_key=KEY, methods=methods)
        draw = run._sampler.draw
        run._sampler.draw = lambda step, draw=draw, people=people: people.append(draw(step)) or people[-1]
        for batch in run:
            run.step(loss(model(batch.inputs), batch.targets))
        found.append((torch.stack(optimizer.seen), [one.contributors.tolist() for one in people]))
    (seen, people), (other, others) = found
    assert torch.equal(seen, other) and people == others and len({tuple(one) for one in people}) > 4


@pytest.mark.parametrize(
    ("members", "extra", "settings", "words"),
    [
        (13, {}, {}, "at least one step"),
        (2, {"correlation": "banded(3)"}, {}, "taken back in later steps"),
        (2, {}, {"snapshots": Snapshots(2)}, "one of the two"),
        (2, {}, {"scheduler": True}, "constant learning rate"),
    ],
)
def test_what_does_not_go_with_an_ensemble_is_refused(members, extra, settings, words):
    plan = small_plan("contributor", {1: PEOPLE}, steps=12, noise_multiplier=3.0, epsilon=1e6, **extra)
    model = nn.Linear(3, 1)
    optimizer = make_optimizer("sgd", model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2) if settings.pop("scheduler", False) else None
    with pytest.raises(InputError, match=words):
        fit(model, loss, optimizer, plan, data(), scheduler=scheduler,
            methods=Methods(ensemble=Ensemble(members), **settings))  # fmt: skip
    with pytest.raises(InputError, match="2 or more"):
        Ensemble(1)
