"""Every method: neighbours differ by the claimed sensitivity and in nothing else; runs resume; limits are met."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from torch import nn
from torch.utils.data import TensorDataset
from training_oracle import Recorder, ZeroNoise, small_plan

from confide.accounting import Correlation
from confide.contributors import ContributorIndex, CyclicSampler, EntrySampler, group_of
from confide.errors import InputError
from confide.mechanisms import SeededNoise
from confide.planning import QuantileClipping
from confide.training import (
    Augmentation,
    Averaging,
    BiasAware,
    Clipping,
    ContributorDataset,
    EngineOptions,
    Ensemble,
    Methods,
    PreviousDirection,
    PrivateRun,
    ShiftFlip,
    Snapshots,
    fit,
    make_optimizer,
)
from confide.training.dataset import call_model
from confide.training.methods import MatrixNoise

COUNTS = [1, 2, 5, 5, 1, 2, 1, 3]
KEY = bytes(range(32))


def loss(out, y):
    return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none") * 50


def data_of(drop=None, bad=None, scale=100.0):
    rng = np.random.default_rng(0)
    ids = [f"person {i}" for i, k in enumerate(COUNTS) for _ in range(k)]
    x = torch.tensor(rng.normal(size=(len(ids), 3)) * scale, dtype=torch.float32)
    y = torch.tensor(rng.integers(0, 2, len(ids)), dtype=torch.float32)
    if bad is not None:
        x[ids.index(f"person {bad}")] = float("nan")
    keep = [i for i, name in enumerate(ids) if name != f"person {drop}"]
    return ContributorDataset(TensorDataset(x[keep], y[keep]), [ids[i] for i in keep])


class Frozen(ZeroNoise):
    """No noise; remembers what it was asked to noise."""

    def __init__(self):
        super().__init__()
        self.values = []

    def add_normal(self, values, *, scale):
        self.values.append((np.array(values), scale))
        return super().add_normal(values, scale=scale)


@cache
def plan_of(strategy="contributor", **rest):
    counts = {1: 3, 2: 2, 3: 1, 5: 2}
    return small_plan(strategy, counts, steps=8, noise_multiplier=1.5, epsilon=30.0, clip_norm=0.7, **rest)


def run_of(plan, data, methods=None, hidden=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) if hidden else nn.Linear(3, 1)
    optimizer, noise = Recorder(model.parameters()), Frozen()
    result = fit(model, loss, optimizer, plan, data, run_key=KEY, noise=noise, methods=methods)
    return np.array(optimizer.seen), result.internal, noise


def jitter(inputs, numbers):
    return inputs * (1 + 0.2 * numbers[:, :3].to(inputs.dtype))


METHODS = {
    "automatic": Methods(clipping=Clipping("automatic")),
    "normalised": Methods(clipping=Clipping(normalise=True)),
    "views": Methods(augmentation=Augmentation(3, jitter, 3)),
    "bias-aware": Methods(sharpness=BiasAware(0.1, 0.05)),
    "bias-aware views": Methods(sharpness=BiasAware(0.2, 0.05), augmentation=Augmentation(2, jitter, 3)),
    "kept": Methods(averaging=Averaging(0.9), snapshots=Snapshots(3)),
    "ensemble": Methods(ensemble=Ensemble(3)),
}


@pytest.mark.parametrize("strategy", ["contributor", "individual", "scale"])
@pytest.mark.parametrize("name", METHODS)
def test_neighbours_differ_by_the_claimed_sensitivity_and_in_nothing_else(name, strategy):
    plan, methods = plan_of(strategy), METHODS[name]
    full, record, noise = run_of(plan, data_of(), methods, hidden=name.startswith("bias"))
    for person in (2, 7):
        rest, without, other = run_of(plan, data_of(drop=person), methods, hidden=name.startswith("bias"))
        unit = plan.clip_norm if methods.clipping.normalise else 1.0
        moved = np.linalg.norm(full - rest, axis=1) * plan.denominator * unit
        units = np.array(record["units"]) - np.array(without["units"])
        clip = plan.clip_norm * plan.class_of(COUNTS[person]).clip_norm
        assert (moved <= units * clip * (1 + 1e-6)).all() and moved.max() > 0.5 * clip
        assert units.max() <= (1 if strategy == "contributor" else COUNTS[person])
        assert noise.calls == other.calls


@pytest.mark.parametrize("name", ["views", "bias-aware", "automatic"])
def test_a_person_with_a_gradient_that_is_not_finite_stays_within_the_bound(name):
    plan = plan_of()
    broken, record, _ = run_of(plan, data_of(bad=2), METHODS[name])
    rest, without, _ = run_of(plan, data_of(drop=2), METHODS[name])
    units = np.array(record["units"]) - np.array(without["units"])
    moved = np.linalg.norm(broken - rest, axis=1) * plan.denominator
    assert (moved <= units * plan.clip_norm * (1 + 1e-6)).all() and np.isfinite(broken).all()
    assert record["nonfinite"] > 0 == without["nonfinite"]


def test_sum_and_count_together_move_by_at_most_what_the_plan_accounts_for():
    """In units of each part's noise, gradient and count of one step are one vector of norm clip / noise multiplier."""
    rule = QuantileClipping(quantile=0.7, share=0.2)
    for strategy in ("contributor", "individual", "scale"):
        plan = plan_of(strategy, clipping=rule)
        # noise answers nothing that the data could steer: the first step's norm is public, so compare first steps
        full, record, noise = run_of(plan, data_of())
        rest, without, other = run_of(plan, data_of(drop=3))
        (sum_a, scale), (count_a, count_scale) = noise.values[:2]
        (sum_b, _), (count_b, _) = other.values[:2]
        units = record["units"][0] - without["units"][0]
        clip = plan.class_of(5).clip_norm
        whitened = math.hypot(np.linalg.norm(sum_a - sum_b) / scale, abs(count_a[0] - count_b[0]) / count_scale)
        assert units >= 1 and whitened <= units * clip / plan.noise_multiplier * (1 + 1e-6)
        if strategy == "contributor":
            assert whitened > 0.9 * clip / plan.noise_multiplier * math.sqrt(1 - rule.share)
        assert scale == pytest.approx(plan.gradient_noise * plan.clip_norm) and full.shape == rest.shape


