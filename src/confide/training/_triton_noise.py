"""ChaCha20 and Box-Muller in Triton: the noise of all tensors of a step in one launch; see `device_noise.py`."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from triton.language.extra import libdevice  # type: ignore[import-not-found,unused-ignore]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _rotate(x, n: tl.constexpr):  # type: ignore[no-untyped-def]
    return (x << n) | (x >> (32 - n))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _quarter(a, b, c, d):  # type: ignore[no-untyped-def]
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _pair(w0, w1, w2):  # type: ignore[no-untyped-def]
    """Two normal numbers: the radius from 64 bits, the angle from 32."""
    # -log of u = (w0 2^32 + w1 + 1/2) / 2^64 in float32: from u itself below 1/2, from 1 - u (the complement of the
    # bits, so nothing is lost) above
    low = (w0 >> 31) == 0
    h, t = tl.where(low, w0, ~w0), tl.where(low, w1, ~w1)
    near = (h.to(tl.float32) * 4294967296.0 + (t.to(tl.float32) + 0.5)) * 5.421010862427522e-20
    radius = tl.sqrt(-2.0 * tl.where(low, libdevice.log(near), libdevice.log1p(-near)))
    angle = (w2.to(tl.float32) + 0.5) * 1.4629180792671596e-09
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _put(base, n, size, z, scale, share):  # type: ignore[no-untyped-def]
    there = (n >= 0) & (n < size)
    value = tl.load(base + n, mask=there, other=0.0)
    tl.store(base + n, (value + scale * z) * share, mask=there)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _add(table, starts, sizes, begins, key, tensors, scale, share, TB: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.arange(0, TB)
    first = tl.load(starts + t, mask=t < tensors, other=2147483647)
    which = tl.sum((first <= tl.program_id(0)).to(tl.int32), 0) - 1
    begin = tl.load(begins + which)
    tile = tl.program_id(0) - tl.load(starts + which) + begin // (10 * WIDE)
    size = tl.load(sizes + which)
    base = tl.load(table + which).to(tl.pointer_type(tl.float32))
    column = tl.arange(0, WIDE)
    zero = (column * 0).to(tl.uint32)
    counter = (tile * WIDE + column).to(tl.uint32)
    x0, x1, x2, x3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    x4, x5 = zero + tl.load(key + 0).to(tl.uint32), zero + tl.load(key + 1).to(tl.uint32)
    x6, x7 = zero + tl.load(key + 2).to(tl.uint32), zero + tl.load(key + 3).to(tl.uint32)
    x8, x9 = zero + tl.load(key + 4).to(tl.uint32), zero + tl.load(key + 5).to(tl.uint32)
    x10, x11 = zero + tl.load(key + 6).to(tl.uint32), zero + tl.load(key + 7).to(tl.uint32)
    x12, x13, x14, x15 = counter, zero, zero, zero
    for _ in range(10):
        x0, x4, x8, x12 = _quarter(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter(x3, x4, x9, x14)
    x0, x1, x2, x3 = x0 + 0x61707865, x1 + 0x3320646E, x2 + 0x79622D32, x3 + 0x6B206574
    x4, x5 = x4 + tl.load(key + 0).to(tl.uint32), x5 + tl.load(key + 1).to(tl.uint32)
    x6, x7 = x6 + tl.load(key + 2).to(tl.uint32), x7 + tl.load(key + 3).to(tl.uint32)
    x8, x9 = x8 + tl.load(key + 4).to(tl.uint32), x9 + tl.load(key + 5).to(tl.uint32)
    x10, x11 = x10 + tl.load(key + 6).to(tl.uint32), x11 + tl.load(key + 7).to(tl.uint32)
    x12 = x12 + counter
    n = tile.to(tl.int64) * (10 * WIDE) + column - begin
    z0, z1 = _pair(x0, x1, x2)
    _put(base, n, size, z0, scale, share)
    _put(base, n + WIDE, size, z1, scale, share)
    z0, z1 = _pair(x3, x4, x5)
    _put(base, n + 2 * WIDE, size, z0, scale, share)
    _put(base, n + 3 * WIDE, size, z1, scale, share)
    z0, z1 = _pair(x6, x7, x8)
    _put(base, n + 4 * WIDE, size, z0, scale, share)
    _put(base, n + 5 * WIDE, size, z1, scale, share)
    z0, z1 = _pair(x9, x10, x11)
    _put(base, n + 6 * WIDE, size, z0, scale, share)
    _put(base, n + 7 * WIDE, size, z1, scale, share)
    z0, z1 = _pair(x12, x13, x14)
    _put(base, n + 8 * WIDE, size, z0, scale, share)
    _put(base, n + 9 * WIDE, size, z1, scale, share)


def add_noise(
    values: list[Tensor], words: list[int], scale: float, denominator: float, wide: int, begin: int = 0
) -> None:
    """Turn every float32 tensor v, in place, into (v + scale z) / denominator, z from place `begin` on."""
    device = values[0].device
    sizes = [value.numel() for value in values]
    starts, begins, total = [], [], 0
    for size in sizes:
        starts.append(total)
        begins.append(begin)
        total += triton.cdiv(begin + size, 10 * wide) - begin // (10 * wide)
        begin += size

    # one copy to the device for all numbers, the 64-bit ones first
    numbers = [value.data_ptr() for value in values] + sizes + begins + words
    n = len(values)
    held = torch.cat([torch.tensor(numbers), torch.tensor(starts, dtype=torch.int32).repeat(2).view(torch.int64)])
    held = held.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else held
    table, length, begun, key = held[:n], held[n : 2 * n], held[2 * n : 3 * n], held[3 * n : 3 * n + 8]
    block = max(16, triton.next_power_of_2(n))
    first = held[3 * n + 8 :].view(torch.int32)
    _add[(total,)](table, first, length, begun, key, n, scale, 1.0 / denominator, block, wide, num_warps=4)
