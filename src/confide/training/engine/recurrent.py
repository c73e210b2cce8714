"""Recurrent cells and modules: every matrix product of every time step is a linear layer with a shared weight.

The modules run here as a loop over time in plain PyTorch (native kernels do not give the gradients of the gates), with
the same results up to rounding; packed sequences keep each entry's state after its own last step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from confide.training.engine.linear import linear_gradient, tapped_linear
from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Tap

State = tuple[Tensor, ...]


def _advance(kind: str, gates_x: Tensor, gates_h: Tensor, state: State) -> State:
    """Return the next (hidden, ...) from the input and hidden parts of the gates."""
    if kind == "LSTM":
        i, f, g, o = (gates_x + gates_h).chunk(4, -1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(cell), cell
    if kind == "GRU":
        rx, zx, nx = gates_x.chunk(3, -1)
        rh, zh, nh = gates_h.chunk(3, -1)
        update = torch.sigmoid(zx + zh)
        new = torch.tanh(nx + torch.sigmoid(rx + rh) * nh)
        return ((1 - update) * new + update * state[0],)
    total = gates_x + gates_h
    return ((torch.relu(total) if kind == "RNN_RELU" else torch.tanh(total)),)


@register(nn.RNNCell, nn.LSTMCell, nn.GRUCell)
def cell(call: Call, module: Any, input: Tensor, hx: Any = None) -> Any:
    """nn.RNNCell, nn.LSTMCell, nn.GRUCell."""
    if isinstance(module, nn.LSTMCell | nn.GRUCell):
        kind = "LSTM" if isinstance(module, nn.LSTMCell) else "GRU"
    else:
        kind = f"RNN_{module.nonlinearity.upper()}"
    single = input.dim() == 1
    x = input.unsqueeze(0) if single else input
    if hx is None:
        zero = x.new_zeros(len(x), module.hidden_size)
        state: State = (zero, zero) if kind == "LSTM" else (zero,)
    else:
        state = tuple(hx) if kind == "LSTM" else (hx,)
        state = tuple(part.unsqueeze(0) for part in state) if single else state
    gates_x = tapped_linear(call, x, module.weight_ih, module.bias_ih, axis=0, label="input")
    gates_h = tapped_linear(call, state[0], module.weight_hh, module.bias_hh, axis=0, label="hidden")
    new = _advance(kind, gates_x, gates_h, state)
    new = tuple(part.squeeze(0) for part in new) if single else new
    return new if kind == "LSTM" else new[0]


def _direction(
    call: Call, module: Any, x: Tensor, state: State, suffix: str, lengths: Tensor | None
) -> tuple[Tensor, State]:
    """Run one layer in one direction over x (time, entries, features)."""

    def own(name: str) -> Any:
        return getattr(module, f"{name}_{suffix}", None)

    gates = tapped_linear(call, x, own("weight_ih"), own("bias_ih"), axis=1, label=f"input {suffix}")
    weight, bias, project = own("weight_hh"), own("bias_hh"), own("weight_hr")
    order = range(len(x) - 1, -1, -1) if suffix.endswith("_reverse") else range(len(x))
    outputs: dict[int, Tensor] = {}
    before: list[Tensor] = []
    taps: list[Tap] = []
    long: list[Tensor] = []
    long_taps: list[Tap] = []
    for t in order:
        before.append(state[0])
        gates_h, tap = call.tap(F.linear(state[0], weight.detach(), None if bias is None else bias.detach()))
        taps.append(tap)
        new = _advance(module.mode, gates[t], gates_h, state)
        if project is not None:
            long.append(new[0])
            hidden, tap = call.tap(F.linear(new[0], project.detach()))
            long_taps.append(tap)
            new = (hidden, *new[1:])
        if lengths is not None:
            alive = (lengths > t)[:, None]
            new = tuple(torch.where(alive, value, old) for value, old in zip(new, state, strict=True))
        state = new
        outputs[t] = state[0]
    named = {"weight": weight, "bias": bias}
    call.record(taps, before, linear_gradient, named, axis=0, label=f"hidden {suffix}")
    if project is not None:
        call.record(long_taps, long, linear_gradient, {"weight": project}, axis=0, label=f"projection {suffix}")
    return torch.stack([outputs[t] for t in range(len(x))]), state


@register(nn.RNN, nn.LSTM, nn.GRU)
def recurrent(call: Call, module: Any, input: Any, hx: Any = None) -> Any:
    """nn.RNN, nn.LSTM, nn.GRU: layers, both directions, projections, dropout, packed sequences."""
    packed = input if isinstance(input, PackedSequence) else None
    lengths: Tensor | None = None
    if packed is not None:
        x, sizes = pad_packed_sequence(packed)  # in the order of the entries, not of their lengths
        lengths = sizes.to(x.device)
    elif input.dim() == 3:
        x = input.transpose(0, 1) if module.batch_first else input
    else:
        x = input.unsqueeze(1)
    single = packed is None and input.dim() == 2
    state = _initial(module, x, hx, single)
    directions = 2 if module.bidirectional else 1
    last: list[State] = []
    for layer in range(module.num_layers):
        results = []
        for direction in range(directions):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            number = layer * directions + direction
            out, end = _direction(call, module, x, tuple(part[number] for part in state), suffix, lengths)
            results.append(out)
            last.append(end)
        x = torch.cat(results, -1) if directions == 2 else results[0]
        if module.dropout and module.training and layer < module.num_layers - 1:
            x = F.dropout(x, module.dropout, True)
    end = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return _leave(module, x, end, packed, lengths, single)


def _initial(module: Any, x: Tensor, hx: Any, single: bool) -> State:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    lstm = module.mode == "LSTM"
    if hx is None:
        width = getattr(module, "proj_size", 0) or module.hidden_size
        hidden = x.new_zeros(layers, x.shape[1], width)
        return (hidden, x.new_zeros(layers, x.shape[1], module.hidden_size)) if lstm else (hidden,)
    state = tuple(hx) if lstm else (hx,)
    return tuple(part.unsqueeze(1) for part in state) if single else state


def _leave(
    module: Any, x: Tensor, end: State, packed: PackedSequence | None, lengths: Tensor | None, single: bool
) -> Any:
    output: Any
    if packed is not None and lengths is not None:
        order = torch.arange(x.shape[1], device=x.device) if packed.sorted_indices is None else packed.sorted_indices
        repacked = pack_padded_sequence(x.index_select(1, order), lengths[order].cpu())
        output = PackedSequence(repacked.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    elif single:
        output, end = x.squeeze(1), tuple(part.squeeze(1) for part in end)
    else:
        output = x.transpose(0, 1) if module.batch_first else x
    return output, (end if module.mode == "LSTM" else end[0])
