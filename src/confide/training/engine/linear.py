"""Linear layers, with any leading dimensions: G_u = sum over the rows of u of g a^T."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows


def linear_gradient(
    saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str]
) -> Mapping[str, Tensor | Rows]:
    """Unit gradients of weight and bias; several uses of the same weight are summed as further rows."""
    flat = [g.reshape(len(g), -1, g.shape[-1]) for g in grads]
    g = flat[0] if len(flat) == 1 else torch.cat(flat, 1)
    out: dict[str, Tensor | Rows] = {}
    if "weight" in wanted:
        inputs = [a.reshape(len(a), -1, a.shape[-1]) for a in saved]
        a = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
        out["weight"] = torch.bmm(g.transpose(1, 2), a.to(g.dtype))
    if "bias" in wanted:
        out["bias"] = g.sum(1)
    return out


def tapped_linear(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    axis: int | None = None,
    label: str = "",
    rows: slice | None = None,
) -> Tensor:
    """Compute x W^T + b with detached parameters (their `rows` only, if given) and record the site."""
    chosen = slice(None) if rows is None else rows
    out = F.linear(x, weight.detach()[chosen], None if bias is None else bias.detach()[chosen])
    out, tap = call.tap(out)
    call.record((tap,), (x,), linear_gradient, {"weight": weight, "bias": bias}, axis=axis, label=label, rows=rows)
    return out


@register(nn.Linear, NonDynamicallyQuantizableLinear)
def linear(call: Call, module: nn.Linear, input: Tensor) -> Tensor:
    """nn.Linear."""
    return tapped_linear(call, input, module.weight, module.bias)
