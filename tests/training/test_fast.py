"""The fast engine: really used, equal to torch.func and to the exact engine, never above the clip, also when traced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from training_oracle import clip_and_sum, squared, unit_gradients

from confide.errors import InputError
from confide.training import ClippingEngine, EngineOptions
from confide.training.engine import registry
from confide.training.engine.fast import FastClippingEngine, kernels, pieces
from confide.training.engine.fast.arithmetic import Arithmetic, squares
from confide.training.engine.fast.blocks import Blocks
from confide.training.engine.fast.compiled import CompiledStep, padded
from confide.training.engine.fast.cost import Shape
from confide.training.engine.fast.pieces import Pair
from confide.training.engine.fast.whole import WholeStep

LAWS = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
FAST = EngineOptions(engine="fast")


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


@st.composite
def models(draw):
    """A random net over (entries, 4, 6) with layers of every kind that the fast engine covers, some used twice."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "group", "linear", "layer", "rms", "attend", "tanh", "again"]))
        if kind == "again" and layers:
            layers.append(layers[draw(st.integers(0, len(layers) - 1))])
            continue
        made = {
            "conv": lambda: nn.Conv1d(
                4, 4, 3, padding=1, groups=draw(st.sampled_from([1, 2])), bias=draw(st.booleans())
            ),
            "group": lambda: nn.GroupNorm(2, 4),
            "linear": lambda: nn.Linear(6, 6, bias=draw(st.booleans())),
            "layer": lambda: nn.LayerNorm(6),
            "rms": lambda: nn.RMSNorm(6),
            "attend": Attend,
        }
        layers.append(made.get(kind, nn.Tanh)())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, draw(st.sampled_from([1, 3, 40]))))


def batch(counts, seed, dtype):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    units = np.repeat(np.arange(len(counts)), counts)
    weights, clips = rng.uniform(0.1, 2, len(units)), 10 ** rng.uniform(-2, 1, len(counts))
    return units, weights, clips, torch.randn(len(units), 4, 6, dtype=dtype), torch.randn(len(units), dtype=dtype)


def equals_torch_func(model, x, y, units, weights, clips):
    """Norms and clipped sum of a float64 model are those of torch.func, unit by unit."""
    want, norms = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights), clips)
    engine = ClippingEngine(model, FAST)
    total = engine.clipped_sum(lambda rows: squared(model(x[rows]), y[rows]), units, weights, clips)
    np.testing.assert_allclose(total.norms, norms, rtol=1e-9)
    for a, b in zip(total.gradients, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@LAWS
@given(models(), SIZES, st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_random_nets_equal_torch_func_eager_and_traced(model, counts, seed, dtype, traced):
    model = model.to(dtype)
    units, weights, clips, x, y = batch(counts, seed, dtype)
    want, norms = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights), clips)
    # where a unit's residual is near zero by chance, both sides are rounding: below 0.1 it may be 1e-6 / 1e-3 of it
    assume(dtype == torch.float64 or norms.min() > 0.1)
    engine = ClippingEngine(model, FAST)
    assert isinstance(engine, FastClippingEngine)
    if traced:
        step = CompiledStep(engine, squared, compiler=False)
        got = step(x, y, torch.as_tensor(units), torch.as_tensor(weights), torch.as_tensor(clips))
        found, seen = got.gradients, got.norms.numpy()
    else:
        total = engine.clipped_sum(lambda rows: squared(model(x[rows]), y[rows]), units, weights, clips)
        found, seen = total.gradients, total.norms
    assert engine.why_exact is None
    close = 1e-9 if dtype == torch.float64 else 2e-4
    np.testing.assert_allclose(seen, norms, rtol=10 * close, atol=close)
    scale = max(float(w.abs().max()) for w in want)
    for name, a, b in zip(engine.names, found, want, strict=True):
        np.testing.assert_allclose(a.double(), b, rtol=10 * close, atol=close * scale, err_msg=name)


