"""The clipped sum: equal to the oracle for any net, units, weights and chunks; never above the clip; NaN-proof."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from training_oracle import assert_matches, clip_and_sum, squared, unit_gradients

from confide.errors import InputError, RunError
from confide.training import ClippingEngine, EngineOptions
from confide.training.engine.chunks import chunks

LAWS = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def architectures(draw):
    """A random net over (entries, 4, 6): recurrent, convolutional or attention body, random tying and freezing."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "group", "linear", "layer", "tanh", "again"]))
        if kind == "conv":
            layers.append(
                nn.Conv1d(4, 4, 3, padding=1, groups=draw(st.sampled_from([1, 2, 4])), bias=draw(st.booleans()))
            )
        elif kind == "group":
            layers.append(nn.GroupNorm(draw(st.sampled_from([1, 2, 4])), 4))
        elif kind == "linear":
            layers.append(nn.Linear(6, 6, bias=draw(st.booleans())))
        elif kind == "layer":
            layers.append(nn.LayerNorm(6))
        elif kind == "again" and layers:
            layers.append(layers[draw(st.integers(0, len(layers) - 1))])
        else:
            layers.append(nn.Tanh())
    layers += [nn.Flatten(), nn.Linear(24, 2)]
    model = nn.Sequential(*layers)
    values = list(model.parameters())
    if draw(st.booleans()):
        values[draw(st.integers(0, len(values) - 1))].requires_grad_(False)
    return model if any(p.requires_grad for p in values) else nn.Sequential(nn.Flatten(), nn.Linear(24, 2))


@LAWS
@given(architectures(), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 10**6))
def test_any_net_any_units_any_chunks_equal_torch_func(model, counts, physical, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    units = np.repeat(np.arange(len(counts)), counts)
    weights, clips = rng.uniform(0.1, 2, len(units)), 10 ** rng.uniform(-2, 1, len(counts))
    inputs, targets = (torch.randn(len(units), 4, 6),), torch.randn(len(units))
    engine = assert_matches(
        model, squared, inputs, targets, units, weights, clips, physical=physical, check=False, rtol=1e-3
    )
    assert engine.whole_graph_parameters() == []


def recurrent_net():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Embedding(5, 4), nn.GRU(4, 4, batch_first=True)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
            self.shift = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            h, _ = self.rnn(self.embed(x))
            h, _ = self.attention(h, h, h, need_weights=False)
            return self.head(h + self.shift)

    return Net()


@pytest.mark.parametrize("physical", [1, 2, 3, 5, 100])
def test_physical_batches_give_the_sum_of_one_big_batch_and_never_split_a_unit_unseen(physical):
    torch.manual_seed(0)
    units = np.array([0, 0, 0, 0, 0, 1, 2, 2])
    weights, clips = np.array([0.2] * 5 + [1.0] + [0.5] * 2), np.array([0.01, 0.02, 5.0])
    inputs, targets = (torch.randint(0, 5, (8, 3)),), torch.randn(8)
    assert_matches(recurrent_net(), squared, inputs, targets, units, weights, clips, physical=physical, rtol=1e-3)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 10), st.booleans())
def test_chunks_hold_whole_units_or_parts_of_one(counts, size, single):
    units = np.repeat(np.arange(len(counts)), counts)
    parts = list(chunks(units, size, single=single))
    assert np.array_equal(np.concatenate([np.empty(0, int), *(c.rows for c in parts)]), np.arange(len(units)))
    for i, chunk in enumerate(parts):
        assert 1 <= len(chunk.rows) <= size
        assert np.array_equal(chunk.members[chunk.units], units[chunk.rows])
        assert len(chunk.members) == 1 or not (single or chunk.partial)
        follows = i > 0 and parts[i - 1].partial
        if chunk.partial or follows:
            assert len(chunk.members) == 1 and counts[chunk.members[0]] > size
        else:
            assert len(chunk.rows) == sum(counts[m] for m in chunk.members)
        assert chunk.partial == (i + 1 < len(parts) and parts[i + 1].members[0] == chunk.members[-1])


