"""Normalisation within one entry: scale and shift of group, layer, instance and RMS norm.

The gradient of the scale is the output gradient times the normalised input, of the shift the output gradient, both
summed over everything but the parameter's own axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules.instancenorm import _InstanceNorm

from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows

Normalise = Callable[[Tensor], Tensor]
# Mean and 1 / standard deviation of each record and group, by the very operation that the forward pass ran.
Statistics = Callable[[Tensor], tuple[Tensor, Tensor]]


def _channel_gradient(
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    wanted: frozenset[str],
    *,
    normalise: Normalise,
    statistics: Statistics | None = None,
) -> Mapping[str, Tensor | Rows]:
    """(units, records, channels, ...): parameters along channels; `statistics` is for the fast engine."""
    a, g = saved[0], grads[0]
    out: dict[str, Tensor | Rows] = {}
    if "weight" in wanted:
        scaled = g * normalise(a.flatten(0, 1)).reshape(a.shape)
        out["weight"] = scaled.flatten(3).sum((1, 3)) if g.dim() > 3 else scaled.sum(1)
    if "bias" in wanted:
        out["bias"] = g.flatten(3).sum((1, 3)) if g.dim() > 3 else g.sum(1)
    return out


def _trailing_gradient(
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    wanted: frozenset[str],
    *,
    normalise: Normalise,
    shape: tuple[int, ...],
) -> Mapping[str, Tensor | Rows]:
    """(units, records, ..., *shape): parameters along the last axes."""
    a, g = saved[0], grads[0]
    out: dict[str, Tensor | Rows] = {}
    if "weight" in wanted:
        out["weight"] = (g * normalise(a)).reshape(len(g), -1, *shape).sum(1)
    if "bias" in wanted:
        out["bias"] = g.reshape(len(g), -1, *shape).sum(1)
    return out


def _detached(module: Any) -> tuple[Tensor | None, Tensor | None]:
    bias = getattr(module, "bias", None)
    return (None if module.weight is None else module.weight.detach()), (None if bias is None else bias.detach())


def _keeps_statistics(value: Tensor) -> bool:
    """True where the operation that returns its statistics takes this input as it is: on a CPU, in one of its orders.

    Nothing may be cast, traced or transformed on the way: those know `F.group_norm`.
    """
    if value.device.type != "cpu" or value.dim() < 3 or not value.numel() or torch.is_autocast_enabled("cpu"):
        return False
    if get_proxy_mode() is not None or torch._C._are_functorch_transforms_active():
        return False
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return value.is_contiguous() or last


@register(nn.GroupNorm)
def group_norm(call: Call, module: nn.GroupNorm, input: Tensor) -> Tensor:
    """nn.GroupNorm."""
    weight, bias = _detached(module)

    def native(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count, channels = value.shape[:2]
        area = value[0, 0].numel()
        found: tuple[Tensor, Tensor, Tensor] = torch.native_group_norm(
            value, weight, bias, count, channels, area, module.num_groups, module.eps
        )
        return found

    known: tuple[Tensor, Tensor] | None = None
    if _keeps_statistics(input):
        result, mean, rate = native(input)
        known = mean.detach(), rate.detach()
    else:
        result = F.group_norm(input, module.num_groups, weight, bias, module.eps)
    out, tap = call.tap(result)

    def normalise(value: Tensor) -> Tensor:
        return F.group_norm(value, module.num_groups, eps=module.eps)

    def statistics(value: Tensor) -> tuple[Tensor, Tensor]:
        if known is not None and len(known[0]) == len(value) and known[0].dtype == value.dtype:
            return known
        return native(value if value.device.type == "cpu" else value.contiguous())[1:]

    gradient = partial(_channel_gradient, normalise=normalise, statistics=statistics)
    call.record((tap,), (input,), gradient, {"weight": module.weight, "bias": module.bias}, axis=0)
    return out


@register(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(call: Call, module: _InstanceNorm, input: Tensor) -> Tensor:
    """nn.InstanceNorm1d, 2d, 3d with learned scale and without running statistics."""
    weight, bias = _detached(module)
    out, tap = call.tap(F.instance_norm(input, weight=weight, bias=bias, eps=module.eps))

    def normalise(value: Tensor) -> Tensor:
        return F.instance_norm(value, eps=module.eps)

    gradient = partial(_channel_gradient, normalise=normalise)
    call.record((tap,), (input,), gradient, {"weight": module.weight, "bias": module.bias}, axis=0)
    return out


@register(nn.LayerNorm)
def layer_norm(call: Call, module: nn.LayerNorm, input: Tensor) -> Tensor:
    """nn.LayerNorm."""
    shape = tuple(module.normalized_shape)
    out, tap = call.tap(F.layer_norm(input, shape, *_detached(module), module.eps))

    def normalise(value: Tensor) -> Tensor:
        return F.layer_norm(value, shape, eps=module.eps)

    gradient = partial(_trailing_gradient, normalise=normalise, shape=shape)
    call.record((tap,), (input,), gradient, {"weight": module.weight, "bias": module.bias})
    return out


@register(nn.RMSNorm)
def rms_norm(call: Call, module: nn.RMSNorm, x: Tensor) -> Tensor:
    """nn.RMSNorm."""
    shape = tuple(module.normalized_shape)
    weight = None if module.weight is None else module.weight.detach()
    out, tap = call.tap(F.rms_norm(x, shape, weight, module.eps))

    def normalise(value: Tensor) -> Tensor:
        return F.rms_norm(value, shape, eps=module.eps)

    gradient = partial(_trailing_gradient, normalise=normalise, shape=shape)
    call.record((tap,), (x,), gradient, {"weight": module.weight})
    return out
