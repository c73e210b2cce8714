"""The Triton kernels behind `kernels.py`: weight gradients by unit, their norms, their weighted sum.

Work is cut into segments: a stretch of output positions of one unit, at most ``most`` long, so that one long unit
does not keep a single processor busy while the others wait. A unit of one segment is written at once; the parts of
longer units go to float32 slots that a second kernel adds in order, so that the result never depends on timing. Which
segment is whose follows from the offsets of the units, read on the device: no shape depends on the data.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

# Programs that keep a large GPU busy, and the fewest steps of a segment that are worth a program.
PROGRAMS, LEAST_STEPS = 528, 16
# Additions in a row in float32 that `squares` may make; see arithmetic.py.
CHAIN = 32


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _locate(offsets, number, units, area, most, UB: tl.constexpr):  # type: ignore[no-untyped-def]
    """Unit, first and last position, slot (-1: none) of segment `number`; unit = `units` where there is none."""
    u = tl.arange(0, UB)
    inside = u < units
    begin = tl.load(offsets + u, mask=inside, other=0) * area
    end = tl.load(offsets + u + 1, mask=inside, other=0) * area
    parts = tl.where(inside, tl.maximum(tl.cdiv(end - begin, most), 1), 0)
    ends = tl.cumsum(parts, 0)
    unit = tl.sum((ends <= number).to(tl.int32), 0)
    mine = u == unit
    own = tl.sum(tl.where(mine, parts, 0), 0)
    within = number - (tl.sum(tl.where(mine, ends, 0), 0) - own)
    low = tl.sum(tl.where(mine, begin, 0), 0) + within * most
    high = tl.minimum(tl.sum(tl.where(mine, end, 0), 0), low + most)
    before = tl.sum(tl.where((u < unit) & (parts > 1), parts, 0), 0)
    slot = tl.where(own > 1, before + within, -1)
    return unit, low, high, slot, own


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weight_gradient(  # type: ignore[no-untyped-def]
    a, g, out, slots, offsets, a_entry, a_row, a_column, g_entry, g_row, g_column, height, width, out_height,
    out_width, outputs, units, most,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PLAIN: tl.constexpr,
    OB: tl.constexpr, JB: tl.constexpr, LB: tl.constexpr, UB: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    area = out_height * out_width
    unit, low, high, slot, _ = _locate(offsets, tl.program_id(0), units, area, most, UB)
    if unit >= units:
        return
    tiles = tl.cdiv(COLUMNS, JB)
    o = (tl.program_id(1) // tiles) * OB + tl.arange(0, OB)
    j = (tl.program_id(1) % tiles) * JB + tl.arange(0, JB)
    c = j % CHANNELS
    ky = (j // CHANNELS) // KW
    kx = (j // CHANNELS) % KW
    total = tl.zeros((OB, JB), dtype=tl.float32)
    for start in range(low, high, LB):
        m = start + tl.arange(0, LB)
        there = m < high
        entry = (m // area).to(tl.int64)
        place = m % area
        y = place // out_width
        x = place % out_width
        gp = g + entry * g_entry + y * g_row + x * g_column
        gv = tl.load(gp[:, None] + o[None, :], mask=there[:, None] & (o < outputs)[None, :], other=0.0)
        if PLAIN:
            ap = a + entry * a_entry + y * a_row + x * a_column
            av = tl.load(ap[:, None] + j[None, :], mask=there[:, None] & (j < COLUMNS)[None, :], other=0.0)
        else:
            iy = (y * SH - PH)[:, None] + (ky * DH)[None, :]
            ix = (x * SW - PW)[:, None] + (kx * DW)[None, :]
            inside = (iy >= 0) & (iy < height) & (ix >= 0) & (ix < width)
            ap = (a + entry * a_entry)[:, None] + (iy * a_row + ix * a_column + c[None, :])
            av = tl.load(ap, mask=inside & there[:, None] & (j < COLUMNS)[None, :], other=0.0)
        total = tl.dot(tl.trans(gv), av, total, input_precision=PRECISION)
    where = o[:, None].to(tl.int64) * COLUMNS + j[None, :]
    mask = (o < outputs)[:, None] & (j < COLUMNS)[None, :]
    size = tl.cast(outputs, tl.int64) * COLUMNS
    if slot >= 0:
        tl.store(slots + slot * size + where, total, mask=mask)
    else:
        tl.store(out + unit * size + where, total.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _join(slots, out, offsets, size, area, units, most, UB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add the parts of the units that have several, in order."""
    unit = tl.program_id(0)
    u = tl.arange(0, UB)
    inside = u < units
    length = (tl.load(offsets + u + 1, mask=inside, other=0) - tl.load(offsets + u, mask=inside, other=0)) * area
    parts = tl.where(inside, tl.maximum(tl.cdiv(length, most), 1), 0)
    own = tl.sum(tl.where(u == unit, parts, 0), 0)
    if own > 1:
        first = tl.sum(tl.where((u < unit) & (parts > 1), parts, 0), 0).to(tl.int64)
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for part in range(0, own):
            total += tl.load(slots + (first + part) * size + n, mask=n < size, other=0.0)
        tl.store(out + unit.to(tl.int64) * size + n, total.to(out.dtype.element_ty), mask=n < size)