def test_units_out_of_order_are_refused():
    with pytest.raises(InputError, match="not in order"):
        list(chunks(np.array([0, 1, 0]), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("physical", [1, 64])
def test_what_one_unit_adds_never_exceeds_its_clip_even_after_rounding(dtype, physical):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(50, 40), nn.Tanh(), nn.Linear(40, 3)).to(dtype)
    engine = ClippingEngine(model, EngineOptions(physical_batch=physical))
    largest = 0.0
    for trial in range(40):
        clip = float(10 ** np.random.default_rng(trial).uniform(-6, 3))
        x = (torch.randn(2, 50) * 10 ** (trial % 5)).to(dtype)
        total = engine.clipped_sum(lambda rows, x=x: model(x[rows]).square().sum(1) * 1e4, [0, 0], [1, 1], [clip])
        norm = float(torch.stack([g.square().sum() for g in total.gradients]).sum().sqrt())
        largest = max(largest, norm / clip)
    assert 1 - 20 * float(torch.finfo(dtype).eps) - 1e-5 < largest <= 1.0


def test_small_gradients_pass_unchanged():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2), torch.randn(3, 3), torch.zeros(3)
    engine = ClippingEngine(model)
    total = engine.clipped_sum(lambda rows: squared(model(x[rows]), y[rows]), [0, 0, 1], [1.0, 0.5, 1.0], [1e6, 1e6])
    want = torch.autograd.grad((squared(model(x), y) * torch.tensor([1.0, 0.5, 1.0])).sum(), list(model.parameters()))
    assert total.factors.tolist() == [1.0, 1.0]
    for a, b in zip(total.gradients, want, strict=True):
        torch.testing.assert_close(a.float(), b)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("physical", [1, 2, 100])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_unit_that_is_not_finite_adds_exactly_zero_and_touches_nobody(general, physical, bad):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.table = nn.Linear(3, 2), nn.Embedding(2, 2)

        def forward(self, x):
            return self.head(x) * (self.table(torch.tensor([1])) if general else 1.0)

    torch.manual_seed(0)
    model = Shared() if general else nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.randn(6)
    units, weights, clips = np.array([0, 0, 1, 1, 1, 2]), np.full(6, 0.5), np.full(3, 0.3)
    good = np.array([0, 1, 5])
    clean_model = model
    gradients = unit_gradients(clean_model, squared, (x[good],), y[good], np.array([0, 0, 1]), weights[good])
    want, _ = clip_and_sum(gradients, clips[:2])
    x[3, 1] = bad
    engine = ClippingEngine(model, EngineOptions(physical_batch=physical))
    if general:
        engine.settle(demote=[engine.names.index("table.weight")])
        assert not engine.isolates_entries
    total = engine.clipped_sum(lambda rows: squared(model(x[rows]), y[rows]), units, weights, clips)
    assert total.nonfinite == 1 and np.isnan(total.norms[1]) and total.factors[1] == 0
    for a, b in zip(total.gradients, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_a_finite_loss_with_an_infinite_gradient_counts_as_zero_too():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    engine, x, shift = ClippingEngine(model), torch.ones(2, 1), torch.tensor([0.0, 1.0])
    total = engine.clipped_sum(lambda rows: (model(x[rows])[:, 0] + shift[rows]).abs().sqrt(), [0, 1], [1, 1], [1, 1])
    assert total.nonfinite == 1
    np.testing.assert_allclose(total.gradients[0].numpy(), [[0.5]], rtol=1e-6)


def test_nothing_added_gives_zeros():
    engine = ClippingEngine(nn.Linear(2, 1))
    total = engine.clipped_sum(lambda rows: torch.zeros(0), [], [], [])
    assert [tuple(g.shape) for g in total.gradients] == [(1, 2), (1,)]
    assert all(float(g.abs().max()) == 0 for g in total.gradients) and total.entries == 0


def test_single_entries_equal_opacus():
    opacus = pytest.importorskip("opacus")
    from opacus.grad_sample import GradSampleModule

    assert opacus
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    x, y = torch.randn(5, 1, 6, 6), torch.randint(0, 3, (5,))
    loss = nn.CrossEntropyLoss(reduction="none")
    total = ClippingEngine(model).clipped_sum(lambda rows: loss(model(x[rows]), y[rows]), range(5), [1] * 5, [0.2] * 5)
    wrapped = GradSampleModule(model, loss_reduction="sum")
    loss(wrapped(x), y).sum().backward()
    each = {str(i): p.grad_sample for i, p in enumerate(wrapped.parameters())}
    want, norms = clip_and_sum(each, [0.2] * 5)
    np.testing.assert_allclose(total.norms, norms, rtol=1e-4)
    for a, b in zip(total.gradients, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_an_input_overwritten_in_place_is_refused_not_used():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            h = self.first(x)
            out = self.second(h)
            h += 1.0
            return out

    model, x = Residual(), torch.randn(2, 3)
    with pytest.raises(InputError, match="in place"):
        ClippingEngine(model).clipped_sum(lambda rows: squared(model(x[rows]), x[rows, 0]), [0, 1], [1, 1], [1, 1])


def test_a_parameter_used_past_its_rule_is_never_lost_unseen():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.both = nn.Linear(3, 3), False

        def forward(self, x):
            out = self.layer(x)
            return out @ self.layer.weight if self.both else out

    model, x = Sneaky(), torch.randn(2, 3)
    engine = ClippingEngine(model)
    model.both = True
    with pytest.raises(InputError, match="used outside of the module"):
        engine.clipped_sum(lambda rows: squared(model(x[rows]), x[rows, 0]), [0, 1], [1, 1], [1, 1])


def test_a_split_unit_without_its_last_part_is_an_error():
    model, x = nn.Linear(2, 1), torch.randn(1, 2)
    engine = ClippingEngine(model)
    with engine.capture():
        losses = model(x).squeeze(1)
    engine.add(losses, [0], [1.0], [1.0], partial=True)
    with pytest.raises(RunError, match="last part"):
        engine.take()
