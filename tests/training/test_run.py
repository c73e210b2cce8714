"""The loop: neighbours differ by what was claimed, noise has the scale of the plan, control flow looks at nobody."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from training_oracle import Recorder, ZeroNoise, small_plan

from confide.errors import InputError, RunError
from confide.mechanisms import SeededNoise
from confide.training import ContributorDataset, EngineOptions, PrivateRun, fit, make_optimizer, noise_seconds

COUNTS = [1, 2, 5, 5, 1, 2, 1, 3]


def data_of(counts=COUNTS, scale=100.0, seed=0, drop=None, bad=None, **settings):
    """Entries with gradients far above the clip; `drop` leaves one contributor out, `bad` makes one's entry NaN."""
    rng = np.random.default_rng(seed)
    ids = [f"person {i}" for i, k in enumerate(counts) for _ in range(k)]
    x = torch.tensor(rng.normal(size=(len(ids), 3)) * scale, dtype=torch.float32)
    y = torch.tensor(rng.integers(0, 2, len(ids)), dtype=torch.float32)
    if bad is not None:
        x[ids.index(f"person {bad}")] = float("nan")
    keep = [i for i, name in enumerate(ids) if name != f"person {drop}"]
    return ContributorDataset(TensorDataset(x[keep], y[keep]), [ids[i] for i in keep], **settings)


def loss(out, y):
    return nn.functional.binary_cross_entropy_with_logits(out.squeeze(1), y, reduction="none") * 50


