"""Losses of masks and numbers through the engine: neighbours differ by the claimed sensitivity, no entry sees another.

The losses are those that a study file names (`confide.studies.targets.loss_of`), run by both engines.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from training_oracle import Recorder, ZeroNoise, assert_matches, small_plan

from confide import nn
from confide.data import ColumnSpec
from confide.errors import InputError
from confide.studies.targets import loss_of
from confide.studies.training_section import Loss, TrainingSection
from confide.training import Augmentation, ContributorDataset, EngineOptions, Methods, ShiftFlip, fit

COUNTS = [1, 2, 3, 2]
KEY = bytes(range(32))
SIZE = 8


def study(classes=(0, 1), number=False, **loss):
    column = ColumnSpec(role="label", type="mask", classes=classes, folder="m")
    if number:
        column = ColumnSpec(role="label", type="real", bounds=(0, 1))
    training = TrainingSection(loss=Loss(**loss) if loss else None)
    return SimpleNamespace(columns={"mask": column}, training=training)


CASES = {
    "dice": study(rule="dice"),
    "cross-entropy": study(rule="cross-entropy"),
    "dice, three classes": study((0, 1, 2), rule="dice"),
    "cross-entropy, three classes": study((0, 1, 2), rule="cross-entropy"),
    "cross-entropy, declared weights": study((0, 1, 2), rule="cross-entropy", weights=(0.2, 1.0, 5.0)),
}


def outputs_of(name):
    return 3 if "three" in name or "weights" in name else 1


def net_of(name, kind="unet", dims=2):
    more = {"width": 2, "levels": 1, "groups": 1}
    net = nn.build(kind, (1,) + (SIZE,) * dims, outputs_of(name), **more)
    with torch.no_grad():
        for value in net.parameters():  # gradients well above the clip, so that a missing one is seen
            value.mul_(1.5)
    return net


def data_of(classes, drop=None, bad=None, same=False, dims=2):
    rng = np.random.default_rng(0)
    ids = [f"person {i}" for i, k in enumerate(COUNTS) for _ in range(k)]
    x = torch.tensor(rng.normal(size=(len(ids), 1, *[SIZE] * dims)), dtype=torch.float32)
    y = torch.tensor(rng.integers(0, classes, (len(ids), *[SIZE] * dims)), dtype=torch.uint8)
    y[0] = 0  # an empty mask
    if bad is not None:
        x[ids.index(f"person {bad}")] = float("nan")
    keep = [i for i, name in enumerate(ids) if name != f"person {drop}"]
    return ContributorDataset(TensorDataset(x[keep], y[keep]), [ids[i] for i in keep])


@cache
def plan_of(strategy):
    counts = {1: 1, 2: 2, 3: 1}
    return small_plan(strategy, counts, steps=3, noise_multiplier=1.5, epsilon=60.0, clip_norm=0.02)


def run_of(name, plan, data, engine, methods=None):
    model, noise = net_of(name), ZeroNoise()
    recorder = Recorder(model.parameters())
    options = EngineOptions(engine=engine)
    result = fit(
        model, loss_of(CASES[name]), recorder, plan, data, run_key=KEY, noise=noise, options=options, methods=methods
    )
    return np.array(recorder.seen), result.internal, noise.calls


@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("name", CASES)
def test_leaving_one_person_out_moves_every_sum_by_at_most_the_clip_and_nothing_else(name, engine):
    classes = max(outputs_of(name), 2)
    for strategy in ("contributor", "individual"):
        plan = plan_of(strategy)
        full, record, calls = run_of(name, plan, data_of(classes), engine)
        rest, without, other = run_of(name, plan, data_of(classes, drop=2), engine)
        units = np.array(record["units"]) - np.array(without["units"])
        clip = plan.clip_norm * plan.class_of(3).clip_norm
        moved = np.linalg.norm(full - rest, axis=1) * plan.denominator
        assert (moved <= units * clip * (1 + 1e-6)).all(), "more than the claimed sensitivity"
        assert moved.max() > 0.5 * clip, "the person was there, and was clipped"
        assert units.max() <= (1 if strategy == "contributor" else 3)
        assert calls == other, "noise is drawn in the same places and sizes"


def test_a_picture_that_is_not_finite_stays_within_the_bound():
    plan = plan_of("contributor")
    broken, record, _ = run_of("dice", plan, data_of(2, bad=2), "fast")
    rest, without, _ = run_of("dice", plan, data_of(2, drop=2), "fast")
    units = np.array(record["units"]) - np.array(without["units"])
    assert (np.linalg.norm(broken - rest, axis=1) * plan.denominator <= units * plan.clip_norm * (1 + 1e-6)).all()
    assert np.isfinite(broken).all() and record["nonfinite"] > 0


@pytest.mark.parametrize("kind", ["unet", "monet"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["dice", "cross-entropy, declared weights"])
def test_clipped_sums_of_people_equal_those_of_plain_autograd(name, kind, dims):
    x, y = data_of(max(outputs_of(name), 2), dims=dims).dataset.tensors
    units, weights = np.repeat(np.arange(len(COUNTS)), COUNTS), np.repeat(1 / np.array(COUNTS), COUNTS)
    net = net_of(name, kind, dims)
    assert_matches(net, loss_of(CASES[name]), (x,), y, units, weights, np.full(len(COUNTS), 0.05), rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_an_entry_depends_on_that_entry_alone(name):
    classes = max(outputs_of(name), 2)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, outputs_of(name), 5, 6, generator=generator)
    target = torch.randint(0, classes, (4, 5, 6), generator=generator).to(torch.uint8)
    loss = loss_of(CASES[name])
    whole = loss(logits, target)
    assert whole.shape == (4,)
    for row in range(4):
        alone = loss(logits[row : row + 1], target[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-6, atol=1e-7)
        others = [i for i in range(4) if i != row]
        changed, masks = logits.clone(), target.clone()
        changed[row], masks[row] = 7.0, classes - 1
        assert torch.equal(loss(changed, masks)[others], whole[others]), "another entry's loss moved"


def test_losses_equal_their_formulas():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 3, (2, 4, 5), generator=generator)
    weights = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    log_p = logits.log_softmax(1)
    each = -log_p.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(nn.pixel_cross_entropy(logits, target), each.mean((1, 2)))
    want = (each * weights[target]).sum((1, 2)) / 20  # by the number of pixels, never by the sum of their weights
    torch.testing.assert_close(nn.pixel_cross_entropy(logits, target, (0.2, 1.0, 5.0)), want)
    marked = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    q = logits.softmax(1)
    both, each_sum = (q * marked).sum((2, 3)), (q + marked).sum((2, 3))
    torch.testing.assert_close(nn.soft_dice(logits, target), (1 - (2 * both + 1) / (each_sum + 1)).mean(1))
    one, mask = logits[:, :1], (target > 0).long()
    p = one[:, 0].sigmoid()
    want = -(mask * p.log() + (1 - mask) * (1 - p).log()).mean((1, 2))
    torch.testing.assert_close(nn.pixel_cross_entropy(one, mask), want)
    torch.testing.assert_close(nn.pixel_cross_entropy(one, mask[:, None]), want)
    for wrong in (target[:, :3], target[:1]):
        with pytest.raises(InputError, match="masks of shape"):
            nn.pixel_cross_entropy(logits, wrong)


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 5.0)])
def test_a_value_that_is_no_class_adds_nothing_and_stops_nothing(weights):
    """With and without weights, also -100, which PyTorch ignores by itself; the divisor stays the number of pixels."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 3, 4, 5, generator=generator, requires_grad=True)
    target = torch.randint(0, 3, (6, 4, 5), generator=generator)
    clean = nn.pixel_cross_entropy(logits, target, weights)
    pixel = nn.pixel_cross_entropy(logits[:, :, :1, :1], target[:, :1, :1], weights) / 20
    for values in ((-100, -1, 3, 255, 2**40, -(2**40)), (float("nan"), float("inf"), -float("inf"), -1.0, 0.5, 1e30)):
        bad = target.to(torch.float64 if isinstance(values[0], float) else torch.int64)
        bad[:, 0, 0] = torch.tensor(values, dtype=bad.dtype)
        found = nn.pixel_cross_entropy(logits, bad, weights)
        torch.testing.assert_close(found, clean - pixel)
        (slope,) = torch.autograd.grad(found.sum(), logits)
        assert slope.isfinite().all() and (slope[:, :, 0, 0] == 0).all()
        assert nn.soft_dice(logits, bad).isfinite().all()