def test_the_clipping_norm_finds_the_quantile():
    torch.manual_seed(0)
    x = torch.randn(400, 3)
    data = ContributorDataset(TensorDataset(x, torch.zeros(400)), [f"c{i}" for i in range(400)])
    plan = small_plan("contributor", {1: 400}, steps=60, epsilon=100.0, noise_multiplier=1.0, clip_norm=0.01,
                      clipping=QuantileClipping(quantile=0.5, share=0.05, rate=0.5))  # fmt: skip
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    result = fit(model, lambda out, y: (out.squeeze(1) - 1).square(), Recorder(model.parameters()), plan, data, seed=3)
    want = float((2 * x).norm(dim=1).median())
    assert np.mean(result.internal["clip_norm"][-20:]) == pytest.approx(want, rel=0.15)


def test_groups_keep_participations_apart_and_people_independent():
    plan, data = plan_of("individual", correlation="banded(3)"), data_of()
    index = ContributorIndex.from_labels([f"c{i}" for i in range(40) for _ in range(3)])
    group = group_of(KEY, index, 4)
    sampler = CyclicSampler(group, 4, lambda rates: EntrySampler(KEY, index, rates), np.full(40, 0.7))
    for step in range(12):
        drawn = np.unique(sampler.draw(step).contributors)
        assert (group[drawn] == step % 4).all()
    assert len(np.unique(group)) == 4
    kept, _ = index.subset(np.arange(40) != 7)
    assert np.array_equal(group_of(KEY, kept, 4), np.delete(group, 7))
    full, _, noise = run_of(plan, data)
    rest, _, other = run_of(plan, data_of(drop=3))
    moved = np.flatnonzero(np.linalg.norm(full - rest, axis=1) > 1e-12)
    assert len(moved) and len(set(moved % 3)) == 1, "one person took part in steps of two groups"
    assert noise.calls == other.calls