@pytest.mark.slow
@LAWS
@given(SIZES, st.integers(0, 10**6))
def test_bfloat16_autocast_stays_inside_the_clip_and_near_float32(counts, seed):
    units, weights, clips, x, y = batch(counts, seed, torch.float32)
    # outputs are below 5.2 (24 normalised values of norm sqrt(24), weights and bias below 24 ** -0.5), so no residual
    # is near zero, where rounding to bfloat16 would be more than a tenth of it (1 in 100,000 entries with y alone)
    y = y.abs() + 6
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(24, 3))
    _, norms = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights), clips)
    engine = ClippingEngine(model, FAST)
    step = CompiledStep(
        engine, lambda out, target: squared(out.float(), target), autocast=torch.bfloat16, compiler=False
    )
    args = (torch.as_tensor(weights), torch.as_tensor(clips))
    got = step(x, y, torch.as_tensor(units), *args)
    np.testing.assert_allclose(got.norms, norms, rtol=0.1)
    for i, clip in enumerate(clips):  # one unit alone never adds more than its clip
        alone = torch.zeros_like(args[1])
        alone[i] = clip
        part = step(x, y, torch.as_tensor(units), args[0], alone)
        size = float(torch.stack([g.double().square().sum() for g in part.gradients]).sum().sqrt())
        assert size <= clip


@LAWS
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 70), st.integers(1, 30), st.integers(0, 10**6))
def test_the_ghost_norm_is_never_below_what_the_sum_adds(units, rows, width, out, seed):
    torch.manual_seed(seed)
    a, g = torch.randn(units, rows, width) * 10.0 ** torch.randint(-3, 3, (1,)), torch.randn(units, rows, out)
    if rows > 1:
        a[:, 1], g[:, 1] = a[:, 0], -g[:, 0] * (1 + 1e-6)  # nearly cancels
    blocks = Blocks.of(np.arange(units), units, torch.device("cpu"))
    pair = Pair(a, g, blocks, Arithmetic(torch.float32, tf32=False))
    bound = pair.squared().sqrt()
    for u in range(units):
        weight = torch.zeros(units)
        weight[u] = 1.0
        assert float(pair.weighted(weight).double().norm()) <= float(bound[u]) * (1 + 2.0**-20)


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_squares_are_within_the_stated_share(width, seed):
    torch.manual_seed(seed)
    values = torch.randn(3, width) * 10.0 ** torch.randint(-4, 4, (3, 1))
    exact = values.double().square().sum(1).sqrt()
    got = squares(values, torch.float32).sqrt()
    assert float(((exact - got) / exact).max()) <= Arithmetic(torch.float32, tf32=False).shrink / 1.7


def test_padding_adds_exactly_nothing_and_keeps_one_shape():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3), torch.randn(5)
    units, weights = np.array([0, 0, 1, 2, 2]), np.array([0.5, 0.5, 1.0, 0.5, 0.5])
    want, _ = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights), [0.1] * 3)
    rows, filled, real = padded(units, 3, entries=8, most=5)
    assert real == 5 and len(rows) == 8 and filled.max() == 5
    weight, clip = torch.zeros(8), torch.zeros(6, dtype=torch.float64)
    weight[:real], clip[:3] = torch.as_tensor(weights).float(), 0.1
    step = CompiledStep(ClippingEngine(model, FAST), squared, compiler=False)
    got = step.run(x[rows], y[rows], torch.as_tensor(filled), weight, clip, None)
    for a, b in zip(got.gradients, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_traced_step_reads_parameters_as_they_are_now():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4)
    step = CompiledStep(ClippingEngine(model, FAST), squared, compiler=False)
    args = (x, y, torch.tensor([0, 0, 1, 1]), torch.ones(4), torch.full((2,), 1e9, dtype=torch.float64))
    before = step(*args).gradients[0].clone()
    with torch.no_grad():
        model.weight.mul_(3.0)
    live = torch.autograd.grad(squared(model(x), y).sum(), [model.weight])[0]
    after = step(*args).gradients[0]
    torch.testing.assert_close(after, live, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after)


class Scaled(nn.Module):
    """A layer of the user's own, with a rule of the user's own."""

    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return x * self.by


