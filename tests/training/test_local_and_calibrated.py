"""NeuralDP against its trade-off curve, a private temperature, and what a release predicts with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import small_plan

from confide.accounting import Gaussian, RandomisedResponse
from confide.errors import InputError
from confide.mechanisms import OSNoise, SeededNoise
from confide.training import ContributorDataset, make_optimizer
from confide.training.methods import NeuralDP, NeuralDPModel, NeuralDPRun
from confide.training.methods.neuraldp import (
    FixedProjection,
    noisy_label_loss,
    randomise_labels,
    release_activations,
)
from confide.training.methods.predictor import Predictor
from confide.training.methods.temperature import GRID, fit_temperature, utilities


@pytest.mark.parametrize("noise_multiplier", [0.7, 2.0])
def test_the_best_attack_on_a_released_vector_has_the_accounted_trade_off(noise_multiplier):
    """Two fixed persons, worst case: opposite vectors of norm C (exchange, mu = 2 / s); the likelihood ratio is z_0."""
    draws, clip = 100_000, 0.5
    a = np.zeros((draws, 3))
    a[:, 0] = 9.0
    noise = SeededNoise(1)
    scores = [release_activations(sign * a, clip, noise_multiplier, noise)[:, 0] for sign in (1, -1)]
    fpr = np.linspace(0.01, 0.99, 50)
    cut = np.quantile(scores[1], 1 - fpr)
    tpr = np.array([(scores[0] > c).mean() for c in cut])
    want = norm.cdf(norm.ppf(fpr) + 2 / noise_multiplier)
    assert np.abs(tpr - want).max() < 0.01
    exchange = Gaussian(noise_multiplier / 2, relation="replace-one").guarantee()
    np.testing.assert_allclose(exchange.reconstruction_bound(fpr), want, rtol=1e-6)


def test_rows_that_are_not_finite_give_noise_alone_and_nobody_is_clipped_short():
    rows = np.array([[np.nan, 1.0], [3.0, 4.0], [0.0, 0.1]])

    class Still:
        def margin(self, *_, **__):
            return 0.0

        def add_normal(self, values, *, scale):
            return values

    out = release_activations(rows, 1.0, 1.0, Still())
    np.testing.assert_allclose(out, [[0, 0], [0.6, 0.8], [0, 0.1]])


def test_told_labels_have_the_stated_odds_and_the_loss_knows_them():
    labels = np.repeat(np.arange(3), 20_000)
    told = randomise_labels(labels, 3, math.log(4.0), SeededNoise(2))
    assert (told == labels).mean() == pytest.approx(4 / 6, abs=0.01)
    nobody = randomise_labels(np.full(30_000, -1), 3, 2.0, SeededNoise(3))
    np.testing.assert_allclose(np.bincount(nobody) / 30_000, 1 / 3, atol=0.02)
    assert RandomisedResponse(math.log(4.0)).guarantee().epsilon(1e-9) == pytest.approx(math.log(4.0), rel=1e-6)
    sure = torch.tensor([[50.0], [-50.0]])
    loss = float(noisy_label_loss(sure, torch.tensor([1, 1]), 2, math.log(3.0)))
    assert loss == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2, rel=1e-5)


def people(n=40, drop=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, 5, generator=generator)
    ids = [f"c{i // 2}" for i in range(2 * n)]
    return ContributorDataset(TensorDataset(x, (x[:, 0] > 0).long()), ids)


def plan_of(steps=1, noise_multiplier=4.0, epsilon=20.0):
    return small_plan("contributor", {2: 40}, steps=steps, epsilon=epsilon, noise_multiplier=noise_multiplier)


def local_run(plan, settings=None, data=None, **rest):
    torch.manual_seed(0)
    model = NeuralDPModel(FixedProjection(5, 4), nn.Linear(4, 1))
    settings = settings or NeuralDP(width=4)
    optimizer = make_optimizer("adam", model.head.parameters(), lr=0.05)
    return NeuralDPRun(model, optimizer, plan, data or people(), settings, classes=2, **rest)


def test_a_person_moves_their_own_vector_by_at_most_the_clip_and_nobody_elses():
    run = local_run(plan_of(), seed=1)
    values, labels = run._people()
    mask = np.ones(40, dtype=bool)
    mask[7] = False
    without = local_run(plan_of(), seed=1, admitted=mask)
    other, told = without._people()
    moved = np.linalg.norm(values - other, axis=1)
    assert moved[7] > 0.99 and np.flatnonzero(moved).tolist() == [7] and told[7] == -1 and labels[7] >= 0
    noisy, rest = run._noisy(values, 0), without._noisy(other, 0)
    apart = (noisy - rest).norm(dim=1)
    assert apart[7] <= run.plan.clip_norm * (1 + 1e-5) and float(np.delete(apart.numpy(), 7).max()) == 0.0


def test_runs_finish_resume_with_the_same_noise_and_differ_by_default(tmp_path):
    outcomes = []
    for rest in ({"checkpoint": tmp_path / "c"}, {"checkpoint": tmp_path / "c", "resume": True}, {}):
        run = local_run(plan_of(steps=3), NeuralDP("fresh", width=4), **rest)
        assert list(run) == []
        outcomes.append(run.result().state_dict["head.weight"])
    assert torch.equal(outcomes[0], outcomes[1]) and not torch.equal(outcomes[0], outcomes[2])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NeuralDP("trained"), "not post-processing"),
        (lambda: NeuralDP("reused"), "taken out by differences"),
        (lambda: NeuralDP("other"), "unknown variant"),
        (lambda: local_run(plan_of(steps=2)).rehearse(), "steps for one release"),
        (lambda: local_run(plan_of(epsilon=0.5, noise_multiplier=1.0)).rehearse(), "at least"),
        (lambda: local_run(small_plan("individual", {2: 40}, steps=1)).rehearse(), "one vector"),
    ],
)
def test_unsound_variants_and_plans_are_refused_with_the_reason(make, words):
    with pytest.raises(InputError, match=words):
        make()


def overconfident(n=3000, right=0.85, scale=8.0, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    return scale * (2 * np.where(rng.random(n) < right, y, 1 - y) - 1.0), y


def ece(p, y, bins=15):
    which = np.minimum((p * bins).astype(int), bins - 1)
    return sum(abs(p[which == b].mean() - y[which == b].mean()) * (which == b).mean() for b in np.unique(which))


@pytest.mark.parametrize("seed", range(3))
def test_a_private_temperature_lowers_the_calibration_error_and_changes_no_ranking(seed):
    logits, y = overconfident(seed=seed)
    found = fit_temperature(logits, y, np.arange(len(y)), epsilon=0.5, noise=SeededNoise(seed)).value
    test, labels = overconfident(seed=seed + 100)
    before, after = (ece(1 / (1 + np.exp(-test / t)), labels) for t in (1.0, found))
    assert after < 0.5 * before and found in GRID
    assert np.array_equal(np.argsort(test, kind="stable"), np.argsort(test / found, kind="stable"))


def test_a_contributor_weighs_one_in_the_choice_of_a_temperature():
    """Utilities of neighbours differ by at most 1 each, in one direction: what the choice charges for."""
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(60, 3)) * 20, rng.integers(0, 3, 60)
    owners = np.repeat(np.arange(12), 5)

    def of(keep):
        return utilities(logits[keep], y[keep], owners[keep], np.array(GRID))

    for person in range(12):
        moved = of(np.ones(60, dtype=bool)) - of(owners != person)
        assert (moved <= 1e-12).all() and (moved >= -1).all()
    nothing = fit_temperature(np.zeros(0), np.zeros(0, dtype=int), np.zeros(0, dtype=int), epsilon=1.0, noise=OSNoise())
    assert nothing.value in GRID and nothing.mechanism.guarantee().epsilon(1e-9) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_predictor_averages_probabilities(outputs):
    torch.manual_seed(0)
    members = [nn.Linear(2, outputs) for _ in range(4)]
    x = torch.randn(6, 2)
    out = Predictor(members, outputs=outputs, temperature=2.0)(x)
    if outputs == 1:
        want = torch.stack([torch.sigmoid(m(x) / 2) for m in members]).mean(0)
        torch.testing.assert_close(torch.sigmoid(out), want)
    else:
        want = torch.stack([torch.softmax(m(x) / 2, dim=1) for m in members]).mean(0)
        torch.testing.assert_close(torch.softmax(out, dim=1), want)