@pytest.mark.parametrize("text", ["banded(5)", "blt(5)", "banded(1)"])
def test_the_stream_is_the_inverse_of_the_factor(text):
    factor, steps = Correlation.make(text, steps=30), 30
    stream, z = MatrixNoise(factor), np.random.default_rng(0).normal(size=(steps, 3))
    y = []
    for t in range(steps):
        y.append(stream.next(z[t]))
        assert len(stream.state()) <= factor.memory
        again = MatrixNoise(factor)
        again.load(stream.state())
        stream = again
    np.testing.assert_allclose(np.tril(toeplitz(factor.column(steps))) @ np.array(y), z, atol=1e-9)


@pytest.mark.parametrize("text", ["banded(4)", "blt(4)"])
def test_correlated_noise_of_a_run_has_the_stated_covariance(text):
    plan = small_plan("contributor", {1: 40}, steps=8, noise_multiplier=2.0, epsilon=30.0, correlation=text)
    data = ContributorDataset(TensorDataset(torch.zeros(40, 3), torch.zeros(40)), [f"c{i}" for i in range(40)])
    model = nn.Linear(3, 4000)
    optimizer = Recorder(model.parameters())
    # a fixed key: a variance from 16,000 values has an error of 1.1 per cent, so 5 would not hold for every key
    nobody = np.zeros(40, dtype=bool)
    fit(model, lambda out, y: out.square().mean(1), optimizer, plan, data, admitted=nobody, run_key=KEY)
    seen = np.array(optimizer.seen) * plan.denominator / 2.0
    inverse = np.linalg.inv(np.tril(toeplitz(plan.correlation.column(8))))
    np.testing.assert_allclose(np.cov(seen), inverse @ inverse.T, atol=0.05 * float(np.max(inverse @ inverse.T)))


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("methods", "extra", "optimizer"),
    [
        (Methods(averaging=Averaging(0.9), snapshots=Snapshots(4, 0.2)), {}, "sgd"),
        (METHODS["views"], {}, "sgd"),
        (Methods(sharpness=PreviousDirection(0.1)), {"clipping": QuantileClipping()}, "dp-adam"),
        (Methods(sharpness=BiasAware()), {"correlation": "banded(3)"}, "sgd"),
        (Methods(), {"correlation": "blt(3)"}, "dp-adam"),
        (Methods(), {}, "sgld"),
        (Methods(ensemble=Ensemble(2), averaging=Averaging(0.8)), {}, "dp-adam"),
    ],
)  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, methods, extra, optimizer):
    plan, path = plan_of(**extra), tmp_path / "c"

    def go(stop=None, **settings):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        more = {"records": 8, "temperature": 5.0} if optimizer == "sgld" else {}
        made = make_optimizer(optimizer, model.parameters(), lr=0.01, **more)

        def progress(done, steps):
            if done == stop:
                raise Stop

        return fit(model, loss, made, plan, data_of(scale=1.0), methods=methods, progress=progress,
                   checkpoint_every=2, **settings)  # fmt: skip

    whole = go(run_key=KEY)
    with pytest.raises(Stop):
        go(stop=5, run_key=KEY, checkpoint=path)
    again = go(checkpoint=path, resume=True)
    assert all(torch.equal(value, again.state_dict[name]) for name, value in whole.state_dict.items())
    assert len(whole.snapshots) == len(again.snapshots) and whole.internal == again.internal
    for a, b in zip(whole.snapshots, again.snapshots, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    methods = Methods(averaging=Averaging(0.5))
    with pytest.raises(InputError, match="methods changed"):
        go(checkpoint=path, resume=True)


def test_views_are_averaged_before_the_clip_and_equal_views_change_nothing():
    plan = small_plan(
        "contributor", {1: 3, 2: 2, 3: 1, 5: 2}, steps=4, epsilon=30.0, clip_norm=1e6
    )  # nothing is clipped
    plain, record, _ = run_of(plan, data_of())
    same, seen, _ = run_of(plan, data_of(), Methods(augmentation=Augmentation(4, lambda x, u: x, 1)))
    np.testing.assert_allclose(plain, same, rtol=1e-4, atol=1e-4 * np.abs(plain).max())
    assert record["entries"] == seen["entries"]
    # opposite views of a linear loss cancel: clipped one by one they would not
    model = nn.Linear(3, 1, bias=False)
    recorder = Recorder(model.parameters())
    flip = Methods(augmentation=Augmentation(2, Opposite(), 1))
    fit(model, lambda out, y: out.squeeze(1), recorder, plan, data_of(), run_key=KEY, noise=Frozen(), methods=flip)
    assert np.abs(recorder.seen).max() < 1e-4


class Opposite:
    """Every second row the negative of the one before: the two views of an entry."""

    def __call__(self, inputs, numbers):
        sign = torch.ones(len(inputs))
        if len(inputs) % 2 == 0:
            sign[1::2] = -1
        return inputs * sign[:, None]


def test_transformations_that_mix_rows_or_draw_their_own_numbers_are_refused():
    for change in (lambda x, u: x + x.mean(0), lambda x, u: x + torch.randn_like(x)):
        with pytest.raises(InputError, match="mixes entries"):
            run_of(plan_of(), data_of(), Methods(augmentation=Augmentation(2, change, 1)))
    with pytest.raises(InputError, match="changed the shape"):
        run_of(plan_of(), data_of(), Methods(augmentation=Augmentation(2, lambda x, u: x[:, :2], 1)))
    with pytest.raises(InputError, match="need images"):
        run_of(plan_of(), data_of(), Methods(augmentation=Augmentation(2)))


def test_shifts_and_mirrors_move_pictures_and_their_masks_alike():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 1, 8, 8, generator=generator)
    u = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    moved = ShiftFlip(2)(x, u)
    assert moved.shape == x.shape and not torch.equal(moved, x)
    for row in range(6):
        dy, dx = (int(u[row, k] * 5) - 2 for k in (0, 1))
        want = torch.nn.functional.pad(x[row : row + 1], (2, 2, 2, 2), mode="reflect")[
            ..., 2 + dy : 10 + dy, 2 + dx : 10 + dx
        ]
        want = want.flip(-1) if u[row, -1] < 0.5 else want
        assert torch.equal(moved[row], want[0])
    volume = torch.rand(2, 1, 5, 6, 7, generator=generator)
    assert ShiftFlip(1)(volume, u[:2]).shape == volume.shape


