"""Gradients of convolutions and linear maps for ragged units in one pass: Triton on CUDA, plain PyTorch elsewhere.

A unit is a range of entries; its weight gradient is a matrix product over all positions of these entries, with the
input read through the window of the convolution (an implicit im2col). The kernel takes the ranges as data, so ragged
units need neither padding nor another compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import grad as native

from confide.training.engine.fast.blocks import Blocks

try:
    from confide.training.engine.fast import _triton, _triton_convolution  # noqa: F401 (registers operations)
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
    got, square = torch.ops.confide.unit_convolution(_last(a), _last(g), *args)
    want = convolution_by_entry(a.float(), g.float(), blocks, shape, settings)
    return _with_square(got, square, want.permute(0, 1, 3, 4, 2).flatten(2))


def _try_products(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, g = (torch.randn(484, width, generator=generator).to(device, torch.bfloat16) for width in (264, 136))
    ends = [0, 4, 340, 484]
    offsets = torch.tensor(ends, dtype=torch.int32, device=device)
    parts = [g[low:high].float().t() @ a[low:high].float() for low, high in pairwise(ends)]
    got, square = torch.ops.confide.unit_products(a, g, offsets, 4, 0)
    return _with_square(got, square, torch.stack(parts))


def _with_square(got: Tensor, square: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient beside what it should be, and, as one more value of each unit, its norm."""
    return (
        torch.cat([got.double().flatten(1), square.sqrt()[:, None]], 1),
        torch.cat([want.double().flatten(1), got.double().flatten(1).norm(dim=1, keepdim=True)], 1),
    )


