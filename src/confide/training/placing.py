"""Bring a model to where it is trained, laid out as that place likes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device; on a GPU images keep their channels side by side there.

    Kernels of convolutions and of their gradients by unit read channels last. Only the layout in memory changes: names,
    shapes and values stay, the optimiser keeps its parameters, and weights are saved as before.
    """
    model.to(device)
    if device.type == "cuda" and any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """Return the values in the device, precision and layout of another tensor of the same shape.

    An optimiser goes over all parameters in one kernel only where gradients lie in memory as their parameters do.
    """
    value = value.to(like.device, like.dtype)
    return value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)
