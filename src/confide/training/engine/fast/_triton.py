"""The Triton kernels behind `kernels.py` for linear maps: gradients by unit, their norms, their weighted sum."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

try:
    from triton.tools import tensor_descriptor  # type: ignore[import-not-found,unused-ignore]

    Boxes: Any = tensor_descriptor.TensorDescriptor
except ImportError:  # an older Triton
    Boxes = None

# Rows of a step of `unit_products`.
STEP = 64
# Programs of a weighted sum that keep the memory of a large GPU busy.
PROGRAMS = 2112
# Additions in a row in float32 that `squares` may make; see arithmetic.py.
CHAIN = 32


@functools.cache
def hopper(device: torch.device) -> bool:
    """True where blocks of memory can be fetched by the bulk copy engine."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _square(values, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum of squares of a tile as it is stored: 15 additions in a row in float32, then float64."""
    wide = values.to(tl.float32)
    part: tl.constexpr = COLUMNS // 128 if COLUMNS >= 128 else 1
    chunk: tl.constexpr = 16 if COLUMNS >= 128 else COLUMNS // 8
    return tl.sum(tl.sum(tl.reshape(wide * wide, (ROWS, part, chunk, 8)), 2).to(tl.float64))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _masked(a, g, total, start, high, o, j, inputs, outputs, LB: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add one step of rows, of which those from `high` on are another unit's."""
    m = (start + tl.arange(0, LB)).to(tl.int64)
    there = (m < high)[:, None]
    gv = tl.load(g + m[:, None] * outputs + o[None, :], mask=there & (o < outputs)[None, :], other=0.0)
    av = tl.load(a + m[:, None] * inputs + j[None, :], mask=there & (j < inputs)[None, :], other=0.0)
    return tl.dot(tl.trans(gv), av, total, input_precision=PRECISION)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _product(  # type: ignore[no-untyped-def]
    a, g, a_rows, g_rows, out, squares, offsets, inputs, outputs, tiles,
    BOXES: tl.constexpr, TAIL: tl.constexpr, OB: tl.constexpr, JB: tl.constexpr, LB: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    unit = (tl.program_id(0) // tiles).to(tl.int64)
    low = tl.load(offsets + unit)
    high = tl.load(offsets + unit + 1)
    across = tl.cdiv(inputs, JB)
    first = (tile // across) * OB
    second = (tile % across) * JB
    o = first + tl.arange(0, OB)
    j = second + tl.arange(0, JB)
    total = tl.zeros((OB, JB), dtype=tl.float32)
    if BOXES:  # whole steps by the bulk copy engine; it would read on into the next unit in the last one
        end = low + (high - low) // LB * LB
        for start in range(low, end, LB):
            total = tl.dot(g_rows.load([start, first]).T, a_rows.load([start, second]), total)
        low = end
    if TAIL and BOXES:
        if low < high:
            total = _masked(a, g, total, low, high, o, j, inputs, outputs, LB, PRECISION)
    elif TAIL:
        for start in range(low, high, LB):
            total = _masked(a, g, total, start, high, o, j, inputs, outputs, LB, PRECISION)
    rounded = total.to(out.dtype.element_ty)
    where = o[:, None].to(tl.int64) * inputs + j[None, :]
    mask = (o < outputs)[:, None] & (j < inputs)[None, :]
    tl.store(out + unit * (tl.cast(outputs, tl.int64) * inputs) + where, rounded, mask=mask)
    tl.store(squares + unit * tiles + tile, _square(rounded, OB, JB))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _even_product(  # type: ignore[no-untyped-def]
    a, g, boxes_out, out, squares, rows, inputs, tiles, total_tiles, programs,
    OB: tl.constexpr, JB: tl.constexpr, LB: tl.constexpr,
):  # fmt: skip
    """`_product` for units of `rows` rows each: boxes end where the unit ends, and a program has several tiles."""
    across = tl.cdiv(inputs, JB)
    for number in tl.range(tl.program_id(0), total_tiles, programs, flatten=True):
        unit = number // tiles
        first = ((number % tiles) // across) * OB
        second = ((number % tiles) % across) * JB
        total = tl.zeros((OB, JB), dtype=tl.float32)
        for start in range(0, rows, LB):
            gv = g.load([unit, start, first]).reshape(LB, OB)
            total = tl.dot(gv.T, a.load([unit, start, second]).reshape(LB, JB), total)
        rounded = total.to(out.dtype.element_ty)
        boxes_out.store([unit, first, second], rounded.reshape(1, OB, JB))
        tl.store(squares + number, _square(rounded, OB, JB))


def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _large(a: Tensor, g: Tensor, units: int) -> bool:
    """A tile of 128 x 256 reads least; where too few of them would be left for the last round, 128 x 128."""
    return bool(units * triton.cdiv(g.shape[1], 128) * triton.cdiv(a.shape[1], 256) >= 4 * _processors(g.device))


def _even_products(a: Tensor, g: Tensor, units: int, large: bool) -> tuple[Tensor, Tensor]:
    rows, width, height = len(a) // units, a.shape[1], g.shape[1]
    ob, jb, stages = (128, 256, 3) if large else (128, 128, 4)
    tiles = triton.cdiv(height, ob) * triton.cdiv(width, jb)
    out = torch.empty((units, height, width), device=g.device, dtype=g.dtype)
    squares = torch.empty((units, tiles), device=g.device, dtype=torch.float64)
    cut = (a.view(units, rows, width), STEP, jb), (g.view(units, rows, height), STEP, ob), (out, ob, jb)
    boxes = [Boxes(v, list(v.shape), list(v.stride()), [1, down, across]) for v, down, across in cut]
    programs = min(units * tiles, _processors(g.device))
    _even_product[(programs,)](
        *boxes, out, squares, rows, width, tiles, units * tiles, programs, ob, jb, STEP, num_warps=8, num_stages=stages
    )
    return out, squares.sum(1)


# Shapes and tiles of equal units for which `_even_product` gave what `_product` gives, on this device.
_agreed: dict[tuple[object, ...], bool] = {}


def _even(a: Tensor, g: Tensor, each: int, large: bool) -> bool:
    """True for products that `_even_product` can do and did right when it was tried on random values of this shape."""
    wide = min(a.shape[1], g.shape[1]) >= 128 and a.shape[1] % 8 == g.shape[1] % 8 == 0 and each > 0
    aligned = a.data_ptr() % 16 == g.data_ptr() % 16 == 0
    if not (wide and aligned and g.dtype == torch.bfloat16 and Boxes is not None and hopper(g.device)):
        return False
    key = (g.device, a.shape[1], g.shape[1], each, large)
    if key not in _agreed:
        generator = torch.Generator().manual_seed(0)
        x, y = (torch.randn(3 * each, v.shape[1], generator=generator).to(v.device, v.dtype) for v in (a, g))
        try:
            want, square = _products(x, y, torch.arange(4, dtype=torch.int32, device=g.device) * each, each)
            got, found = _even_products(x, y, 3, large)
            near = (got.double() - want.double()).norm() <= 1e-2 * want.double().norm()
            _agreed[key] = bool(near) and bool((found / square - 1).abs().max() <= 1e-2)
        except Exception:  # whatever a compiler or a driver may raise: the other kernel is always there
            _agreed[key] = False
    return _agreed[key]


@torch.library.custom_op("confide::unit_products", mutates_args=())
def unit_products(inputs: Tensor, grads: Tensor, offsets: Tensor, rows: int, each: int) -> tuple[Tensor, Tensor]:
    """Sum of g a^T over the rows of each unit and its square: inputs (n, d), grads (n, p), offsets in rows.

    `rows` divides the number of rows of every unit; `each` is that number where all units have the same, else 0.
    """
    a, g = inputs.contiguous(), grads.contiguous()
    units = len(offsets) - 1
    large = each > 0 and _large(a, g, units)
    return _even_products(a, g, units, large) if _even(a, g, each, large) else _products(a, g, offsets, rows)


def _products(a: Tensor, g: Tensor, offsets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    width, height, units = a.shape[1], g.shape[1], len(offsets) - 1
    ob, jb = (min(128, max(16, triton.next_power_of_2(n))) for n in (height, width))
    half = g.dtype.itemsize == 2
    lb = STEP if half else 32
    tiles = triton.cdiv(height, ob) * triton.cdiv(width, jb)
    out = torch.empty((units, height, width), device=g.device, dtype=g.dtype)
    squares = torch.empty((units, tiles), device=g.device, dtype=torch.float64)
    aligned = width % 8 == height % 8 == 0 and a.data_ptr() % 16 == g.data_ptr() % 16 == 0
    boxes = half and aligned and Boxes is not None and hopper(g.device)
    fetched = [Boxes(v, list(v.shape), list(v.stride()), [lb, n]) for v, n in ((a, jb), (g, ob))] if boxes else [a, g]
    exact = g.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    _product[(units * tiles,)](
        a, g, *fetched, out, squares, offsets, width, height, tiles, boxes, not boxes or rows % lb != 0, ob, jb, lb,
        "ieee" if exact else "tf32", num_warps=8 if ob * jb >= 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return out, squares.sum(1)


@unit_products.register_fake
def _(inputs: Tensor, grads: Tensor, offsets: Tensor, rows: int, each: int) -> tuple[Tensor, Tensor]:
    units = len(offsets) - 1
    return grads.new_empty((units, grads.shape[1], inputs.shape[1])), grads.new_empty(units, dtype=torch.float64)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _row_sums(values, out, offsets, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    unit = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    high = tl.load(offsets + unit + 1)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(tl.load(offsets + unit), high, ROWS):
        m = (start + tl.arange(0, ROWS)).to(tl.int64)
        mask = (m < high)[:, None] & (n < width)[None, :]
        total += tl.load(values + m[:, None] * width + n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + unit * width + n, tl.sum(total, 0), mask=n < width)


@torch.library.custom_op("confide::unit_row_sums", mutates_args=())
def unit_row_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum over the rows of each unit of values (rows, p), in float32: (units, p)."""
    values = values.contiguous()
    width, units = values.shape[1], len(offsets) - 1
    out = torch.empty((units, width), device=values.device, dtype=torch.float32)
    block = 64 if width >= 64 else max(16, triton.next_power_of_2(width))
    _row_sums[(triton.cdiv(width, block), units)](values, out, offsets, width, 64, block, num_warps=4)
    return out


@unit_row_sums.register_fake
def _(values: Tensor, offsets: Tensor) -> Tensor:
    return values.new_empty((len(offsets) - 1, values.shape[1]), dtype=torch.float32)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _squares(values, out, width, STEPS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * STEPS * BLOCK
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for step in range(STEPS):
        n = first + step * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + row * width + n, mask=n < width, other=0.0).to(tl.float32)
        total += value * value
    tl.store(out + row * tl.num_programs(1) + tl.program_id(1), tl.sum(total.to(tl.float64), 0))


@torch.library.custom_op("confide::unit_squares", mutates_args=())
def unit_squares(values: Tensor) -> Tensor:
    """Sum of squares of each row of (units, n), float64: at most `CHAIN` additions in float32, then float64."""
    values = values.contiguous()
    units, width = values.shape
    block = min(2048, max(128, triton.next_power_of_2(width)))
    parts = triton.cdiv(width, CHAIN * block)
    out = torch.empty((units, parts), device=values.device, dtype=torch.float64)
    _squares[(units, parts)](values, out, width, min(CHAIN, triton.cdiv(width, block)), block, num_warps=8)
    return out.sum(1)


@unit_squares.register_fake
def _(values: Tensor) -> Tensor:
    return values.new_empty(len(values), dtype=torch.float64)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weighted(values, weights, out, units, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(0, units, ROWS):
        u = start + tl.arange(0, ROWS)
        w = tl.load(weights + u, mask=u < units, other=0.0)
        # A unit of weight zero is not read: zero times a value that is not finite would not be zero.
        mask = (w != 0.0)[:, None] & (n < width)[None, :]
        value = tl.load(values + u[:, None].to(tl.int64) * width + n[None, :], mask=mask, other=0.0)
        total += value.to(tl.float32) * w[:, None]
    tl.store(out + n, tl.sum(total, 0), mask=n < width)


@torch.library.custom_op("confide::weighted_sum", mutates_args=())
def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over units of weight x values (units, n), in float32."""
    values = values.contiguous()
    units, width = values.shape
    out = torch.empty(width, device=values.device, dtype=torch.float32)
    # narrow blocks of many units each: enough programs to keep all of the memory busy, enough loads in each
    block = min(1024, max(64, triton.next_power_of_2(width // PROGRAMS + 1)))
    rows = min(triton.next_power_of_2(units), 8192 // block)
    _weighted[(triton.cdiv(width, block),)](values, weights.float(), out, units, width, rows, block, num_warps=4)
    return out


@weighted_sum.register_fake
def _(values: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty(values.shape[1], dtype=torch.float32)
