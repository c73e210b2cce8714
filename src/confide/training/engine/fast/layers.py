"""From one recorded use of parameters and its output gradient to the pieces of the clipped sum.

Linear maps choose between ghost norm and kept gradient (cost.py); embeddings keep the rows that occur; convolutions
keep gradients, by a Triton kernel on CUDA or by one native grouped convolution; everything small (biases, scales of
norms) is reduced entry by entry and then summed over units. The formulas of the last two come from the first engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from confide.training.engine import attention, conv, embedding, linear, norm, standardised
from confide.training.engine.fast import kernels
from confide.training.engine.fast.arithmetic import Arithmetic
from confide.training.engine.fast.blocks import Blocks
from confide.training.engine.fast.cost import Shape
from confide.training.engine.fast.pieces import MASKED_ROWS, SMALL, ByEntry, Kept, Pair, Piece, Tokens
from confide.training.engine.tape import Rows, Site

# Rows of an entry from which sums of rows are taken entry by entry.
LONG = 64


@dataclass(frozen=True)
class Use:
    """One use of parameters: saved inputs and output gradient as (entries, records, ...)."""

    site: Site
    inputs: tuple[Tensor, ...]
    grad: Tensor
    blocks: Blocks
    arithmetic: Arithmetic
    shared: bool  # the parameter is used elsewhere too, so its gradient must be formed

    def kept(self, values: Tensor, square: Tensor | None = None) -> Kept:
        """Wrap gradients (units, *shape of what this use touches)."""
        return Kept(values.reshape(len(values), -1), values.shape[1:], self.arithmetic, square=square)

    def small(self, each: Tensor) -> Piece:
        """Wrap gradients of entries (entries, *shape); where a step is traced, their sums wait for the others."""
        waits = get_proxy_mode() is not None and not self.shared and self.blocks.each != 1
        if waits and each[0].numel() <= SMALL and each.dtype == self.arithmetic.accumulate:
            return ByEntry(each.reshape(len(each), -1), each.shape[1:], self.blocks, self.arithmetic)
        return self.kept(self.blocks.sums(each))

    def rows(self, grads: Tensor) -> Piece:
        """Wrap the sums over rows of grads (entries, rows, p)."""
        wide = self.arithmetic.accumulate
        if grads.shape[1] >= LONG or grads.dtype.itemsize >= 4:
            return self.small(kernels.entry_rows(grads, wide))
        return self.kept(kernels.row_sums(grads, self.blocks, wide))

    def wide(self, value: Tensor) -> Tensor:
        """Lift half precision to the accumulating one."""
        return value.to(self.arithmetic.accumulate) if value.dtype.itemsize < 4 else value


Handler = Callable[[Use], dict[str, Piece]]


def _linear(use: Use) -> dict[str, Piece]:
    g = use.grad.reshape(len(use.grad), -1, use.grad.shape[-1])
    out: dict[str, Piece] = {}
    if "weight" in use.site.parameters:
        a = use.inputs[0].reshape(len(g), -1, use.inputs[0].shape[-1]).to(g.dtype)
        out["weight"] = _product(use, a, g)
    if "bias" in use.site.parameters:
        out["bias"] = use.rows(g)
    return out


def _product(use: Use, a: Tensor, g: Tensor) -> Piece:
    blocks, rows = use.blocks, a.shape[1]
    most = max((part.size for part in blocks.parts), default=blocks.each or len(a))
    shape = Shape(blocks.count, most * rows, a.shape[-1], g.shape[-1])
    small = not blocks.known and len(a) * rows <= MASKED_ROWS
    if not use.shared and (shape.ghost(a.device, a.dtype) or (small and rows == 1)):
        return Pair(a, g, blocks, use.arithmetic)
    return use.kept(*kernels.linear_gradients(a, g, blocks))


def _convolution(use: Use) -> dict[str, Piece]:
    gradient = use.site.gradient
    assert isinstance(gradient, partial)
    settings, shape = gradient.keywords["settings"], gradient.keywords["shape"]
    a, g = use.inputs[0].flatten(0, 1), use.grad.flatten(0, 1)
    if gradient.keywords["transposed"]:
        return _by_rule(use)
    out: dict[str, Piece] = {}
    flat = kernels.patches(a, g, shape, settings) if get_proxy_mode() is not None else None
    if flat is not None:
        windows, changes = (value.reshape(len(use.grad), -1, value.shape[-1]) for value in flat)
        if "weight" in use.site.parameters:
            weight = kernels.linear_gradients(windows.to(changes.dtype), changes, use.blocks)
            stored = torch.Size((shape[0], *shape[2:], shape[1]))
            values = weight.values.flatten(1)
            out["weight"] = Kept(values, stored, use.arithmetic, turn=(0, 3, 1, 2), square=weight.square)
        if "bias" in use.site.parameters:
            out["bias"] = use.rows(changes)
        return out
    if kernels.one_by_one(a, shape, settings) and "weight" in use.site.parameters:
        found, turn = kernels.convolution_by_unit(a, g, use.blocks, shape, settings, use.inputs[0].shape[1])
        out["weight"] = Kept(found.flatten(1), found.shape[1:], use.arithmetic, turn=turn)
    elif not kernels.takes(a, shape, settings):
        return _by_rule(use)
    elif "weight" in use.site.parameters:
        out["weight"] = _convolution_weight(use, a, g, shape, settings)
    if "bias" in use.site.parameters:
        each = use.wide(g).flatten(2).sum(2).reshape(*use.grad.shape[:2], -1).sum(1)
        out["bias"] = use.small(each)
    return out


def _convolution_weight(use: Use, a: Tensor, g: Tensor, shape: torch.Size, settings: dict[str, Any]) -> Kept:
    found = kernels.convolution_gradients(a.to(g.dtype), g, use.blocks, shape, settings, use.inputs[0].shape[1])
    stored = torch.Size((shape[0], *shape[2:], shape[1]))
    return Kept(found.values.flatten(1), stored, use.arithmetic, turn=(0, 3, 1, 2), square=found.square)


def _standardised(use: Use) -> dict[str, Piece]:
    """The gradients of the standardised filters, pulled back to weight and gain; see standardised.py."""
    gradient = use.site.gradient
    assert isinstance(gradient, partial)
    settings, module = gradient.keywords["settings"], gradient.keywords["module"]
    a, g = use.inputs[0].flatten(0, 1), use.grad.flatten(0, 1)
    if not kernels.takes(a, module.weight.shape, settings):
        return _by_rule(use)
    out: dict[str, Piece] = {}
    if set(use.site.parameters) & {"weight", "gain"}:
        shape, records = module.weight.shape, use.inputs[0].shape[1]
        filters = kernels.convolution_gradients(a.to(g.dtype), g, use.blocks, shape, settings, records).values
        found = standardised.pull_back(module, use.wide(filters.permute(0, 1, 4, 2, 3)))
        out.update({name: use.kept(value) for name, value in found.items() if name in use.site.parameters})
    if "bias" in use.site.parameters:
        each = use.wide(g).flatten(2).sum(2).reshape(*use.grad.shape[:2], -1).sum(1)
        out["bias"] = use.small(each)
    return out


def _by_rule(use: Use) -> dict[str, Piece]:
    """The rule of the first engine on all units of one size at a time, or on entries where sizes are not known."""
    if not use.blocks.known:
        return _by_entry(use)
    wanted = frozenset(use.site.parameters)
    stores: dict[str, Tensor] = {}
    for part, blocks in use.blocks.pieces(use.grad, *use.inputs):
        found = use.site.gradient(tuple(blocks[1:]), (blocks[0],), wanted)
        for name, value in found.items():
            assert not isinstance(value, Rows)
            stores[name] = use.blocks.place(part, value, stores.get(name))
    return {name: use.kept(value) for name, value in stores.items()}


def _by_entry(use: Use) -> dict[str, Piece]:
    """The rule of the first engine on single entries, then sums over units: for gradients no larger than an input."""
    found = use.site.gradient(
        tuple(use.wide(value) for value in use.inputs), (use.wide(use.grad),), frozenset(use.site.parameters)
    )
    out: dict[str, Piece] = {}
    for name, value in found.items():
        assert not isinstance(value, Rows)
        out[name] = use.small(value)
    return out


def _channels(use: Use) -> dict[str, Piece]:
    """Scale and shift along channels, in the words of the backward pass of group normalisation (see graph.py)."""
    gradient = use.site.gradient
    assert isinstance(gradient, partial)
    statistics = gradient.keywords.get("statistics")
    if statistics is None or use.grad.dim() < 4:
        return _by_entry(use)
    x, g = use.wide(use.inputs[0].flatten(0, 1)), use.wide(use.grad.flatten(0, 1))
    count, channels = x.shape[:2]
    shift = g.reshape(count, channels, -1).sum(dim=[2])
    each = {"bias": shift}
    if "weight" in use.site.parameters:
        inner = torch.mul(g, x).reshape(count, channels, -1).sum(dim=[2])
        mean, rate = (v.reshape(count, -1, 1) for v in statistics(x))
        grouped = (count, mean.shape[1], -1)
        each["weight"] = ((inner.reshape(grouped) - shift.reshape(grouped) * mean) * rate).reshape(count, channels)
    out: dict[str, Piece] = {}
    for name, value in each.items():
        if name in use.site.parameters:
            out[name] = use.small(value.reshape(len(use.grad), -1, channels).sum(1))
    return out


def _embedding(use: Use) -> dict[str, Piece]:
    found = use.site.gradient(use.inputs, (use.grad,), frozenset({"weight"}))["weight"]
    assert isinstance(found, Rows)
    shape = use.site.parameters["weight"].shape
    piece = Tokens.of(found.numbers, found.values, use.blocks, shape, use.arithmetic)
    return {"weight": piece.keep() if use.shared else piece}


_HANDLERS: dict[Any, Handler] = {
    linear.linear_gradient: _linear,
    conv._conv_gradient: _convolution,
    standardised._gradient: _standardised,
    embedding._gradient: _embedding,
    embedding._bag_gradient: _embedding,
    norm._channel_gradient: _channels,
    norm._trailing_gradient: _by_entry,
    attention._bias_rows: _by_entry,
}


def handler_for(site: Site) -> Handler | None:
    """Return what handles a site, or None."""
    rule = site.gradient.func if isinstance(site.gradient, partial) else site.gradient
    if len(site.taps) != 1:
        return None
    if getattr(rule, "__qualname__", "").startswith("_shift.") and rule.__module__ == attention.__name__:
        return _by_entry
    return _HANDLERS.get(rule)