def _last(value: Tensor) -> Tensor:
    """Bring channels last in memory (no copy if they are)."""
    return value if value.stride(1) == 1 else value.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("confide::unit_convolution", mutates_args=())
def unit_convolution(
    inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int], largest: int
) -> Tensor:
    """Weight gradient of each unit: (units, out channels, window * channels), in the precision of `grads`.

    `largest` is a bound, known on the host, of the number of images of a unit.
    """
    outputs, channels, kh, kw = shape
    sh, sw, ph, pw, dh, dw = window
    columns, units = channels * kh * kw, len(offsets) - 1
    a, g = _last(inputs), _last(grads)
    ob = min(128, max(16, triton.next_power_of_2(outputs)))
    jb = min(128, max(16, triton.next_power_of_2(columns)))
    lb = 64 if g.dtype.itemsize == 2 else 32
    ub = max(16, triton.next_power_of_2(units))
    tiles = triton.cdiv(outputs, ob) * triton.cdiv(columns, jb)
    area = g.shape[2] * g.shape[3]
    positions = len(g) * area
    most = min(2 * positions // max(units, 1), positions * tiles // PROGRAMS)
    most = triton.cdiv(max(most, LEAST_STEPS * lb, 1), lb) * lb
    segments = units + positions // most
    out = torch.empty((units, outputs, columns), device=g.device, dtype=g.dtype)
    split = largest * area > most
    count = min(segments, 2 * positions // most) if split else 0
    slots = torch.empty((max(count, 1), outputs if split else 1, columns), device=g.device, dtype=torch.float32)
    exact = g.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    _weight_gradient[(segments if split else units, tiles)](
        a, g, out, slots, offsets, a.stride(0), a.stride(2), a.stride(3), g.stride(0), g.stride(2), g.stride(3),
        a.shape[2], a.shape[3], g.shape[2], g.shape[3], outputs, units, most,
        channels, columns, kw, sh, sw, ph, pw, dh, dw, kh * kw == 1 and ph == pw == 0 and sh == sw == 1,
        ob, jb, lb, ub, "ieee" if exact else "tf32", num_warps=8 if ob * jb >= 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    if split:
        size = outputs * columns
        _join[(units, triton.cdiv(size, 1024))](slots, out, offsets, size, area, units, most, ub, 1024)
    return out


@unit_convolution.register_fake
def _(inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int], largest: int) -> Tensor:
    return grads.new_empty((len(offsets) - 1, shape[0], shape[1] * shape[2] * shape[3]))


@torch.library.custom_op("confide::unit_products", mutates_args=())
def unit_products(inputs: Tensor, grads: Tensor, offsets: Tensor) -> Tensor:
    """Sum of g a^T over the rows of each unit, in bfloat16: inputs (rows, d), grads (rows, p), offsets in rows."""
    return torch._grouped_mm(grads.t(), inputs, offs=offsets[1:])


@unit_products.register_fake
def _(inputs: Tensor, grads: Tensor, offsets: Tensor) -> Tensor:
    return grads.new_empty((len(offsets) - 1, grads.shape[1], inputs.shape[1]))


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
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, units, ROWS):
        u = start + tl.arange(0, ROWS)
        w = tl.load(weights + u, mask=u < units, other=0.0)
        # A unit of weight zero is not read: zero times a value that is not finite would not be zero.
        mask = (w != 0.0)[:, None] & (n < width)[None, :]
        value = tl.load(values + u[:, None].to(tl.int64) * width + n[None, :], mask=mask, other=0.0)
        total += tl.sum(value.to(tl.float32) * w[:, None], 0)
    tl.store(out + n, total, mask=n < width)


@torch.library.custom_op("confide::weighted_sum", mutates_args=())
def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over units of weight x values (units, n), in float32."""
    values = values.contiguous()
    units, width = values.shape
    out = torch.empty(width, device=values.device, dtype=torch.float32)
    block = min(1024, max(128, triton.next_power_of_2(width)))
    _weighted[(triton.cdiv(width, block),)](values, weights.float(), out, units, width, 8, block, num_warps=4)
    return out


@weighted_sum.register_fake
def _(values: Tensor, weights: Tensor) -> Tensor:
    return values.new_empty(values.shape[1], dtype=torch.float32)
