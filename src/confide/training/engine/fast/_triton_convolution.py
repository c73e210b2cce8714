"""Weight gradients of convolutions by unit, and their norms, in Triton; see `kernels.py`.

Work is cut into segments: a stretch of output positions of one unit, at most ``most`` long, so that one long unit
does not keep a single processor busy while the others wait. A unit of one segment is written at once; the parts of
longer units go to float32 slots that a second kernel adds in order, so that the result never depends on timing. Which
segment is whose follows from the offsets of the units, read on the device: no shape depends on the data.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from confide.training.engine.fast._triton import Boxes, _square, hopper

# Programs that keep a large GPU busy, and the fewest steps of a segment that are worth a program.
PROGRAMS, LEAST_STEPS = 396, 32
# Axes of an image batch with channels last.
LAST = (0, 2, 3, 1)
# Values that one program adds up where a unit was cut; most programs find nothing to do, so they are few.
JOIN = 4096


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
def _tap(pointers, gt, total, c, x, there, width, whole, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add one tap of the window: rows of the input that lie outside of the image are zero."""
    mask = (there & (x >= 0) & (x < width))[:, None] & whole
    return tl.dot(gt, tl.load(pointers[:, None] + c[None, :], mask=mask, other=0.0), total, input_precision=PRECISION)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _put(out, squares, slots, total, unit, slot, place, tap, o, c, outputs, parts, tile,  # type: ignore[no-untyped-def]
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, OB: tl.constexpr, CB: tl.constexpr,
):  # fmt: skip
    where = o[:, None].to(tl.int64) * COLUMNS + (place + tap) * CHANNELS + c[None, :]
    mask = (o < outputs)[:, None] & (c < CHANNELS)[None, :]
    size = tl.cast(outputs, tl.int64) * COLUMNS
    if slot >= 0:
        tl.store(slots + slot * size + where, total, mask=mask)
    else:
        rounded = total.to(out.dtype.element_ty)
        tl.store(out + unit * size + where, rounded, mask=mask)
        tl.store(squares + unit * parts + tile, _square(rounded, OB, CB))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weight_gradient(  # type: ignore[no-untyped-def]
    a, g, out, squares, slots, offsets, a_entry, a_row, a_column, g_entry, g_row, g_column, height, width, outputs,
    units, most, parts,
    CHANNELS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr, AREA: tl.constexpr, OUT_WIDTH: tl.constexpr,
    TAPS: tl.constexpr, SPLIT: tl.constexpr, OB: tl.constexpr, CB: tl.constexpr, LB: tl.constexpr, UB: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (CHANNELS + CB - 1) // CB
    columns: tl.constexpr = KH * (KW // TAPS) * blocks
    tiles = tl.cdiv(outputs, OB) * columns
    # all tiles of a segment run side by side and share what they read in the cache
    tile = tl.program_id(0) % tiles
    unit = tl.program_id(0) // tiles
    if SPLIT:
        unit, low, high, slot, _ = _locate(offsets, unit, units, AREA, most, UB)
        if unit >= units:
            return
    else:
        low = tl.load(offsets + unit) * AREA
        high = tl.load(offsets + unit + 1) * AREA
        slot = -1
    o = (tile // columns) * OB + tl.arange(0, OB)
    rest = tile % columns
    c = (rest % blocks) * CB + tl.arange(0, CB)
    kx = ((rest // blocks) % (KW // TAPS)) * TAPS
    ky = rest // (blocks * (KW // TAPS))
    whole = (c < CHANNELS)[None, :]
    first = tl.zeros((OB, CB), dtype=tl.float32)
    second = tl.zeros((OB, CB), dtype=tl.float32)
    third = tl.zeros((OB, CB), dtype=tl.float32)
    for start in range(low, high, LB):
        m = start + tl.arange(0, LB)
        there = m < high
        entry = (m // AREA).to(tl.int64)
        place = m % AREA
        y = place // OUT_WIDTH
        x = place % OUT_WIDTH
        gp = g + entry * g_entry + y * g_row + x * g_column
        gt = tl.trans(tl.load(gp[:, None] + o[None, :], mask=there[:, None] & (o < outputs)[None, :], other=0.0))
        iy = y * SH - PH + ky * DH
        ix = x * SW - PW + kx * DW
        inside = there & (iy >= 0) & (iy < height)
        ap = a + entry * a_entry + iy * a_row + ix * a_column
        first = _tap(ap, gt, first, c, ix, inside, width, whole, PRECISION)
        if TAPS == 3:
            second = _tap(ap + DW * a_column, gt, second, c, ix + DW, inside, width, whole, PRECISION)
            third = _tap(ap + 2 * DW * a_column, gt, third, c, ix + 2 * DW, inside, width, whole, PRECISION)
    COLUMNS: tl.constexpr = CHANNELS * KH * KW
    tap = ky * KW + kx
    _put(out, squares, slots, first, unit, slot, tap, 0, o, c, outputs, parts, tile * TAPS, CHANNELS, COLUMNS, OB, CB)
    if TAPS == 3:
        at = tile * TAPS
        _put(out, squares, slots, second, unit, slot, tap, 1, o, c, outputs, parts, at + 1, CHANNELS, COLUMNS, OB, CB)
        _put(out, squares, slots, third, unit, slot, tap, 2, o, c, outputs, parts, at + 2, CHANNELS, COLUMNS, OB, CB)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weight_gradient_boxes(  # type: ignore[no-untyped-def]
    a, g, out, squares, slots, offsets, outputs, units, most, parts,
    CHANNELS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    AREA: tl.constexpr, OUT_WIDTH: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, SPLIT: tl.constexpr,
    OB: tl.constexpr, CB: tl.constexpr, UB: tl.constexpr,
):  # fmt: skip
    """`_weight_gradient` for windows of width 3 and stride 1 where boxes of ROWS x WIDE positions tile the image.

    The bulk copy engine fetches the boxes (and fills in zeros outside of the image), so no addresses are computed.
    """
    LB: tl.constexpr = ROWS * WIDE
    blocks: tl.constexpr = (CHANNELS + CB - 1) // CB
    columns: tl.constexpr = KH * (KW // 3) * blocks
    tiles = tl.cdiv(outputs, OB) * columns
    tile = tl.program_id(0) % tiles
    unit = tl.program_id(0) // tiles
    if SPLIT:
        unit, low, high, slot, _ = _locate(offsets, unit, units, AREA, most, UB)
        if unit >= units:
            return
    else:
        low = tl.load(offsets + unit) * AREA
        high = tl.load(offsets + unit + 1) * AREA
        slot = -1
    begin = (tile // columns) * OB
    rest = tile % columns
    channel = (rest % blocks) * CB
    kx = ((rest // blocks) % (KW // 3)) * 3
    ky = rest // (blocks * (KW // 3))
    each: tl.constexpr = AREA // LB
    across: tl.constexpr = OUT_WIDTH // WIDE
    first = tl.zeros((OB, CB), dtype=tl.float32)
    second = tl.zeros((OB, CB), dtype=tl.float32)
    third = tl.zeros((OB, CB), dtype=tl.float32)
    for step in range(low // LB, high // LB):
        entry = step // each
        y = ((step % each) // across) * ROWS
        x = (step % across) * WIDE
        gt = g.load([entry, y, x, begin]).reshape(LB, OB).T
        y += ky - PH
        x += kx - PW
        first = tl.dot(gt, a.load([entry, y, x, channel]).reshape(LB, CB), first)
        second = tl.dot(gt, a.load([entry, y, x + 1, channel]).reshape(LB, CB), second)
        third = tl.dot(gt, a.load([entry, y, x + 2, channel]).reshape(LB, CB), third)
    COLUMNS: tl.constexpr = CHANNELS * KH * KW
    o = begin + tl.arange(0, OB)
    c = channel + tl.arange(0, CB)
    tap = ky * KW + kx
    at = tile * 3
    _put(out, squares, slots, first, unit, slot, tap, 0, o, c, outputs, parts, at, CHANNELS, COLUMNS, OB, CB)
    _put(out, squares, slots, second, unit, slot, tap, 1, o, c, outputs, parts, at + 1, CHANNELS, COLUMNS, OB, CB)
    _put(out, squares, slots, third, unit, slot, tap, 2, o, c, outputs, parts, at + 2, CHANNELS, COLUMNS, OB, CB)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _join(  # type: ignore[no-untyped-def]
    slots, out, squares, offsets, size, area, units, most, parts, first_part, UB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the segments of the units that have several, in order."""
    unit = tl.program_id(0)
    u = tl.arange(0, UB)
    inside = u < units
    length = (tl.load(offsets + u + 1, mask=inside, other=0) - tl.load(offsets + u, mask=inside, other=0)) * area
    segments = tl.where(inside, tl.maximum(tl.cdiv(length, most), 1), 0)
    own = tl.sum(tl.where(u == unit, segments, 0), 0)
    if own > 1:
        first = tl.sum(tl.where((u < unit) & (segments > 1), segments, 0), 0).to(tl.int64)
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for part in range(0, own):
            total += tl.load(slots + (first + part) * size + n, mask=n < size, other=0.0)
        rounded = total.to(out.dtype.element_ty)
        tl.store(out + unit.to(tl.int64) * size + n, rounded, mask=n < size)
        wide = rounded.to(tl.float32)
        tl.store(squares + unit * parts + first_part + tl.program_id(1), tl.sum((wide * wide).to(tl.float64), 0))


def _last(value: Tensor) -> Tensor:
    """Bring channels last in memory (no copy if they are)."""
    return value if value.stride(1) == 1 else value.contiguous(memory_format=torch.channels_last)


class Tile(NamedTuple):
    """How a kernel cuts its work: outputs and channels of a tile, taps side by side, positions of a step."""

    outputs: int
    channels: int
    taps: int
    positions: int
    warps: int
    stages: int
    box: tuple[int, int] | None = None  # rows and columns of a step, where boxes are fetched


def convolution_tile(inputs: Tensor, grads: Tensor, shape: list[int], window: list[int], *, boxes: bool = True) -> Tile:
    """Choose the tile of a convolution; the figures were measured on an H100."""
    outputs, channels, _, kw = shape
    ob, cb = (min(n, max(16, triton.next_power_of_2(v))) for n, v in ((128, outputs), (64, channels)))
    taps = 3 if kw == 3 else 1
    if grads.dtype.itemsize > 2:
        return Tile(min(64, ob), cb, taps, 32, 8, 2)
    height, width = grads.shape[2:]
    plain = window[0] == window[1] == window[4] == window[5] == 1 and taps == 3
    aligned = all(v.data_ptr() % 16 == 0 and all(v.stride(i) % 8 == 0 for i in (0, 2, 3)) for v in (inputs, grads))
    if boxes and plain and aligned and Boxes is not None and hopper(grads.device):
        positions = 128 if ob <= 64 and height * width % 128 == 0 else 64
        wide = min(width & -width, positions)
        rows = positions // wide
        if wide >= 8 and height % rows == 0:
            return Tile(ob, cb, 3, positions, 4, 3, (rows, wide))
    return Tile(ob, cb, taps, 64, 4, 3)


# Shapes of convolutions for which fetching boxes gave what computing addresses gives, on this device.
_agreed: dict[tuple[object, ...], bool] = {}


def _agree(inputs: Tensor, grads: Tensor, shape: list[int], window: list[int], tile: Tile) -> bool:
    """Try a tile once on random values of a shape before it is used for it."""
    key = (grads.device, grads.dtype, *grads.shape[1:], *inputs.shape[1:], *shape, *window)
    if key not in _agreed:
        generator = torch.Generator().manual_seed(0)
        x, y = (
            torch.randn(7, *v.shape[1:], generator=generator)
            .to(v.device, v.dtype)
            .contiguous(memory_format=torch.channels_last)
            for v in (inputs, grads)
        )
        offsets = torch.tensor([0, 1, 6, 7], dtype=torch.int32, device=grads.device)
        try:
            other = convolution_tile(x, y, shape, window, boxes=False)
            want = _convolution(x, y, offsets, shape, window, 5, other)
            found = [_convolution(x, y, offsets, shape, window, 5, tile) for _ in range(3)]
            _agreed[key] = all(
                bool((got.double() - want[0].double()).norm() <= 1e-2 * want[0].double().norm())
                and bool((square / want[1] - 1).abs().max() <= 1e-2)
                for got, square in found
            )
        except Exception:  # whatever a compiler or a driver may raise: the other kernel is always there
            _agreed[key] = False
    return _agreed[key]


@torch.library.custom_op("confide::unit_convolution", mutates_args=())
def unit_convolution(
    inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int], largest: int
) -> tuple[Tensor, Tensor]:
    """Weight gradient of each unit and the square of its norm.

    Gradients are (units, out channels, window * channels) in the precision of `grads`; squares (float64) are those of
    the stored values. `window` is stride, padding and dilation; `largest` is a bound, known on the host, of the number
    of images of a unit.
    """
    a, g = _last(inputs), _last(grads)
    tile = convolution_tile(a, g, shape, window)
    if tile.box is not None and not _agree(a, g, shape, window, tile):
        tile = convolution_tile(a, g, shape, window, boxes=False)
    return _convolution(a, g, offsets, shape, window, largest, tile)


def _convolution(
    a: Tensor, g: Tensor, offsets: Tensor, shape: list[int], window: list[int], largest: int, tile: Tile
) -> tuple[Tensor, Tensor]:
    outputs, channels, kh, kw = shape
    sh, sw, ph, pw, dh, dw = window
    columns, units = channels * kh * kw, len(offsets) - 1
    ob, cb, taps, lb, warps, stages, box = tile
    ub = max(16, triton.next_power_of_2(units))
    tiles = triton.cdiv(outputs, ob) * triton.cdiv(channels, cb) * kh * (kw // taps)
    area = g.shape[2] * g.shape[3]
    positions = len(g) * area
    most = min(2 * positions // max(units, 1), positions * tiles // PROGRAMS)
    most = triton.cdiv(max(most, LEAST_STEPS * lb, 1), lb) * lb
    segments = units + positions // most
    out = torch.empty((units, outputs, columns), device=g.device, dtype=g.dtype)
    split = largest * area > most
    count = min(segments, 2 * positions // most) if split else 0
    slots = torch.empty((max(count, 1), outputs if split else 1, columns), device=g.device, dtype=torch.float32)
    size = outputs * columns
    joins = triton.cdiv(size, JOIN) if split else 0
    parts = tiles * taps + joins
    made = torch.zeros if split else torch.empty
    squares = made((units, parts), device=g.device, dtype=torch.float64)
    grid = ((segments if split else units) * tiles,)
    if box is not None:
        boxes = [
            Boxes(v, [v.shape[i] for i in LAST], [v.stride(i) for i in LAST], [1, *box, width])
            for v, width in ((a, cb), (g, ob))
        ]
        _weight_gradient_boxes[grid](
            *boxes, out, squares, slots, offsets, outputs, units, most, parts, channels, kh, kw, ph, pw, area,
            g.shape[3], *box, split, ob, cb, ub, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    else:
        exact = g.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
        _weight_gradient[grid](
            a, g, out, squares, slots, offsets, a.stride(0), a.stride(2), a.stride(3), g.stride(0), g.stride(2),
            g.stride(3), a.shape[2], a.shape[3], outputs, units, most, parts,
            channels, kh, kw, sh, sw, ph, pw, dh, dw, area, g.shape[3], taps, split, ob, cb, lb, ub,
            "ieee" if exact else "tf32", num_warps=warps, num_stages=stages,
        )  # fmt: skip
    if split:
        args = offsets, size, area, units, most, parts, tiles * taps, ub, JOIN
        _join[(units, joins)](slots, out, squares, *args, num_warps=8)
    return out, squares.sum(1)


@unit_convolution.register_fake
def _(
    inputs: Tensor, grads: Tensor, offsets: Tensor, shape: list[int], window: list[int], largest: int
) -> tuple[Tensor, Tensor]:
    units = len(offsets) - 1
    return (
        grads.new_empty((units, shape[0], shape[1] * shape[2] * shape[3])),
        grads.new_empty(units, dtype=torch.float64),
    )
