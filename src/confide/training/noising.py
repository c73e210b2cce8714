"""From a clipped sum to noisy gradients in ``.grad``: on the device in one stream, or from a source on the host.

Each coordinate gets noise once. With a stream every process draws the part that it adds up (see `Exchange`); a source
on the host is asked by one process alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.training.device_noise import add_noise
from confide.training.distributed import Exchange, Ranks
from confide.training.placing import laid_out

F64 = npt.NDArray[np.float64]


def from_stream(
    parameters: Sequence[nn.Parameter], sums: Sequence[Tensor], ranks: Ranks, key: bytes, scale: float, divisor: float
) -> None:
    """Add noise of the stream of `key` to the sum over all ranks, divide, and leave it in ``.grad`` on every rank.

    Parameters
    ----------
    parameters : sequence of parameters
    sums : sequence of tensors
        This rank's clipped sums.
    ranks : Ranks
    key : bytes
        Noise key of the step.
    scale : float
        Standard deviation of the noise.
    divisor : float
    """
    # float32, or float64 where all of the model is
    wide = torch.float64 if all(value.dtype == torch.float64 for value in parameters) else torch.float32
    parts = [value.to(wide).contiguous() for value in sums]
    if ranks.world == 1:
        add_noise(parts, key, scale=scale, denominator=divisor)
    else:

        def noised(part: Tensor, begin: int) -> Tensor:
            add_noise([part], key, scale=scale, denominator=divisor, begin=begin)
            return part

        parts = Exchange(ranks, list(parameters))(parts, noised)
    for value, part in zip(parameters, parts, strict=True):
        value.grad = laid_out(part.detach(), value.detach())


def from_host(parameters: Sequence[nn.Parameter], sums: Sequence[Tensor], noisy: Callable[[F64], F64]) -> None:
    """Leave what `noisy` makes of the flat sum in ``.grad``.

    Parameters
    ----------
    parameters : sequence of parameters
    sums : sequence of tensors
    noisy : function
        The flat sum to the noisy and divided one.
    """
    flat = torch.cat([value.reshape(-1) for value in sums]).cpu().numpy()
    made = torch.from_numpy(noisy(flat))
    start = 0
    for value in parameters:
        part = made[start : start + value.numel()].reshape(value.shape)
        start += value.numel()
        value.grad = laid_out(part, value.detach())