@pytest.mark.parametrize("weights", [None, (0.2, 5.0)])
def test_a_value_that_is_neither_no_nor_yes_adds_nothing(weights):
    logits = torch.randn(5, 1, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = torch.arange(100).reshape(5, 4, 5).remainder(2).double()
    bad = target.clone()
    bad[:, 0, 0] = torch.tensor([-100.0, -1, 2, float("inf"), float("nan")])
    want = nn.pixel_cross_entropy(logits, target, weights)
    want = want - nn.pixel_cross_entropy(logits[:, :, :1, :1], target[:, :1, :1], weights) / 20
    torch.testing.assert_close(nn.pixel_cross_entropy(logits, bad, weights), want)
    target[:, 0, 0] = 0
    assert torch.equal(nn.soft_dice(logits, bad), nn.soft_dice(logits, target))
    bytes_ = torch.full((5, 4, 5), 255, dtype=torch.uint8)
    assert (nn.pixel_cross_entropy(logits, bytes_, weights) == 0).all()


@pytest.mark.parametrize("loss", [nn.pixel_cross_entropy, nn.soft_dice])
def test_masks_of_another_shape_are_refused_and_not_read_in_another_order(loss):
    one, three = torch.zeros(6, 1, 5, 7), torch.zeros(6, 3, 5, 7)
    for shape in ((6, 5, 7), (6, 1, 5, 7)):
        for dtype in (torch.float32, torch.float64, torch.int64, torch.uint8, torch.uint16, torch.bool):
            torch.testing.assert_close(loss(one, torch.ones(shape, dtype=dtype)), loss(one, torch.ones(shape)))
    assert loss(three, torch.zeros(6, 5, 7)).shape == (6,)
    for outputs in (one, three):
        for shape in ((6, 7, 5), (6, 35), (6, 1, 7, 5), (7, 6, 5), (1, 6, 5, 7), (210,), (5, 7)):
            with pytest.raises(InputError, match="masks of shape"):
                loss(outputs, torch.zeros(shape))


def test_numbers_have_a_loss_of_their_own_and_no_mean_of_others():
    for rule, power in (("squared", 2), ("absolute", 1)):
        loss = loss_of(study(number=True, rule=rule))
        found = loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 0.0]))
        torch.testing.assert_close(found, torch.tensor([0.5**power, 3.0**power]))


