"""The Triton kernel behind `kernels.py`, registered as the operator ``confide::unit_convolution``."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

# Programs that keep a large GPU busy; long units are split over several of them until there are that many.
PROGRAMS, MOST_SPLITS, LEAST_STEPS = 528, 64, 8


@triton.jit  # type: ignore[untyped-decorator]
def _weight_gradient(  # type: ignore[no-untyped-def]
    a, g, out, offsets, a_entry, a_row, a_column, g_entry, g_row, g_column, height, width, out_height, out_width,
    outputs, splits,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, PLAIN: tl.constexpr,
    OB: tl.constexpr, JB: tl.constexpr, LB: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    unit, split = tl.program_id(0), tl.program_id(2)
    tiles = tl.cdiv(COLUMNS, JB)
    o = (tl.program_id(1) // tiles) * OB + tl.arange(0, OB)
    j = (tl.program_id(1) % tiles) * JB + tl.arange(0, JB)
    c = j % CHANNELS
    ky = (j // CHANNELS) // KW
    kx = (j // CHANNELS) % KW
    area = out_height * out_width
    first = tl.load(offsets + unit) * area
    last = tl.load(offsets + unit + 1) * area
    share = tl.cdiv(tl.cdiv(last - first, LB), splits) * LB
    low = first + split * share
    high = tl.minimum(last, low + share)
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
    to = out + ((unit.to(tl.int64) * splits + split) * outputs + o[:, None]) * COLUMNS + j[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=(o < outputs)[:, None] & (j < COLUMNS)[None, :])


def _last(value: Tensor) -> Tensor:
    """Bring channels last in memory (no copy if they are)."""
    return value if value.stride(1) == 1 else value.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("confide::unit_convolution", mutates_args=())
def unit_convolution(inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int]) -> Tensor:
    """Weight gradient of each unit: (units, out channels, window * channels), in the precision of `grads`."""
    outputs, channels, kh, kw = shape
    sh, sw, ph, pw, dh, dw = window
    columns, units = channels * kh * kw, len(offsets) - 1
    a, g = _last(inputs), _last(grads)
    ob = min(128, max(16, triton.next_power_of_2(outputs)))
    jb = min(128, max(16, triton.next_power_of_2(columns)))
    lb = 64 if g.dtype.itemsize == 2 else 32
    tiles = triton.cdiv(outputs, ob) * triton.cdiv(columns, jb)
    steps = triton.cdiv(len(g) * g.shape[2] * g.shape[3], max(units, 1) * lb)
    splits = max(1, min(MOST_SPLITS, triton.cdiv(PROGRAMS, units * tiles), steps // LEAST_STEPS))
    shape_out = (units, splits, outputs, columns) if splits > 1 else (units, outputs, columns)
    out = torch.empty(shape_out, device=g.device, dtype=torch.float32 if splits > 1 else g.dtype)
    exact = g.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    _weight_gradient[(units, tiles, splits)](
        a, g, out, offsets, a.stride(0), a.stride(2), a.stride(3), g.stride(0), g.stride(2), g.stride(3),
        a.shape[2], a.shape[3], g.shape[2], g.shape[3], outputs, splits,
        channels, columns, kw, sh, sw, ph, pw, dh, dw, kh * kw == 1 and ph == pw == 0 and sh == sw == 1,
        ob, jb, lb, "ieee" if exact else "tf32", num_warps=8 if ob * jb >= 128 * 128 else 4, num_stages=3,
    )  # fmt: skip
    return out.sum(1).to(g.dtype) if splits > 1 else out


@unit_convolution.register_fake
def _(inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int]) -> Tensor:
    return grads.new_empty((len(offsets) - 1, shape[0], shape[1] * shape[2] * shape[3]))
