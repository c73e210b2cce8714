"""Convolutions with standardised weights: the gradient of the standardised filters, pulled back through them.

The standardisation sees the weights alone, so its Jacobian J is the same for every unit: G_u = J^T (gradient of the
standardised filters of u), one linear map after the rule of an ordinary convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from confide.nn import WSConv1d, WSConv2d, WSConv3d, standardise
from confide.training.engine.conv import _conv_gradient
from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def pull_back(module: Any, gradients: Tensor) -> dict[str, Tensor]:
    """Gradients of weight and gain from those of the standardised filters, (units, *weight.shape)."""
    own = {"weight": module.weight.detach()}
    if module.gain is not None:
        own["gain"] = module.gain.detach()

    def filters(values: dict[str, Tensor]) -> Tensor:
        return standardise(
            values["weight"].to(gradients.dtype),
            values["gain"].to(gradients.dtype) if "gain" in values else None,
            eps=module.eps,
            centre_only=module.centre_only,
        )

    pull = vjp(filters, own)[1]
    found: dict[str, Tensor] = vmap(lambda g: pull(g)[0])(gradients)
    return found


def _gradient(
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    wanted: frozenset[str],
    *,
    module: Any,
    settings: dict[str, Any],
) -> Mapping[str, Tensor | Rows]:
    out: dict[str, Tensor | Rows] = {}
    if wanted & {"weight", "gain"}:
        kinds = frozenset({"weight"})
        plain = _conv_gradient(saved, grads, kinds, shape=module.weight.shape, settings=settings, transposed=False)
        filters = plain["weight"]
        assert isinstance(filters, Tensor)
        out.update({name: value for name, value in pull_back(module, filters).items() if name in wanted})
    if "bias" in wanted:
        out["bias"] = grads[0].flatten(3).sum((1, 3))
    return out


@register(WSConv1d, WSConv2d, WSConv3d)
def standardised_convolution(call: Call, module: Any, input: Tensor) -> Tensor:
    """confide.nn.WSConv1d, WSConv2d, WSConv3d."""
    padding = module.padding
    if isinstance(padding, str):
        input, padding = F.pad(input, module._reversed_padding_repeated_twice), 0
    settings = {"stride": module.stride, "padding": padding, "dilation": module.dilation, "groups": module.groups}
    with torch.no_grad():
        weight = module.standardised_weight()
    bias = None if module.bias is None else module.bias.detach()
    out, tap = call.tap(_CONV[module.weight.dim() - 2](input, weight, bias, **settings))
    gradient = partial(_gradient, module=module, settings=settings)
    parameters = {"weight": module.weight, "gain": module.gain, "bias": module.bias}
    call.record((tap,), (input,), gradient, parameters, axis=0)
    return out
