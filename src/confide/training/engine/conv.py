"""Convolutions and transposed convolutions in one to three dimensions, every stride, dilation, group and padding mode.

All records of a unit are the batch of one group of a grouped convolution, so that one native call gives the weight
gradients of all units: channels (units x channels), groups (units x groups), batch = records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as native

from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_WEIGHT: dict[int, Callable[..., Tensor]] = {1: native.conv1d_weight, 2: native.conv2d_weight, 3: native.conv3d_weight}


def _side_by_side(value: Tensor) -> Tensor:
    """(units, records, channels, ...) to (records, units x channels, ...)."""
    return value.transpose(0, 1).flatten(1, 2)


def _weight_gradient(
    inputs: Tensor, grads: Tensor, shape: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """Weight gradient of a convolution for each unit; inputs and grads as (units, records, channels, ...)."""
    units, dims = len(inputs), len(shape) - 2
    size = (units * shape[0], *shape[1:])
    out = _WEIGHT[dims](
        _side_by_side(inputs),
        size,
        _side_by_side(grads.to(inputs.dtype)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=units * groups,
    )
    return out.reshape(units, *shape)


def _bias_gradient(g: Tensor) -> Tensor:
    """(units, records, channels, ...) to (units, channels)."""
    return g.flatten(3).sum((1, 3)) if g.dim() > 3 else g.sum(1)


def _padded(module: Any, input: Tensor) -> tuple[Tensor, Any]:
    """Return the input, padded already where the native padding of a convolution cannot do it, and the padding left."""
    if module.padding_mode != "zeros":
        return F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    if isinstance(module.padding, str):
        return F.pad(input, module._reversed_padding_repeated_twice), 0
    return input, module.padding


def _conv_gradient(
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    wanted: frozenset[str],
    *,
    shape: torch.Size,
    settings: dict[str, Any],
    transposed: bool,
) -> Mapping[str, Tensor | Rows]:
    out: dict[str, Tensor | Rows] = {}
    a, g = saved[0], grads[0]
    if "weight" in wanted:
        # A transposed convolution is the input gradient of a convolution with the same weight: the roles swap.
        first, second = (g, a) if transposed else (a, g)
        out["weight"] = _weight_gradient(first, second, shape, **settings)
    if "bias" in wanted:
        out["bias"] = _bias_gradient(g)
    return out


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(call: Call, module: Any, input: Tensor) -> Tensor:
    """nn.Conv1d, nn.Conv2d, nn.Conv3d."""
    padded, padding = _padded(module, input)
    bias = None if module.bias is None else module.bias.detach()
    settings = {"stride": module.stride, "padding": padding, "dilation": module.dilation, "groups": module.groups}
    dims = module.weight.dim() - 2
    out, tap = call.tap(_CONV[dims](padded, module.weight.detach(), bias, **settings))
    gradient = partial(_conv_gradient, shape=module.weight.shape, settings=settings, transposed=False)
    call.record((tap,), (padded,), gradient, {"weight": module.weight, "bias": module.bias}, axis=0)
    return out


def _invertible(module: Any) -> bool:
    """An output padding of a stride or more leaves rows that the matching convolution would read one time too many."""
    return all(extra < step for extra, step in zip(module.output_padding, module.stride, strict=True))


@register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, supports=_invertible)
def transposed_convolution(call: Call, module: Any, input: Tensor, output_size: Any = None) -> Tensor:
    """nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d."""
    dims = module.weight.dim() - 2
    extra = module._output_padding(
        input, output_size, module.stride, module.padding, module.kernel_size, dims, module.dilation
    )
    settings = {
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
    }
    bias = None if module.bias is None else module.bias.detach()
    out, tap = call.tap(_TRANSPOSED[dims](input, module.weight.detach(), bias, output_padding=extra, **settings))
    gradient = partial(_conv_gradient, shape=module.weight.shape, settings=settings, transposed=True)
    call.record((tap,), (input,), gradient, {"weight": module.weight, "bias": module.bias}, axis=0)
    return out
