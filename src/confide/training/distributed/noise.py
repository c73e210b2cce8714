"""Noise by position: every part of a model's gradient can be noised on its own, by whoever holds that part.

>>> noise = BlockNoise("default", bytes(32), step=0, scale=1.0, size=10)
>>> whole = noise.add(torch.zeros(10), 0)
>>> torch.equal(whole[4:7], noise.add(torch.zeros(3), 4))
True

On the CPU the flattened gradient is cut into blocks of 2^20 values, and each block's noise comes from a source of
`confide.mechanisms` of its own, keyed by (key of the step, number of the block). Whoever needs a part of a block draws
the whole of it. "device" noise, which is the default on CUDA, is one stream of ChaCha20 a step in float32
(`confide.training.device_noise`), whose every place can be drawn alone. Either way the noise of a coordinate does not
depend on how many ranks there are or which of them holds it, and when the parts that ranks hold do not overlap each
coordinate gets noise once.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import torch
from torch import Tensor

from confide.mechanisms import NoiseSource, noise_for_step
from confide.training.device_noise import add_noise

BLOCK = 1 << 20


class BlockNoise:
    """The noise of one step.

    Parameters
    ----------
    noise : str or NoiseSource
        "default", "device", "secure", or a source, which then serves whatever is asked of it in order.
    key : bytes
        Secret key of the step, 32 bytes.
    step : int
    scale : float
        Standard deviation.
    size : int
        Values of the whole gradient.
    """

    def __init__(self, noise: str | NoiseSource, key: bytes, step: int, scale: float, size: int) -> None:
        self._noise, self._key, self._step, self._scale, self._size = noise, key, step, scale, size
        self._last: tuple[int, Tensor] | None = None

    def add(self, values: Tensor, start: int) -> Tensor:
        """Return values plus their noise.

        Parameters
        ----------
        values : tensor, shape (n,)
            Part of the flattened gradient, on any device.
        start : int
            Position of the first of them.
        """
        if not isinstance(self._noise, str):
            found = self._noise.add_normal(values.detach().cpu().double().numpy(), scale=self._scale)
            return torch.as_tensor(found, device=values.device)
        if self._noise == "device" or (self._noise == "default" and values.device.type == "cuda"):
            return self._streamed(values, start)
        out, low = [], 0
        while low < len(values):
            block, within = divmod(start + low, BLOCK)
            high = min(len(values), low + BLOCK - within)
            out.append(self._part(values[low:high], block, within))
            low = high
        return torch.cat(out) if out else values

    def _streamed(self, values: Tensor, start: int) -> Tensor:
        noisy = values.to(values.dtype if values.dtype.itemsize >= 4 else torch.float32, copy=True)
        message = b"confide/noise on a device/2\x00" + self._step.to_bytes(8, "big")
        secret = hmac.new(self._key, message, hashlib.sha256).digest()
        add_noise([noisy], secret, scale=self._scale, denominator=1.0, begin=start)
        return noisy

    def _part(self, values: Tensor, block: int, within: int) -> Tensor:
        if self._noise == "secure":  # rounds what it adds to: the values stand where they belong in their block
            padded = np.zeros(self._length(block))
            padded[within : within + len(values)] = values.detach().cpu().double().numpy()
            noisy = self._source(block).add_normal(padded, scale=self._scale)[within : within + len(values)]
            return torch.as_tensor(noisy).to(values.device)
        if self._last is None or self._last[0] != block:
            self._last = (block, self._block(block, values.device))
        return values + self._last[1][within : within + len(values)]

    def _length(self, block: int) -> int:
        return min(BLOCK, self._size - block * BLOCK)

    def _block(self, block: int, device: torch.device) -> Tensor:
        return torch.as_tensor(self._source(block).normal(self._length(block), scale=self._scale), device=device)

    def _source(self, block: int) -> NoiseSource:
        return noise_for_step(self._key, self._step, secure=self._noise == "secure", stream=f"gradient, block {block}")