def test_what_is_not_covered_runs_by_the_exact_engine_and_says_why(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @registry.register(Scaled)
    def scaled(call, module, x):
        out, tap = call.tap(x * module.by.detach())
        gradient = lambda saved, grads, wanted: {"by": (saved[0] * grads[0]).flatten(1, -2).sum(1)}  # noqa: E731
        call.record((tap,), (x,), gradient, {"by": module.by}, axis=0)
        return out

    model = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(24, 2)).double()
    units, weights, clips, x, y = batch([1, 3, 2], 4, torch.float64)
    engine = ClippingEngine(model, FAST)
    with engine.capture():
        model(x)
    assert engine.why_exact == "0 has no rule in the fast engine"
    engine.discard()
    equals_torch_func(model, x, y, units, weights, clips)
    assert WholeStep(engine, squared).why_not == "0 has no rule in the fast engine"


def test_a_loop_over_time_is_covered_and_not_compiled():
    model = nn.LSTM(3, 4, batch_first=True)
    engine = ClippingEngine(model, FAST)
    with engine.capture():
        model(torch.randn(2, 3, 3))
    assert engine.why_exact is None and "a loop over time" in WholeStep(engine, squared).why_not


def test_the_choice_is_named_and_bad_names_are_refused():
    assert type(ClippingEngine(nn.Linear(2, 1), EngineOptions(engine="exact"))) is ClippingEngine
    assert isinstance(ClippingEngine(nn.Linear(2, 1)), FastClippingEngine)
    assert isinstance(ClippingEngine(nn.Linear(2, 1), FAST), FastClippingEngine)
    with pytest.raises(InputError, match="unknown engine"):
        EngineOptions(engine="quick")


def test_the_cost_model_takes_the_ghost_norm_for_heads_and_keeps_gradients_of_early_convolutions():
    cpu = torch.device("cpu")
    assert Shape(16, 4, 1024, 1024).ghost(cpu, torch.float32)
    assert not Shape(16, 4096, 288, 32).ghost(cpu, torch.float32)


def test_an_input_that_needs_a_gradient_changes_nothing():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(4, 3)
    y, found = torch.randn(4), []
    for wants in (False, True):
        mine = x.clone().requires_grad_(wants)
        engine = ClippingEngine(model, FAST)
        found.append(engine.clipped_sum(lambda r, v=mine: squared(model(v[r]), y[r]), range(4), [1] * 4, [0.1] * 4))
    for a, b in zip(found[0].gradients, found[1].gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 4, 2], [1, 1]])
def test_many_filters_one_unit_at_a_time_equal_torch_func(counts):
    units, weights, clips, x, y = batch(counts, 3, torch.float64)
    model = nn.Sequential(
        nn.Conv1d(4, 64, 3, padding=1), nn.ReLU(), nn.Conv1d(64, 66, 3, stride=2, dilation=2, padding=1), nn.Flatten(),
        nn.Linear(132, 2),
    ).double()  # fmt: skip
    equals_torch_func(model, x, y, units, weights, clips)


@pytest.mark.parametrize("least", [0, 10**9])
def test_sequences_of_ragged_units_equal_torch_func(least, monkeypatch):
    monkeypatch.setattr(kernels, "UNIT_PRODUCT", least)  # a call for each unit, or one for each size
    units, weights, clips, _, y = batch([1, 3, 2, 1], 4, torch.float64)
    x = torch.randn(len(units), 50, 4, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5), nn.Flatten(), nn.Linear(250, 2)).double()
    equals_torch_func(model, x, y, units, weights, clips)