def _try_rows(device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.randn(300, 70, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    offsets = torch.tensor([0, 4, 290, 300], dtype=torch.int32, device=device)
    parts = [values[low:high].float().sum(0) for low, high in pairwise((0, 4, 290, 300))]
    return torch.ops.confide.unit_row_sums(values, offsets), torch.stack(parts)


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
    "rows": _try_rows,
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


# Values of a weight from which the products of a convolution without overlap fill a GPU by themselves; with fewer the
# kernel for convolutions cuts long units into pieces.
PATCHES = 65_536


def patches(inputs: Tensor, grads: Tensor, shape: torch.Size, settings: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return what a convolution whose windows do not overlap multiplies, or None for other convolutions.

    Such a convolution (patches of a picture, windows of one pixel) is a linear map of its windows, whose kernel needs
    no addresses of neighbours.

    Parameters
    ----------
    inputs : tensor, shape (images, channels, height, width)
    grads : tensor, shape (images, out channels, rows, columns)
    shape : torch.Size
        Of the weight.
    settings : dict
        stride, padding, dilation, groups of the convolution.

    Returns
    -------
    pair of tensors, shapes (images, rows * columns, window * channels) and (images, rows * columns, out channels)
    """
    if len(shape) != 4 or settings["groups"] != 1 or settings["padding"] not in (0, (0, 0), [0, 0]):
        return None
    if shape.numel() < PATCHES:
        return None
    (high, wide), (down, across), dilation = shape[2:], _pair(settings["stride"]), _pair(settings["dilation"])
    if (high > 1 and (down != high or dilation[0] != 1)) or (wide > 1 and (across != wide or dilation[1] != 1)):
        return None
    images, rows, columns = len(inputs), grads.shape[2], grads.shape[3]
    # what a stride leaves out at the end is no window's; windows of one pixel may leave out more in between
    x = F.pad(inputs, (0, max(columns * across - inputs.shape[3], 0), 0, max(rows * down - inputs.shape[2], 0)))
    x = x[:, :, : rows * down, : columns * across].permute(0, 2, 3, 1)
    x = x.reshape(images, rows, down, columns, across, shape[1])[:, :, :high, :, :wide]
    windows = x.permute(0, 1, 3, 2, 4, 5).reshape(images, rows * columns, -1)
    return windows, grads.permute(0, 2, 3, 1).reshape(images, rows * columns, -1)


class Found(NamedTuple):
    """Gradients of units, and the squares of their norms where the kernel that made them had these at hand."""

    values: Tensor
    square: Tensor | None


def convolution_gradients(
    inputs: Tensor, grads: Tensor, blocks: Blocks, shape: torch.Size, settings: dict[str, Any], records: int = 1
) -> Found:
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
        found = convolution_by_entry(inputs, grads, blocks, shape, settings, records).permute(0, 1, 3, 4, 2)
        return Found(found, None)
    window = [*_pair(settings["stride"]), *_pair(settings["padding"]), *_pair(settings["dilation"])]
    inputs, grads = _last(inputs), _last(grads)  # outside of the operator, so that a compiler can fuse the copies
    largest = (blocks.each or len(blocks.units)) * records
    found, square = torch.ops.confide.unit_convolution(
        inputs, grads, blocks.offsets * records, list(shape), window, largest
    )
    return Found(found.reshape(blocks.count, shape[0], shape[2], shape[3], shape[1]), square)


def one_by_one(values: Tensor, shape: torch.Size, settings: dict[str, Any]) -> bool:
    """True where one call for each unit is the fastest, on a CPU, while nothing traces the step.

    With channels last a grouped convolution for all entries takes 2.5 to 6 times the ordinary gradient, one call for
    each unit 1.0 to 1.5 times (one core, units of 4). With channels first the former wins where filters are few.
    """
    plain = settings["groups"] == 1 and not isinstance(settings["padding"], str)
    wide = shape[0] * shape[1] >= 4096 or (values.dim() > 2 and values.stride(1) == 1)
    return values.device.type == "cpu" and plain and wide and get_proxy_mode() is None


def convolution_by_unit(
    inputs: Tensor, grads: Tensor, blocks: Blocks, shape: torch.Size, settings: dict[str, Any], records: int = 1
) -> tuple[Tensor, tuple[int, ...] | None]:
    """Return gradients of the units, one call for each unit that has entries, and the turn of `Kept`.

    They are stored in the order in which oneDNN gives them (channels last for such images): (units, *stored).
    """
    window = [_axes(settings[name], len(shape) - 2) for name in ("stride", "padding", "dilation")]
    last = inputs.dim() > 2 and inputs.stride(1) == 1
    turn = (0, len(shape) - 1, *range(1, len(shape) - 1)) if last else None
    order = (0, *range(2, len(shape)), 1) if last else tuple(range(len(shape)))
    weight = grads.new_empty(shape)
    out = grads.new_empty((blocks.count, *(shape[axis] for axis in order)))
    area = grads[0, 0].numel() if len(grads) else 0
    for unit, (low, high) in enumerate(pairwise((blocks.offsets * records).tolist())):
        x, g = inputs[low:high].to(grads.dtype), grads[low:high]
        if high == low:
            out[unit] = 0.0
        elif last and inputs.dim() == 4 and (shape[2:].numel() == 1 or (high - low) * area <= COLUMNS * shape[0]):
            torch.mm(g.permute(1, 0, 2, 3).reshape(shape[0], -1), _columns(x, g, shape, window), out=_rows(out[unit]))
        else:
            part, mask = (g, x, weight), [False, True, False]
            found = torch.ops.aten.convolution_backward(*part, None, *window, False, [0] * len(window[0]), 1, mask)
            out[unit] = found[1].permute(order)
    return out, turn


# Positions of a unit for each filter up to which the images as a matrix of windows, and one product, are faster than
# oneDNN's call on a CPU (which then spends its time turning weights about): 2 in favour, 16 even, 128 against.
COLUMNS = 8


def _columns(inputs: Tensor, grads: Tensor, shape: torch.Size, window: list[list[int]]) -> Tensor:
    """Return what the window of a 2-d convolution sees, (positions, height * width * channels), channels last."""
    (down, across), padding, (high, wide) = window
    last = inputs.permute(0, 2, 3, 1)
    if any(padding):
        last = F.pad(last, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    entry, row, column, channel = last.stride()
    sizes = (len(last), *grads.shape[2:], *shape[2:], last.shape[3])
    strides = (entry, down * row, across * column, high * row, wide * column, channel)
    return last.as_strided(sizes, strides, last.storage_offset()).reshape(-1, shape[1:].numel())


def _rows(values: Tensor) -> Tensor:
    return values.view(len(values), -1)


def _axes(value: Any, axes: int) -> list[int]:
    return [int(value)] * axes if isinstance(value, int) else [int(v) for v in value]


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


# Rows of an entry from which sums of rows are taken entry by entry.
LONG = 64


def row_sums(grads: Tensor, blocks: Blocks, wide: torch.dtype) -> Tensor:
    """Return the sum over rows of each unit, (units, p), from grads (entries, rows, p).

    On CUDA from what is in memory for the weight's gradient anyway: a compiler that fuses the sum into what comes
    before computes that twice.
    """
    if grads.dtype.itemsize == 2 and grads.shape[1] > 1 and triton_for(grads, "rows"):
        rows, flat = grads.shape[1], grads.reshape(-1, grads.shape[-1])
        found: Tensor = torch.ops.confide.unit_row_sums(flat, blocks.offsets * rows)
        return found
    return blocks.sums(entry_rows(grads, wide))


def entry_rows(grads: Tensor, wide: torch.dtype) -> Tensor:
    """Return the sum over rows of each entry, (entries, p); so a unit of many does not keep the others waiting."""
    if grads.dtype.itemsize == 2 and grads.shape[1] > 1 and triton_for(grads, "rows"):
        rows = grads.shape[1]
        ends = torch.arange(len(grads) + 1, device=grads.device, dtype=torch.int32) * rows
        found: Tensor = torch.ops.confide.unit_row_sums(grads.reshape(-1, grads.shape[-1]), ends)
        return found
    return (grads.to(wide) if grads.dtype.itemsize < 4 else grads).sum(1)


def entry_sums(values: Tensor, blocks: Blocks) -> Tensor:
    """Return the sums over units, (units, n), of values (entries, n), always in the same order."""
    if blocks.each is None and values.dtype == torch.float32 and triton_for(values, "rows"):
        found: Tensor = torch.ops.confide.unit_row_sums(values, blocks.offsets)
        return found
    return blocks.sums(values)


# Values of a weight from which, on a CPU, a call for each ragged unit costs less than copying units of one size
# together.
UNIT_PRODUCT = 16_384


def linear_gradients(inputs: Tensor, grads: Tensor, blocks: Blocks) -> Found:
    """Return gradients (units, p, d) of units from inputs (entries, rows, d) and grads (entries, rows, p)."""
    half = inputs.dtype == grads.dtype and inputs.dtype.itemsize == 2
    rows, width, out = inputs.shape[1], inputs.shape[-1], grads.shape[-1]
    if half and triton_for(inputs, "products") and min(width, out) >= 16 and len(inputs) > 0:
        flat, each = (inputs.reshape(-1, width), grads.reshape(-1, out)), (blocks.each or 0) * rows
        return Found(*torch.ops.confide.unit_products(*flat, blocks.offsets * rows, rows, each))
    if len(blocks.parts) > 1 and width * out >= UNIT_PRODUCT and inputs.device.type == "cpu":
        values = grads.new_empty((blocks.count, out, width))
        for unit, (low, high) in enumerate(pairwise(blocks.offsets.tolist())):
            if high > low:
                torch.mm(grads[low:high].reshape(-1, out).t(), inputs[low:high].reshape(-1, width), out=values[unit])
            else:
                values[unit] = 0.0
        return Found(values, None)
    if blocks.known:
        placed: Tensor | None = None
        for part, (x, y) in blocks.pieces(inputs, grads):
            placed = blocks.place(part, torch.bmm(y.transpose(1, 2), x), placed)
        assert placed is not None
        return Found(placed, None)
    if not triton_for(inputs, "convolution"):
        return Found(blocks.sums(torch.bmm(grads.transpose(1, 2), inputs)), None)
    image, change = (value.transpose(1, 2).unsqueeze(-1) for value in (inputs, grads))
    window, largest = [1, 1, 0, 0, 1, 1], blocks.each or len(blocks.units)
    args = [out, width, 1, 1], window, largest
    found, square = torch.ops.confide.unit_convolution(image, change, blocks.offsets, *args)
    return Found(found.reshape(blocks.count, out, width), square)
