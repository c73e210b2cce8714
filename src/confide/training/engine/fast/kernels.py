"""Gradients of convolutions and linear maps for ragged units in one pass: Triton on CUDA, plain PyTorch elsewhere.

A unit is a range of entries; its weight gradient is a matrix product over all positions of these entries, with the
input read through the window of the convolution (an implicit im2col). The kernel takes the ranges as data, so ragged
units need neither padding nor another compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as native

from confide.training.engine.fast.blocks import Blocks

try:
    from confide.training.engine.fast import _triton
except ImportError:  # no Triton on this machine: CPU builds of PyTorch
    _triton = None  # type: ignore[assignment]
TRITON = _triton is not None


# Kernels that gave a wrong result, or none, when they were tried on a device.
_broken: dict[torch.device, frozenset[str]] = {}


def triton_for(values: Tensor, kernel: str) -> bool:
    """True where a Triton kernel serves these values: on CUDA, not in float64, and right when it was tried."""
    there = _triton is not None and values.device.type == "cuda" and values.dtype != torch.float64
    return there and kernel not in _broken.get(values.device, ())


def check(device: torch.device) -> frozenset[str]:
    """Try every kernel once on a device against plain PyTorch; those that fail are not used there, and are returned."""
    if _triton is None or device.type != "cuda":
        return frozenset()
    if device not in _broken:
        _broken[device] = frozenset(name for name, trial in _TRIALS.items() if not _works(trial, device))
    return _broken[device]


def _works(trial: Callable[[torch.device], tuple[Tensor, Tensor]], device: torch.device) -> bool:
    try:
        got, want = (value.double() for value in trial(device))
        return bool((got - want).norm() <= 2e-2 * want.norm())
    except Exception:  # whatever a compiler or a driver may raise: the plain way is always there
        return False


def _try_convolution(device: torch.device) -> tuple[Tensor, Tensor]:
    counts = [1, 9, 2]
    units = torch.repeat_interleave(torch.arange(3), torch.tensor(counts)).to(device)
    blocks, generator = Blocks(units, 3, None), torch.Generator().manual_seed(0)
    a, g = (torch.randn(12, c, 16, 16, generator=generator).to(device, torch.bfloat16) for c in (16, 24))
    shape, settings = torch.Size((24, 16, 3, 3)), {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    args = blocks.offsets, list(shape), [1, 1, 1, 1, 1, 1], 12
    got: Tensor = torch.ops.confide.unit_convolution(_last(a), _last(g), *args)
    want = convolution_by_entry(a.float(), g.float(), blocks, shape, settings)
    return got, want.permute(0, 1, 3, 4, 2).flatten(2)


def _try_products(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(48, width, generator=generator).to(device, torch.bfloat16) for width in (64, 32))
    offsets = torch.tensor([0, 4, 40, 48], dtype=torch.int32, device=device)
    parts = [g[low:high].float().t() @ a[low:high].float() for low, high in ((0, 4), (4, 40), (40, 48))]
    return torch.ops.confide.unit_products(a, g, offsets), torch.stack(parts)


def _try_squares(device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.randn(3, 200_001, generator=torch.Generator().manual_seed(0)).to(device)
    return torch.ops.confide.unit_squares(values), values.double().square().sum(1)


def _try_sums(device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.randn(11, 3001, generator=torch.Generator().manual_seed(0)).to(device)
    weights = torch.linspace(0, 1, 11, device=device)
    want = (values * weights[:, None]).sum(0)
    values[0] = float("nan")  # of weight zero
    return torch.ops.confide.weighted_sum(values, weights), want


_TRIALS = {
    "convolution": _try_convolution,
    "products": _try_products,
    "squares": _try_squares,
    "sums": _try_sums,
}


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def _last(value: Tensor) -> Tensor:
    """Bring channels last in memory (no copy if they are)."""
    return value if value.stride(1) == 1 else value.contiguous(memory_format=torch.channels_last)


def takes(values: Tensor, shape: torch.Size, settings: dict[str, Any]) -> bool:
    """True for convolutions that the kernel can do: 2-d, ungrouped, on CUDA, not in float64."""
    plain = len(shape) == 4 and settings["groups"] == 1 and not isinstance(settings["padding"], str)
    return triton_for(values, "convolution") and plain


def convolution_gradients(
    inputs: Tensor, grads: Tensor, blocks: Blocks, shape: torch.Size, settings: dict[str, Any], records: int = 1
) -> Tensor:
    """Return the weight gradient of each unit of a 2-d convolution: (units, out channels, height, width, channels).

    Parameters
    ----------
    inputs : tensor, shape (entries * records, channels, height, width)
    grads : tensor, shape (entries * records, out channels, height, width)
    blocks : Blocks
    shape : torch.Size
        Of the weight.
    settings : dict
        stride, padding, dilation of the convolution.
    records : int
        Images of one entry.
    """
    if not takes(inputs, shape, settings):
        return convolution_by_entry(inputs, grads, blocks, shape, settings, records).permute(0, 1, 3, 4, 2)
    window = [*_pair(settings["stride"]), *_pair(settings["padding"]), *_pair(settings["dilation"])]
    inputs, grads = _last(inputs), _last(grads)  # outside of the operator, so that a compiler can fuse the copies
    largest = (blocks.each or len(blocks.units)) * records
    found: Tensor = torch.ops.confide.unit_convolution(
        inputs, grads, blocks.offsets * records, list(shape), window, largest
    )
    return found.reshape(blocks.count, shape[0], shape[2], shape[3], shape[1])


def convolution_by_entry(
    inputs: Tensor, grads: Tensor, blocks: Blocks, shape: torch.Size, settings: dict[str, Any], records: int = 1
) -> Tensor:
    """Return (units, *shape) in plain PyTorch: entries are the groups of one convolution, then summed over units."""
    count = len(inputs)
    found: Tensor = native.conv2d_weight(  # type: ignore[no-untyped-call]
        inputs.reshape(1, -1, *inputs.shape[2:]),
        [count * shape[0], *shape[1:]],
        grads.reshape(1, -1, *grads.shape[2:]),
        stride=settings["stride"],
        padding=settings["padding"],
        dilation=settings["dilation"],
        groups=count,
    )
    return blocks.sums(found.reshape(count // records, records, *shape).sum(1))


def linear_gradients(inputs: Tensor, grads: Tensor, blocks: Blocks) -> Tensor:
    """Return gradients (units, p, d) of ragged units from inputs (entries, rows, d) and grads (entries, rows, p)."""
    if not triton_for(inputs, "convolution"):
        return blocks.sums(torch.bmm(grads.transpose(1, 2), inputs))
    rows, width, out = inputs.shape[1], inputs.shape[-1], grads.shape[-1]
    found: Tensor
    if (
        inputs.dtype == grads.dtype == torch.bfloat16
        and width % 8 == 0
        and out % 8 == 0
        and triton_for(inputs, "products")
    ):
        flat = inputs.reshape(-1, width), grads.reshape(-1, out)
        found = torch.ops.confide.unit_products(*flat, blocks.offsets * rows)
    else:
        image, change = (value.transpose(1, 2).unsqueeze(-1) for value in (inputs, grads))
        window, largest = [1, 1, 0, 0, 1, 1], blocks.each or len(blocks.units)
        found = torch.ops.confide.unit_convolution(image, change, blocks.offsets, [out, width, 1, 1], window, largest)
    return found.reshape(blocks.count, out, width)
