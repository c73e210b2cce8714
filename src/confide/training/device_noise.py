"""Noise drawn where the sum is: ChaCha20 keyed by the step, normal numbers by Box and Muller, as fine as the sum.

>>> value = torch.zeros(5000)
>>> add_noise([value], bytes(32), scale=2.0, denominator=1.0)
>>> bool(1.9 < float(value.std()) < 2.1)
True

Every step has a key of 256 bits of its own, derived one-way from a secret of the operating system (`RunKeys`); the
tensors take their numbers from one stream, one after the other, as if they were one flat vector, and any part of it can
be drawn alone. So the numbers are as hard to guess as ChaCha20 is to break, on the
device as on the host, and a resumed run draws the same again. One block of 16 words gives ten numbers: of every three
words two make the radius of a pair (64 bits, so that tails reach 9.4 standard deviations), one the angle.

What this is not: safe against the finite grid of floating-point numbers (Mironov, CCS 2012). The "secure" noise of
`confide.mechanisms` is, is drawn on the host, and stays the one to name where that matters.

References
----------
Nir, Langley: ChaCha20 and Poly1305 for IETF protocols. RFC 8439, 2018.
Box, Muller: A note on the generation of random normal deviates. Ann. Math. Stat. 29, 1958.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from confide.errors import InputError

try:
    from confide.training import _triton_noise
except ImportError:  # no Triton on this machine: CPU builds of PyTorch
    _triton_noise = None  # type: ignore[assignment]

# Blocks side by side: number i of block c in a tile is element i * WIDE + c.
WIDE, EACH = 256, 10
# A stream has 2^32 blocks.
MOST = EACH << 32
NAME = "ChaCha20 on the device, 256-bit key from the operating system, float32 (float64 for float64 sums)"
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")
_ROUNDS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)) + (
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)
)  # fmt: skip
_MASK = 0xFFFFFFFF


def chacha20(key: bytes, counters: Tensor, nonce: Sequence[int]) -> Tensor:
    """Return the key stream of ChaCha20 as words, int64 in 0..2^32-1, shape (blocks, 16).

    Parameters
    ----------
    key : bytes
        32 bytes.
    counters : int64 tensor, shape (blocks,)
    nonce : three ints below 2^32
    """
    start = [*_CONSTANTS, *struct.unpack("<8I", key), counters, *nonce]
    first = [torch.zeros_like(counters) + value for value in start]
    x = list(first)

    def step(a: int, b: int, d: int, turn: int) -> None:
        x[a] = (x[a] + x[b]) & _MASK
        mixed = x[d] ^ x[a]
        x[d] = ((mixed << turn) & _MASK) | (mixed >> (32 - turn))

    for _ in range(10):
        for a, b, c, d in _ROUNDS:
            step(a, b, d, 16)
            step(c, d, b, 12)
            step(a, b, d, 8)
            step(c, d, b, 7)
    return torch.stack([(value + begin) & _MASK for value, begin in zip(x, first, strict=True)], 1)


def normals(key: bytes, size: int, device: torch.device, begin: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers from place `begin` of the stream on, in plain PyTorch.

    For a sum in float64 they have to be float64: noise on the coarse grid of float32 would leave the last 29 bits of
    the sum as they are, and these tell one sum from another.
    """
    first, last = begin // (EACH * WIDE), -(-(begin + size) // (EACH * WIDE))
    tiles = last - first
    words = chacha20(key, torch.arange(first * WIDE, last * WIDE, device=device), (0, 0, 0)).double()
    out = words.new_empty((tiles, EACH, WIDE), dtype=dtype)
    groups = words[:, :15].reshape(tiles, WIDE, 5, 3).unbind(2)
    for i, group in enumerate(groups):
        u = (group[..., 0] * 2.0**32 + group[..., 1] + 0.5) * 2.0**-64
        radius = torch.sqrt(-2.0 * torch.log(u.clamp_max(1.0)))
        angle = (group[..., 2] + 0.5) * (math.tau * 2.0**-32)
        out[:, 2 * i] = (radius * torch.cos(angle)).to(dtype)
        out[:, 2 * i + 1] = (radius * torch.sin(angle)).to(dtype)
    return out.reshape(-1)[begin - first * EACH * WIDE :][:size]


@functools.cache
def _kernel_works(device: torch.device) -> bool:
    """Try the kernel once on a device: it must draw the very numbers that plain PyTorch draws."""
    if _triton_noise is None or device.type != "cuda":
        return False
    key = bytes(range(32))
    try:
        got = [torch.ones(size, device=device) for size in (5000, 3, 2100)]
        _triton_noise.add_noise(got, list(struct.unpack("<8I", key)), 2.0, 4.0, WIDE, 3001)
        whole = (1.0 + 2.0 * normals(key, 7103, device, 3001)) / 4.0
        want = torch.split(whole, [len(value) for value in got])
        return all(bool((a - b).abs().max() < 1e-4) for a, b in zip(got, want, strict=True))
    except Exception:  # whatever a compiler or a driver may raise: the plain way is always there
        return False


def add_noise(values: Sequence[Tensor], key: bytes, *, scale: float, denominator: float, begin: int = 0) -> None:
    """Turn every tensor v, in place, into (v + N(0, scale^2)) / denominator.

    Parameters
    ----------
    values : sequence of contiguous tensors
    key : bytes
        Noise key of the step: used once and never again with other sums.
    scale : float
        Standard deviation.
    denominator : float
    begin : int
        Place in the stream of the first value: parts of one flat vector get the noise of their places.
    """
    if begin + sum(v.numel() for v in values) > MOST:
        raise InputError(f"there are more than {MOST:,} values", where="noise on a device", remedy='noise="default"')
    if all(v.dtype == torch.float32 for v in values) and _kernel_works(values[0].device):
        words = list(struct.unpack("<8I", key))
        assert _triton_noise is not None
        _triton_noise.add_noise(list(values), words, scale, denominator, WIDE, begin)
        return
    for value in values:
        fine = torch.float64 if value.dtype == torch.float64 else torch.float32
        noise = normals(key, value.numel(), value.device, begin, fine).reshape(value.shape)
        begin += value.numel()
        value.add_(noise.to(value.dtype), alpha=scale).div_(denominator)