@pytest.mark.parametrize("name", ["mlp", "cnn", "gru"])
def test_bias_aware_gradients_equal_their_definition(name):
    class Gru(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(1)
    if name == "mlp":
        model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)), torch.randn(9, 3)
    elif name == "cnn":
        layers = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 1)]
        model, x = nn.Sequential(*layers), torch.randn(9, 1, 6, 6)
    else:
        model, x = Gru(), torch.randn(9, 4, 3)
    model = model.double()
    x, y = x.double(), torch.arange(9, dtype=torch.float64) % 2
    ids = ["a", "a", "b", "c", "c", "c", "d", "e", "f"]
    data = ContributorDataset(TensorDataset(x, y), ids)
    plan = small_plan("contributor", {3: 1, 1: 6}, steps=1, epsilon=1000.0, noise_multiplier=0.5, clip_norm=1e6)
    a, radius = 0.3 / 0.02, 0.02
    recorder = Recorder(model.parameters())
    result = fit(
        model,
        loss,
        recorder,
        plan,
        data,
        run_key=KEY,
        noise=Frozen(),
        methods=Methods(sharpness=BiasAware(0.3, radius)),
    )
    drawn = set(range(6)) if result.internal["units"][0] == 6 else None
    parameters = list(model.parameters())

    def gradient(rows):
        total = loss(call_model(model, x[rows]), y[rows]).mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, parameters)])

    start = nn.utils.parameters_to_vector(parameters).detach().clone()
    want = torch.zeros_like(start)
    for person in "abcdef":
        rows = [i for i, who in enumerate(ids) if who == person]
        g = gradient(rows)
        with torch.no_grad():
            nn.utils.vector_to_parameters(start + radius * g / g.norm(), parameters)
        h = (1 - a) * g + a * gradient(rows)
        with torch.no_grad():
            nn.utils.vector_to_parameters(start, parameters)
        want += h
    assert drawn is not None, "the test needs a draw of everybody"
    np.testing.assert_allclose(recorder.seen[0] * plan.denominator, want.numpy(), rtol=1e-6, atol=1e-8)


def test_bias_aware_minimisation_of_strength_zero_is_the_plain_step():
    plain, _, _ = run_of(plan_of(), data_of(), hidden=True)
    zero, _, _ = run_of(plan_of(), data_of(), Methods(sharpness=BiasAware(0.0)), hidden=True)
    # the two ways round differently and make room for it in the clip, each for its own precision
    np.testing.assert_allclose(zero, plain, rtol=1e-5, atol=1e-9)