@pytest.mark.parametrize("engine", ["exact", "fast"])
def test_meshes_with_edges_of_their_own_stay_apart_and_within_the_clip(engine):
    """Leaving one person's meshes out moves each sum by at most the clip: edges of one mesh reach no other."""
    rng = np.random.default_rng(0)
    ids = [f"person {i}" for i, k in enumerate(COUNTS) for _ in range(k)]
    packed = np.zeros((len(ids), 9, 4), dtype=np.float32)
    for row in packed:
        vertices, edges = rng.integers(2, 5), rng.integers(1, 5)
        row[:vertices, :3], row[:vertices, 3] = 3 * rng.normal(size=(vertices, 3)), 1
        row[4 : 4 + edges, :2], row[4 : 4 + edges, 3] = rng.integers(0, vertices, (edges, 2)), 1
    x, y = torch.from_numpy(packed), torch.tensor(rng.uniform(-1, 1, len(ids)), dtype=torch.float32)
    plan, loss, seen = plan_of("individual"), loss_of(study(number=True)), []
    for left_out in (None, 2):
        keep = [i for i, name in enumerate(ids) if name != f"person {left_out}"]
        data = ContributorDataset(TensorDataset(x[keep], y[keep]), [ids[i] for i in keep])
        net = nn.graphsage((9, 4), 1, width=4, layers=2, vertices=4)
        recorder, noise = Recorder(net.parameters()), ZeroNoise()
        options = EngineOptions(engine=engine)
        result = fit(net, loss, recorder, plan, data, run_key=KEY, noise=noise, options=options)
        seen.append((np.array(recorder.seen), np.array(result.internal["units"]), noise.calls))
    (full, units, calls), (rest, without, other) = seen
    clip = plan.clip_norm * plan.class_of(3).clip_norm
    moved = np.linalg.norm(full - rest, axis=1) * plan.denominator
    assert (moved <= (units - without) * clip * (1 + 1e-6)).all() and moved.max() > 0.5 * clip
    assert calls == other


def test_clipped_sums_of_packed_meshes_equal_those_of_plain_autograd():
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(8, 9, 4)), dtype=torch.float32)
    x[:, 4:, :2] = torch.tensor(rng.integers(0, 4, (8, 5, 2)), dtype=torch.float32)
    y = torch.tensor(rng.uniform(-1, 1, 8), dtype=torch.float32)
    net = nn.graphsage((9, 4), 1, width=4, layers=2, vertices=4)
    units, weights = np.repeat(np.arange(len(COUNTS)), COUNTS), np.repeat(1 / np.array(COUNTS), COUNTS)
    loss = loss_of(study(number=True))
    assert_matches(net, loss, (x,), y, units, weights, np.full(len(COUNTS), 0.05), rtol=1e-3, plain=True)


def test_views_move_masks_with_their_pictures():
    """A mask that is the picture itself stays the picture itself under shifts and mirrors."""
    x = torch.zeros(3, 1, SIZE, SIZE)
    x[:, :, 2:5, 1:4] = 1
    data = ContributorDataset(TensorDataset(x, x[:, 0].to(torch.uint8)), ["a", "b", "c"])
    seen = []

    def watching(outputs, targets):
        seen.append(targets.clone())
        return nn.soft_dice(outputs, targets)

    net = net_of("dice")
    plan = small_plan("contributor", {1: 3}, steps=1, noise_multiplier=1.0, epsilon=200.0)
    inputs = []
    net.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    methods = Methods(augmentation=Augmentation(4, ShiftFlip(2)))
    fit(net, watching, Recorder(net.parameters()), plan, data, run_key=KEY, noise=ZeroNoise(), methods=methods)
    moved, masks = inputs[-1], seen[-1]
    assert moved.shape[0] % 4 == 0 and torch.equal(moved[:, 0], masks.to(moved.dtype))
    assert not torch.equal(masks[0], masks[1]) or not torch.equal(masks[0], masks[2])