def sums(plan, data, key=bytes(32), noise=None, **settings):
    """Run with frozen coins and noise; return (pre-noise sum of each step, record, noise calls)."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer, noise = Recorder(model.parameters()), noise or ZeroNoise()
    result = fit(model, loss, optimizer, plan, data, run_key=key, noise=noise, **settings)
    return np.array(optimizer.seen) * plan.denominator, result.internal, noise.calls


def high_rate_plan(strategy, **settings):
    counts = {1: 3, 2: 2, 3: 1, 5: 2}
    return small_plan(strategy, counts, steps=8, noise_multiplier=1.5, epsilon=30.0, clip_norm=0.7, **settings)


@pytest.mark.parametrize("strategy", ["contributor", "contributor(2)", "individual", "scale", "uniform", "truncate(2)"])
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(person=st.integers(0, len(COUNTS) - 1), key=st.binary(min_size=32, max_size=32))
def test_neighbours_differ_by_the_claimed_sensitivity_and_in_nothing_else(strategy, person, key):
    plan = high_rate_plan(strategy)
    with_them, full, calls = sums(plan, data_of(), key)
    without, rest, calls_without = sums(plan, data_of(drop=person), key)
    drawn = np.array(full["entries"]) - np.array(rest["entries"])
    units = np.array(full["units"]) - np.array(rest["units"])
    clip = plan.clip_norm * plan.class_of(COUNTS[person]).clip_norm
    moved = np.linalg.norm(with_them - without, axis=1)
    assert (moved <= units * clip * (1 + 1e-6)).all()
    if plan.clip_unit == "contributor":
        assert set(units) <= {0, 1} and (moved <= clip * (1 + 1e-6)).all()
    else:
        assert np.array_equal(units, drawn) and drawn.max(initial=0) <= plan.entry_limit
    assert calls == calls_without and len(with_them) == len(without) == plan.steps
    assert all(scale == plan.noise_multiplier * plan.clip_norm for _, scale in calls)


def test_the_bound_of_the_neighbour_test_is_reached():
    """Otherwise the test above would also pass with a clip far below the claim."""
    plan = high_rate_plan("contributor")
    largest = 0.0
    for person in range(len(COUNTS)):
        with_them, _, _ = sums(plan, data_of())
        without, _, _ = sums(plan, data_of(drop=person))
        largest = max(largest, float(np.linalg.norm(with_them - without, axis=1).max()))
    assert 0.999 * plan.clip_norm < largest <= plan.clip_norm * (1 + 1e-6)


@pytest.mark.parametrize("strategy", ["contributor", "individual"])
def test_a_person_with_an_infinite_gradient_stays_within_the_bound_and_changes_no_control_flow(strategy):
    plan = high_rate_plan(strategy)
    broken, record, calls = sums(plan, data_of(bad=2))
    without, rest, calls_without = sums(plan, data_of(drop=2))
    units = np.array(record["units"]) - np.array(rest["units"])
    assert (np.linalg.norm(broken - without, axis=1) <= units * plan.clip_norm * (1 + 1e-6)).all()
    assert record["nonfinite"] > 0 and rest["nonfinite"] == 0
    assert np.isfinite(broken).all() and calls == calls_without


def test_stop_on_nonfinite_names_the_message_internal():
    with pytest.raises(RunError, match="internal"):
        sums(high_rate_plan("contributor"), data_of(bad=2), on_nonfinite="stop")


@pytest.mark.parametrize("noise", ["default", "secure"])
def test_noise_has_the_standard_deviation_of_the_plan_in_every_coordinate(noise):
    plan = small_plan("individual", steps=12, noise_multiplier=0.8, clip_norm=2.5)
    data = data_of()
    nobody = np.zeros(data.index.n_contributors, dtype=bool)
    model = nn.Linear(3, 1000)
    optimizer = Recorder(model.parameters())
    # a fixed key: with a new one each time some bound below (4.4 to 5.4 standard errors) fails in one of 20,000 runs
    settings = {"admitted": nobody, "noise": noise, "run_key": bytes(32)}
    fit(model, lambda out, y: out.square().mean(1), optimizer, plan, data, **settings)
    noises = np.array(optimizer.seen) * plan.denominator / (0.8 * 2.5)
    assert noises.shape == (12, 4000)
    # 48,000 values: the standard error of the standard deviation is 0.3 per cent, of a mean 0.5 per cent.
    assert abs(noises.std() - 1) < 0.015 and abs(noises.mean()) < 0.02
    assert np.abs(noises.std(axis=1) - 1).max() < 0.06
    assert np.abs(np.corrcoef(noises) - np.eye(12)).max() < 0.08, "steps share noise"


def test_the_noise_is_added_once_a_step_whatever_the_physical_batch():
    plan = high_rate_plan("contributor")
    outcomes = []
    for physical in (1, 2, 100):
        source = SeededNoise(4)
        source.calls = []
        outcomes.append(sums(plan, data_of(), noise=source, options=EngineOptions(physical_batch=physical))[0])
    np.testing.assert_allclose(outcomes[0], outcomes[2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(outcomes[1], outcomes[2], rtol=1e-5, atol=1e-5)


def test_empty_draws_are_steps_with_noise_alone_and_give_no_batch():
    plan, data = small_plan("individual", steps=6), data_of()
    model = nn.Linear(3, 1)
    optimizer = Recorder(model.parameters())
    run = PrivateRun(model, loss, optimizer, plan, data, admitted=np.zeros(8, dtype=bool), seed=3)
    assert [batch.step for batch in run] == []
    result = run.result()
    assert result.steps == 6 and result.internal["loss"] == [None] * 6
    assert len(optimizer.seen) == 6 and all(np.abs(g).max() > 0 for g in optimizer.seen)


def test_people_who_are_not_admitted_are_dropped_with_the_denominator_unchanged():
    plan = high_rate_plan("contributor")
    mask = np.ones(8, dtype=bool)
    mask[3] = False
    dropped, _, _ = sums(plan, data_of(), admitted=mask)
    absent, _, _ = sums(plan, data_of(drop=3))
    np.testing.assert_allclose(dropped, absent, rtol=1e-5, atol=1e-6)


def test_contributor_units_weigh_every_drawn_entry_by_one_over_the_number_drawn():
    plan = small_plan("contributor", {3: 1}, steps=3, epsilon=1000.0, noise_multiplier=0.5, clip_norm=1e6)
    data = data_of([3], scale=1.0)
    grads, _, _ = sums(plan, data)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = data.batch(np.arange(3))
    want = torch.autograd.grad(loss(model(x), y).mean(), list(model.parameters()))
    drawn = [g for g in grads if np.abs(g).max() > 0]
    assert drawn
    for g in drawn:
        np.testing.assert_allclose(g, torch.cat([w.reshape(-1) for w in want]).numpy(), rtol=1e-5)


def test_budgets_choose_the_class_of_each_contributor():
    plan = small_plan("scale", {(1, 1.0): 10, (1, 4.0): 10}, budgets=(1.0, 4.0), steps=4)
    ids = [f"c{i}" for i in range(20)]
    levels = {name: 1.0 if i < 10 else 4.0 for i, name in enumerate(ids)}
    tensors = TensorDataset(torch.randn(20, 3), torch.zeros(20))
    by_name = ContributorDataset(tensors, ids, budgets=levels)
    by_entry = ContributorDataset(tensors, ids, budgets=[levels[name] for name in ids])
    model = nn.Linear(3, 1)
    runs = [PrivateRun(model, loss, Recorder(model.parameters()), plan, data, seed=1) for data in (by_name, by_entry)]
    assert np.array_equal(runs[0]._clips.now, runs[1]._clips.now)
    clips = dict(zip(by_name.index.ids.tolist(), runs[0]._clips.now, strict=True))
    assert clips["c0"] == plan.class_of(1, 1.0).clip_norm < clips["c15"] == plan.class_of(1, 4.0).clip_norm
    with pytest.raises(InputError, match="two budgets"):
        ContributorDataset(tensors, ["a"] * 20, budgets=[1.0] * 19 + [4.0])
    with pytest.raises(InputError, match="have no budget"):
        ContributorDataset(tensors, ids, budgets={"c0": 1.0})


def own_loop(run, model):
    for batch in run:
        run.step(loss(model(batch.inputs), batch.targets))
    return run.result()


@pytest.mark.parametrize("physical", [None, 2])
def test_an_own_loop_equals_fit(physical):
    plan, options = high_rate_plan("contributor"), EngineOptions(physical_batch=physical)
    outcomes = []
    for train in ("fit", "own"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = make_optimizer("adam", model.parameters(), lr=0.1)
        if train == "fit":
            result = fit(model, loss, optimizer, plan, data_of(), seed=5, options=options)
        else:
            result = own_loop(PrivateRun(model, loss, optimizer, plan, data_of(), seed=5, options=options), model)
        assert result.testing_only
        outcomes.append(result)
    for name, value in outcomes[0].state_dict.items():
        assert torch.equal(value, outcomes[1].state_dict[name])
    assert outcomes[0].internal == outcomes[1].internal


def test_two_runs_share_no_randomness_and_are_not_for_testing():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = make_optimizer("sgd", model.parameters(), lr=0.1)
        results.append(fit(model, loss, optimizer, small_plan(), data_of()))
    assert not any(r.testing_only for r in results)
    assert not torch.equal(results[0].state_dict["weight"], results[1].state_dict["weight"])


def test_mistakes_in_an_own_loop_are_told():
    def fresh():
        model = nn.Linear(3, 1)
        return model, PrivateRun(model, loss, make_optimizer("sgd", model.parameters(), 0.1), plan, data_of(), seed=0)

    plan = high_rate_plan("contributor")
    model, run = fresh()
    with pytest.raises(InputError, match="no losses were given back"):
        for _ in run:
            pass

    def stepping(run, model):
        for batch in run:
            run.step(loss(model(batch.inputs), batch.targets))
            run.optimizer.step()

    def averaging(run, model):
        for batch in run:
            run.step(loss(model(batch.inputs), batch.targets).mean())

    for body, words in ((stepping, r"optimizer\.step\(\) was called"), (averaging, 'reduction="none"')):
        model, run = fresh()
        with pytest.raises(InputError, match=words):
            body(run, model)
    model, run = fresh()
    with pytest.raises(InputError, match="no batch"):
        run.step(torch.zeros(1))
    model, run = fresh()
    for batch in run:
        run.step(loss(model(batch.inputs), batch.targets))
        break
    with pytest.raises(InputError, match="of 8 steps were made"):
        run.result()


def test_optimizers_that_cannot_work_are_refused():
    plan, data, model = small_plan(), data_of(), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    other = nn.Linear(3, 1)
    for optimizer, words in [
        (torch.optim.LBFGS(model.parameters()), "LBFGS"),
        (torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1), "does not have"),
        (torch.optim.SGD(model[0].parameters(), lr=0.1), "misses trainable"),
    ]:
        with pytest.raises(InputError, match=words):
            PrivateRun(model, loss, optimizer, plan, data)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": "secur"}, "did you mean 'secure'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite"),
        ({"seed": 1, "run_key": bytes(32)}, "both a seed and a run key"),
        ({"seed": -1}, "seed"),
        ({"resume": True}, "resume needs"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"admitted": np.ones(3, dtype=bool)}, "wrong shape"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    model = nn.Linear(3, 1)
    with pytest.raises(InputError, match=words):
        PrivateRun(model, loss, make_optimizer("sgd", model.parameters(), 0.1), small_plan(), data_of(), **settings)


def test_data_sets_that_do_not_fit_are_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(InputError, match="no access by position"):
        ContributorDataset(Stream(), ["a"])
    with pytest.raises(InputError, match="2 contributor ids for 3 entries"):
        ContributorDataset(TensorDataset(torch.zeros(3, 1), torch.zeros(3)), ["a", "b"])
    with pytest.raises(InputError, match="missing"):
        ContributorDataset(TensorDataset(torch.zeros(2, 1), torch.zeros(2)), ["a", ""])
    with pytest.raises(InputError, match="not a pair"):
        ContributorDataset(TensorDataset(torch.zeros(2, 1)), ["a", "b"]).batch(np.array([0]))


def test_any_map_style_data_set_several_inputs_and_dictionaries():
    class Items(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"x": torch.full((3,), float(i)), "scale": torch.tensor(2.0)}, torch.tensor(1.0)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x, scale):
            return self.layer(x) * scale[:, None]

    plan = small_plan("contributor", {2: 3}, steps=3, epsilon=50.0)
    tensors = TensorDataset(torch.randn(6, 3), torch.ones(6), torch.ones(6))
    for dataset in (Items(), tensors):
        model = Named()
        data = ContributorDataset(dataset, ["a", "a", "b", "b", "c", "c"])
        result = fit(model, loss, make_optimizer("sgd", model.parameters(), 0.1), plan, data, seed=1)
        assert sum(result.internal["entries"]) > 0


def test_start_is_called_once_before_the_first_batch_and_progress_after_every_step():
    plan, events, model = small_plan(steps=3), [], nn.Linear(3, 1)
    fit(
        model, loss, make_optimizer("sgd", model.parameters(), 0.1), plan, data_of(),
        on_start=lambda: events.append("start"), progress=lambda done, steps: events.append((done, steps)),
    )  # fmt: skip
    assert events == ["start", (1, 3), (2, 3), (3, 3)]


def test_a_refused_model_never_reaches_the_start():
    model = nn.Linear(3, 1)
    run = PrivateRun(
        model, lambda out, y: loss(out, y).mean(), make_optimizer("sgd", model.parameters(), 0.1), small_plan(),
        data_of(), on_start=lambda: pytest.fail("the budget was started"),
    )  # fmt: skip
    with pytest.raises(InputError, match='reduction="none"'):
        next(iter(run))


def test_training_learns():
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(600, 3)), dtype=torch.float32)
    data = ContributorDataset(TensorDataset(x, (x[:, 0] > 0).float()), [f"c{i // 3}" for i in range(600)])
    plan = small_plan("individual", {3: 200}, steps=60, epsilon=8.0)
    model = nn.Linear(3, 1)
    result = fit(model, loss, make_optimizer("sgd", model.parameters(), 1.0), plan, data, seed=1)
    assert np.mean(result.internal["loss"][-10:]) < 0.5 * np.mean(result.internal["loss"][:2])


def test_named_optimizers():
    value = [nn.Parameter(torch.ones(2))]
    assert isinstance(make_optimizer("adamw", value, 0.1, weight_decay=0.1), torch.optim.AdamW)
    for name, options, words in [("adm", {}, "did you mean 'adam'"), ("sgd", {"betas": 1}, "option does not fit")]:
        with pytest.raises(InputError, match=words):
            make_optimizer(name, value, 0.1, **options)
    with pytest.raises(InputError, match="above 0"):
        make_optimizer("sgd", value, 0.0)


def test_dp_adam_takes_the_noise_out_of_the_second_moment():
    torch.manual_seed(0)
    value = nn.Parameter(torch.zeros(2000))
    optimizer = make_optimizer("dp-adam", [value], 0.01, noise_variance=4.0)
    signal = torch.full((2000,), 3.0)
    for _ in range(300):
        value.grad = signal + 2.0 * torch.randn(2000)
        optimizer.step()
    # E[g^2] - variance = 9: the normalised step is signal / 3 = 1, not 3 / sqrt(13) = 0.83.
    assert abs(float(-value.detach().mean()) / (300 * 0.01) - 1) < 0.05


def test_the_price_of_secure_noise_can_be_told_beforehand():
    # the least of five: another process may take the CPU away within one measurement, hardly within each of five
    secure, plain = (min(noise_seconds(1000, 10, noise=kind) for _ in range(5)) for kind in ("secure", "default"))
    assert secure > plain > 0