def test_previous_direction_goes_along_public_noise_and_comes_back():
    plan = plan_of()
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    before = [value.detach().clone() for value in model.parameters()]
    recorder = Recorder(model.parameters())
    methods, seen = Methods(sharpness=PreviousDirection(0.25)), []
    run = PrivateRun(model, loss, recorder, plan, data_of(), run_key=KEY, noise=SeededNoise(1), methods=methods)
    for batch in run:
        moved = torch.cat([(a - b).reshape(-1) for a, b in zip(model.parameters(), before, strict=True)]).detach()
        seen.append((batch.step, moved.double().numpy()))
        run.step(loss(model(batch.inputs), batch.targets))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    for step, moved in seen:
        if step == 0:
            assert np.abs(moved).max() == 0
            continue
        last = recorder.seen[step - 1]
        np.testing.assert_allclose(moved, 0.25 * last / np.linalg.norm(last), atol=1e-5)


def test_averages_follow_their_closed_form_and_snapshots_their_schedule():
    plan = plan_of()
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    path = []
    optimizer = make_optimizer("sgd", model.parameters(), lr=0.1)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer.register_step_post_hook(
        lambda *_: path.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    )
    methods = Methods(averaging=Averaging(0.6, warmup=False), snapshots=Snapshots(2, 0.5))
    result = fit(model, loss, optimizer, plan, data_of(), seed=1, methods=methods)
    want = 0.6**8 * start + sum(0.4 * 0.6 ** (7 - t) * path[t] for t in range(8))
    found = torch.cat([result.state_dict[name].reshape(-1) for name, _ in model.named_parameters()])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert Snapshots(2, 0.5).steps(8) == (6, 8)
    kept = [torch.cat([s[name].reshape(-1) for name, _ in model.named_parameters()]) for s in result.snapshots]
    assert torch.equal(kept[0], path[5]) and torch.equal(kept[1], path[7])


def test_automatic_clipping_equals_its_formula_in_both_engines():
    for engine in ("exact", "fast"):
        model = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(model.weight)
        x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.05]])
        data = ContributorDataset(TensorDataset(x, torch.zeros(2)), ["a", "b"])
        plan = small_plan("contributor", {1: 2}, steps=1, epsilon=1000.0, noise_multiplier=0.5, clip_norm=2.0)
        recorder = Recorder(model.parameters())
        fit(model, lambda out, y: out.squeeze(1), recorder, plan, data, run_key=KEY, noise=Frozen(),
            methods=Methods(clipping=Clipping("automatic", 0.1)), options=EngineOptions(engine=engine))  # fmt: skip
        want = 2 * (x[0] / 5.1 + x[1] / 0.15)
        np.testing.assert_allclose(recorder.seen[0] * plan.denominator, want.numpy(), rtol=1e-5)


def test_normalised_clipping_does_not_depend_on_the_norm_when_all_are_clipped():
    found = []
    for clip in (0.1, 0.7):
        plan = small_plan(
            "contributor", {1: 3, 2: 2, 3: 1, 5: 2}, steps=4, epsilon=30.0, noise_multiplier=1.5, clip_norm=clip
        )
        found.append(run_of(plan, data_of(), Methods(clipping=Clipping(normalise=True)))[0])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-8)


def test_dp_adam_learns_the_noise_of_every_step_from_the_run():
    plan = plan_of(clipping=QuantileClipping(), correlation="banded(3)")
    model = nn.Linear(3, 1)
    optimizer = make_optimizer("dp-adam", model.parameters(), lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["variance"]))
    result = fit(model, loss, optimizer, plan, data_of(), seed=1)
    ratio = plan.correlation.noise(plan.steps)
    want = (plan.gradient_noise * np.array(result.internal["clip_norm"]) * ratio / plan.denominator) ** 2
    np.testing.assert_allclose(seen, want, rtol=1e-9)
    lone = make_optimizer("dp-adam", [nn.Parameter(torch.zeros(1))], lr=0.1)
    lone.param_groups[0]["params"][0].grad = torch.ones(1)
    with pytest.raises(InputError, match="unknown"):
        lone.step()
