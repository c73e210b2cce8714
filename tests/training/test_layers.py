"""Every layer kind gives the unit gradients that torch.func gives, alone and tied, for ragged units with weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_oracle import assert_matches, squared

from confide.nn import WSConv1d, WSConv2d, WSConv3d
from confide.training.engine.fast import FastClippingEngine

UNITS = np.array([0, 0, 0, 1, 2, 2, 3])
WEIGHTS = np.array([1 / 3, 1 / 3, 1 / 3, 1.0, 0.5, 0.5, 1.0])
CLIPS = np.array([0.05, 10.0, 0.3, 0.01])
N = len(UNITS)


class Take(nn.Module):
    """Run a module and keep the first part of its output."""

    def __init__(self, inner, **call):
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, *x):
        out = self.inner(*x, **self.call)
        return out[0] if isinstance(out, tuple) else out


class TimeFirst(nn.Module):
    """Hand (time, entries, features) to a module that wants it so."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        out = self.inner(x.transpose(0, 1))
        out = out[0] if isinstance(out, tuple) else out
        return out.transpose(0, 1)


class SelfAttention(nn.Module):
    def __init__(self, time_first=False, causal=False, **options):
        super().__init__()
        self.causal, self.time_first = causal, time_first
        self.attention = nn.MultiheadAttention(4, 2, batch_first=not time_first, **options)

    def forward(self, x):
        x = x.transpose(0, 1) if self.time_first else x
        steps = x.shape[0 if self.time_first else 1]
        mask = torch.triu(torch.ones(steps, steps, dtype=torch.bool), 1) if self.causal else None
        out, _ = self.attention(x, x, x, attn_mask=mask, need_weights=self.causal)
        return out.transpose(0, 1) if self.time_first else out


class CrossAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, q, k):
        return self.attention(q, k, k, need_weights=False)[0]


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class LowRank(nn.Module):
    """An adapter whose factors are parameters of its own, beside a frozen layer."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(4, 5).requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.empty(2, 4)), nn.Parameter(torch.empty(5, 2))

    def forward(self, x):
        return self.base(x) + 2.0 * F.linear(F.linear(x, self.down), self.up)


class ClassToken(nn.Module):
    """Fused attention with a class token and positions that are parameters of the user's own module."""

    def __init__(self, causal=False):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.empty(1, 1, 4)), nn.Parameter(torch.empty(1, 6, 4))
        self.qkv, self.out, self.causal = nn.Linear(4, 12), nn.Linear(4, 4), causal

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))