@pytest.mark.parametrize("few", [0, 10**9])
def test_rows_of_ragged_units_equal_torch_func(few, monkeypatch):
    monkeypatch.setattr(pieces, "FEW_ROWS", few)  # Grams by size, or one of all rows
    units, weights, clips, _, y = batch([1, 3, 2, 1], 5, torch.float64)
    x = torch.randn(len(units), 40, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    equals_torch_func(model, x, y, units, weights, clips)


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@LAWS
@given(SIZES, PAIRS, PAIRS, st.tuples(st.integers(0, 2), st.integers(0, 2)), PAIRS, st.integers(0, 10**6), st.data())
def test_images_with_channels_last_equal_torch_func(counts, kernel, stride, padding, dilation, seed, data):
    units, weights, clips, _, y = batch(counts, seed, torch.float64)
    x = torch.randn(len(units), 3, 9, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 6, kernel, stride, padding, dilation), nn.GroupNorm(3, 6), nn.Flatten(), nn.LazyLinear(2),
    ).double()  # fmt: skip
    model(x)
    model = model.to(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:  # windows as a matrix never, as measured, always
        patch.setattr(kernels, "COLUMNS", data.draw(st.sampled_from([0, kernels.COLUMNS, 10**9])))
        equals_torch_func(model, x, y, units, weights, clips)


def test_sums_stay_as_they_are_when_a_step_takes_several_batches():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.randn(6)
    engine = ClippingEngine(model, FAST)
    one, units = np.full(2, 0.5), np.arange(2)
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        with engine.capture():
            losses = squared(model(x[rows]), y[rows])
        engine.add(losses, units, np.ones(2), one)
        parts.append(engine.take())
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        with engine.capture():
            losses = squared(model(x[rows]), y[rows])
        engine.add(losses, units, np.ones(2), one)
    whole = engine.take(native=True)
    for i, value in enumerate(whole.gradients):
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, sum(part.gradients[i] for part in parts), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 1000])
def test_lengths_of_rows_are_those_of_float64(width: int, dtype: torch.dtype) -> None:
    from confide.training.engine.fast.pieces import row_squares

    rows = torch.randn(7, 1, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    rows[2, 0, 0] = float("inf")
    rows[3, 0, 1] = float("nan")
    found = row_squares(rows[:, :, : width - 1])  # rows that do not lie side by side too
    want = rows[:, :, : width - 1].double().square().sum((1, 2))
    assert found.dtype == torch.float64
    assert torch.allclose(found, want, rtol=1e-13, atol=0, equal_nan=True)


@pytest.mark.parametrize("counts", [[2, 2, 2], [1, 3, 2]])
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 3, 11), (1, 2, 7), ((2, 1), (2, 3), 9)])
def test_windows_that_do_not_overlap_are_a_linear_map(counts, kernel, stride, side, monkeypatch):
    """A traced step takes them so; the sums are those of torch.func, in the layout of the weight."""
    monkeypatch.setattr(kernels, "PATCHES", 0)
    seen = []
    whole = kernels.patches
    monkeypatch.setattr(kernels, "patches", lambda *args: seen.append(whole(*args)) or seen[-1])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, kernel, stride), nn.GroupNorm(1, 5), nn.Flatten())
    units = np.repeat(np.arange(3), counts)
    x, y, weights = torch.randn(6, 3, side, side), torch.randn(6), np.linspace(0.2, 1.0, 6)
    want, norms = clip_and_sum(unit_gradients(model, squared, (x,), y, units, weights), clips := np.full(3, 2.0))
    step = CompiledStep(ClippingEngine(model, FAST), squared, compiler=False)
    got = step(x, y, torch.as_tensor(units), torch.as_tensor(weights).float(), torch.as_tensor(clips))
    assert [found is not None for found in seen] == [True]
    np.testing.assert_allclose(got.norms, norms, rtol=1e-4)
    for a, b in zip(got.gradients, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_overlapping_padded_or_grouped_windows_are_not():
    images, grads = torch.zeros(1, 2, 8, 8), torch.zeros(1, 256, 1, 1)
    free = {"stride": 8, "padding": 0, "dilation": 1, "groups": 1}
    shape = torch.Size((1024, 2, 8, 8))
    assert kernels.patches(images, grads, shape, free) is not None
    for change in ({"stride": 4}, {"padding": 1}, {"padding": "same"}, {"dilation": 2}, {"groups": 2}):
        assert kernels.patches(images, grads, shape, {**free, **change}) is None
    assert kernels.patches(images, grads, torch.Size((16, 2, 8, 8)), free) is None  # too few weights to be worth it
