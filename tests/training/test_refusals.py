"""Models and losses that cannot be private are refused before the first step, by name, with the way out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_oracle import engine_for, squared

from confide.errors import InputError
from confide.training import ClippingEngine
from confide.training.rehearsal import Example, rehearse

X = (torch.randn(4, 3),)
Y = torch.zeros(4)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "where", "remedy"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), r"1 \(BatchNorm2d\)", r"GroupNorm\(4, 8\)"),
        (nn.Sequential(nn.Linear(3, 8), nn.Sequential(nn.SyncBatchNorm(8))), r"1\.0 \(SyncBatchNorm\)", "GroupNorm"),
        (nn.Sequential(nn.Linear(3, 8), nn.LazyBatchNorm1d()), r"1 \(LazyBatchNorm1d\)", "GroupNorm"),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "the model itself", "track_running_stats=False"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), r"0 \(Embedding\)", "max_norm=None"),
        (nn.Embedding(3, 2, scale_grad_by_freq=True), "Embedding", "scale_grad_by_freq=False"),
        (nn.Sequential(nn.LazyLinear(3)), "0.weight", "random inputs first"),
        (nn.Linear(2, 2, dtype=torch.complex64), "weight", "realify"),
        (nn.Linear(2, 2).requires_grad_(False), "", "requires_grad"),
    ],
)
def test_modules_are_refused_with_path_and_replacement(model, where, remedy):
    with pytest.raises(InputError) as error:
        ClippingEngine(model)
    import re

    assert re.search(where, str(error.value)) and re.search(remedy, str(error.value))
    assert error.value.exit_code == 2


class Mixes(nn.Module):
    """Normalises over the batch by hand, somewhere in the middle."""

    def __init__(self, how):
        super().__init__()
        self.first, self.how, self.last = nn.Linear(3, 3), how, nn.Linear(3, 2)
        self.inner = nn.Module()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        h = self.first(x)
        if self.how == "output":
            h = h - h.mean(0)
        if self.how == "gradient":
            mean = h.mean(0)
            h = h + (mean - mean.detach())
        if self.how == "buffer":
            self.seen += x.detach().mean(0)
        return self.last(h)


@pytest.mark.parametrize(
    ("how", "message"),
    [("output", "changed the output"), ("gradient", "changed the gradient"), ("buffer", "remembers data")],
)
def test_mixing_models_are_refused_by_kind(how, message):
    with pytest.raises(InputError, match=message):
        engine_for(Mixes(how), squared, X, Y)


def test_the_module_that_mixes_is_named():
    class OverBatch(nn.Module):
        def forward(self, x):
            return x / x.norm(dim=0)

    with pytest.raises(InputError, match=r"1 \(OverBatch\)"):
        engine_for(nn.Sequential(nn.Linear(3, 3), OverBatch(), nn.Linear(3, 1)), squared, X, Y)


def test_recurrence_along_the_wrong_axis_is_found():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 2)  # batch_first forgotten: entries are taken for time steps

        def forward(self, x):
            return self.rnn(x)[0]

    with pytest.raises(InputError, match=r"rnn \(GRU\)"):
        engine_for(Wrong(), squared, (torch.randn(4, 5, 3),), Y)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda out, y: squared(out, y).mean(), 'reduction="none"'),
        (lambda out, y: squared(out, y[:1]) + torch.zeros(9), "fails on random inputs"),
        (lambda out, y: (out - y[:, None]).square(), 'reduction="none"'),
        (lambda out, y: squared(out, y)[:2], "one value for each entry"),
        (lambda out, y: squared(out, y) / squared(out, y).mean(), "the loss mixes entries"),
        (lambda out, y: squared(out, y).tolist(), "the loss is a list"),
        (lambda out, y: squared(out.detach(), y), "do not depend on any trainable parameter"),
    ],
)
def test_losses_that_are_not_one_value_an_entry_are_refused(loss, message):
    with pytest.raises(InputError, match=message):
        rehearse(ClippingEngine(nn.Linear(3, 2)), loss, Example(X[0], Y, values=False), CPU)


def test_dropout_and_other_randomness_are_fine_and_the_callers_random_numbers_go_on_untouched():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x + 0.1 * torch.randn_like(x))

    for model in (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)), Noisy()):
        before = torch.get_rng_state()
        engine = engine_for(model, squared, X, Y)
        assert torch.equal(before, torch.get_rng_state())
        assert engine.whole_graph_parameters() == []


def test_layers_that_draw_random_numbers_in_another_order_keep_their_rule():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True)
            self.attention = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            h = self.rnn(x)[0]
            return self.attention(h, h, h, need_weights=False)[0]

    engine = engine_for(Net(), squared, (torch.randn(4, 5, 3),), Y)
    assert engine.whole_graph_parameters() == []


def test_values_of_a_declared_example_are_used_when_random_ones_do_not_fit():
    model = nn.Sequential(nn.Embedding(50, 2), nn.Flatten(), nn.Linear(4, 1))

    def picky(out, y):
        return torch.where(y > 5, squared(out, y), torch.full_like(y, float("nan")))

    tokens = torch.arange(10).reshape(5, 2)
    with pytest.raises(InputError, match="not finite on random inputs"):
        rehearse(ClippingEngine(model), picky, Example(tokens, Y, values=False), CPU)
    rehearse(ClippingEngine(model), picky, Example(tokens, torch.full((5,), 7.0)), CPU)
    with pytest.raises(InputError, match="fewer than two"):
        rehearse(ClippingEngine(model), picky, Example(tokens[:1], torch.full((1,), 7.0)), CPU)