class SpellsThenStates(nn.Module):
    """A convolution before, and a head behind a recurrent layer of whose steps only some are used."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv1d(4, 3, 3), nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(torch.tanh(self.conv(x)).transpose(1, 2))[0][:, 1])


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(4, 4, 3)

    def forward(self, x):
        return self.both(x, x.flip(-1))


def floats(*shape):
    return lambda: (torch.randn(N, *shape),)


def tokens(high, *shape):
    return lambda: (torch.randint(0, high, (N, *shape)),)


CASES = {
    "linear": (lambda: nn.Linear(3, 2), floats(3)),
    "linear without bias": (lambda: nn.Linear(3, 2, bias=False), floats(3)),
    "linear 3d": (lambda: nn.Linear(3, 2), floats(4, 3)),
    "linear 4d": (lambda: nn.Linear(3, 2), floats(2, 4, 3)),
    "linear time first": (lambda: TimeFirst(nn.Linear(3, 2)), floats(4, 3)),
    "mlp, inplace": (lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), floats(3)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), floats(4, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3, padding=1, dilation=2), floats(2, 6, 7)),
    "conv2d same": (lambda: nn.Conv2d(2, 4, (2, 4), padding="same"), floats(2, 5, 5)),
    "conv2d valid": (lambda: nn.Conv2d(2, 4, 2, padding="valid", bias=False), floats(2, 5, 5)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 4, 3, padding=(1, 2), padding_mode="reflect"), floats(2, 5, 5)),
    "conv2d circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2, padding_mode="circular"), floats(2, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), floats(4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), padding_mode="replicate", padding=1), floats(2, 4, 4, 4)),
    "standardised 1d": (lambda: WSConv1d(4, 6, 3, stride=2, groups=2, padding="valid"), floats(4, 9)),
    "standardised 2d": (lambda: WSConv2d(2, 4, 3, padding=1, stride=2), floats(2, 6, 7)),
    "standardised 2d same": (lambda: WSConv2d(2, 4, (2, 3), padding="same", gain=False, bias=False), floats(2, 5, 5)),
    "standardised 2d centred": (lambda: WSConv2d(2, 4, 3, centre_only=True, bias=False), floats(2, 5, 5)),
    "standardised 3d": (lambda: WSConv3d(2, 4, 2, dilation=2), floats(2, 4, 4, 4)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, output_padding=1), floats(4, 5)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, dilation=2), floats(3, 4, 4)),
    "transposed 2d, wide output padding": (
        lambda: nn.ConvTranspose2d(3, 4, 2, stride=1, dilation=3, padding=1, output_padding=2),
        floats(3, 4, 4),
    ),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=2), floats(2, 2, 3, 2)),
    "embedding": (lambda: nn.Embedding(7, 3), tokens(7, 5)),
    "embedding with padding": (lambda: nn.Embedding(7, 3, padding_idx=1), tokens(7, 5)),
    "embedding, one token": (lambda: nn.Embedding(7, 3), tokens(7)),
    "bag mean": (lambda: nn.EmbeddingBag(7, 3, padding_idx=2), tokens(7, 5)),
    "bag sum": (lambda: nn.EmbeddingBag(7, 3, mode="sum"), tokens(7, 5)),
    "bag max": (lambda: nn.EmbeddingBag(7, 3, mode="max"), tokens(7, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), floats(4, 5, 5)),
    "group norm without space": (lambda: nn.GroupNorm(2, 4), floats(4)),
    "layer norm": (lambda: nn.LayerNorm((3, 4)), floats(2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), floats(3, 4)),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), floats(3, 4, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), floats(3, 4)),
    "rnn cell": (lambda: Cell(nn.RNNCell(3, 4, nonlinearity="relu")), floats(4, 3)),
    "lstm cell": (lambda: Cell(nn.LSTMCell(3, 4)), floats(4, 3)),
    "gru cell": (lambda: Cell(nn.GRUCell(3, 4, bias=False)), floats(4, 3)),
    "rnn": (lambda: Take(nn.RNN(3, 4, num_layers=2, batch_first=True)), floats(5, 3)),
    "lstm": (lambda: Take(nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)), floats(5, 3)),
    "lstm projected": (lambda: Take(nn.LSTM(3, 4, proj_size=2, batch_first=True)), floats(5, 3)),
    "gru time first": (lambda: TimeFirst(nn.GRU(3, 4)), floats(5, 3)),
    "attention": (lambda: SelfAttention(), floats(5, 4)),
    "attention time first": (lambda: SelfAttention(time_first=True), floats(5, 4)),
    "attention with extras": (lambda: SelfAttention(causal=True, add_bias_kv=True, add_zero_attn=True), floats(5, 4)),
    "cross attention": (lambda: CrossAttention(), lambda: (torch.randn(N, 3, 4), torch.randn(N, 5, 4))),
    "cross attention, other widths": (
        lambda: CrossAttention(kdim=3, vdim=3),
        lambda: (torch.randn(N, 2, 4), torch.randn(N, 5, 3)),
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.0, batch_first=True),
        floats(5, 4),
    ),
    "low rank": (LowRank, floats(3, 4)),
    "class token": (ClassToken, floats(5, 4)),
    "class token, causal": (lambda: ClassToken(causal=True), floats(5, 4)),
    "recurrent, used in part": (SpellsThenStates, floats(4, 7)),
    "bilinear": (Pairs, floats(3, 4)),
    "prelu": (lambda: nn.Sequential(nn.Conv1d(4, 3, 3), nn.PReLU(3)), floats(4, 6)),
}
# Kinds whose few parameters go through torch.func or the whole graph on purpose.
GENERAL = {"bag max", "transposed 2d, wide output padding"}


@pytest.mark.parametrize("name", CASES)
def test_unit_gradients_equal_torch_func(name):
    torch.manual_seed(len(name))
    make, draw = CASES[name]
    model, inputs = make(), draw()
    for value in model.parameters():
        nn.init.normal_(value, std=0.5)
    engine = assert_matches(model, squared, inputs, torch.randn(N), UNITS, WEIGHTS, CLIPS)
    if name not in GENERAL:
        assert engine.whole_graph_parameters() == [], "a registered rule should have covered every parameter"
    if isinstance(engine, FastClippingEngine):
        assert engine.why_exact is None, "the fast engine should have covered every layer of the first one"
        engine.discard()
        assert engine.why_exact is None


class Tied(nn.Module):
    """A language model in small: the embedding is the output layer too, and one block is used twice."""

    def __init__(self, functional=False):
        super().__init__()
        self.embed, self.block = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.functional = functional
        self.out = nn.Linear(4, 6, bias=False)
        if functional:
            del self.out
        else:
            self.out.weight = self.embed.weight

    def forward(self, x):
        h = self.block(torch.tanh(self.block(self.embed(x))))
        return nn.functional.linear(h, self.embed.weight) if self.functional else self.out(h)


@pytest.mark.parametrize("functional", [False, True])
def test_tied_weights_are_summed_over_all_their_uses_before_the_norm(functional):
    torch.manual_seed(0)
    model = Tied(functional)
    engine = assert_matches(model, squared, (torch.randint(0, 6, (N, 3)),), torch.randn(N), UNITS, WEIGHTS, CLIPS)
    slow = [engine.names[i] for i in engine.whole_graph_parameters()]
    assert slow == (["embed.weight"] if functional else [])


class Own(nn.Module):
    """Parameters owned directly by a user's module, a buffer-free scale inside another module, a positional table."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.scale, self.start = nn.Parameter(torch.ones(4)), nn.Parameter(torch.randn(1, 1, 4))
        self.position, self.inner = nn.Embedding(6, 4), nn.Linear(4, 4)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = torch.cat([self.start.expand(len(x), -1, -1), x], 1)
        x = x + self.position(torch.arange(x.shape[1]))
        return self.drop(self.inner(x) * self.scale.exp())


def test_parameters_of_the_users_own_modules_and_shared_tables():
    torch.manual_seed(0)
    engine = assert_matches(Own(), squared, (torch.randn(N, 5, 4),), torch.randn(N), UNITS, WEIGHTS, CLIPS)
    assert [engine.names[i] for i in engine.whole_graph_parameters()] == ["position.weight"]


def test_random_layers_inside_a_module_with_own_parameters_take_the_exact_way():
    torch.manual_seed(0)
    model, x = Own(dropout=0.5), torch.randn(4, 5, 4)
    from training_oracle import engine_for

    engine = engine_for(model, squared, (x,), torch.zeros(4))
    assert {"scale", "start"} <= {engine.names[i] for i in engine.whole_graph_parameters()}
    torch.manual_seed(5)
    got = engine.clipped_sum(lambda rows: squared(model(x[rows]), torch.zeros(len(rows))), range(4), [1] * 4, [1e9] * 4)
    torch.manual_seed(5)
    want = torch.autograd.grad(squared(model(x), torch.zeros(4)).sum(), list(model.parameters()))
    for a, b in zip(got.gradients, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_stay_out_and_need_no_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    engine = assert_matches(model, squared, floats(3)(), torch.randn(N), UNITS, WEIGHTS, CLIPS)
    assert engine.names == ["2.weight", "3.weight", "3.bias", "4.weight", "4.bias"]


@pytest.mark.parametrize("minor", [False, True])
def test_entries_flattened_together_with_their_frames(minor):
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            n, t = x.shape[:2]
            x = x.transpose(0, 1) if minor else x
            h = self.head(self.conv(x.flatten(0, 1)).mean(-1))
            return h.reshape(t, n, 2).transpose(0, 1) if minor else h.reshape(n, t, 2)

    torch.manual_seed(0)
    engine = assert_matches(Frames(), squared, (torch.randn(N, 5, 2, 6),), torch.randn(N), UNITS, WEIGHTS, CLIPS)
    assert engine.whole_graph_parameters() == []


def test_packed_sequences():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, bidirectional=True, batch_first=True)

        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths + 1, batch_first=True, enforce_sorted=False)
            out, (hidden, _) = self.rnn(packed)
            padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
            return torch.cat([padded.flatten(1), hidden.transpose(0, 1).flatten(1)], 1)

    torch.manual_seed(0)
    inputs = (torch.randn(N, 5, 3), torch.tensor([4, 0, 2, 3, 1, 1, 4]))
    engine = assert_matches(Packed(), squared, inputs, torch.randn(N), UNITS, WEIGHTS, CLIPS, plain=True)
    assert engine.whole_graph_parameters() == []


def test_weight_normalised_layers_take_the_general_way():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    assert_matches(model, squared, floats(3)(), torch.randn(N), UNITS, WEIGHTS, CLIPS)


@pytest.mark.parametrize("cell", [nn.RNN, nn.LSTM, nn.GRU])
def test_the_recurrent_loop_gives_what_pytorch_gives(cell):
    torch.manual_seed(0)
    from confide.training import ClippingEngine

    model, x = cell(3, 4, num_layers=2, bidirectional=True, batch_first=True), torch.randn(5, 6, 3)
    native, last = model(x)
    with ClippingEngine(model).capture():
        ours, end = model(x)
    torch.testing.assert_close(ours, native)
    torch.testing.assert_close(end, last)


def test_modules_get_their_own_forward_back():
    from confide.training import ClippingEngine

    model = nn.Sequential(nn.Linear(3, 2))
    with ClippingEngine(model).capture():
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])
