"""SmoothNet: the convolutional net whose parts were chosen because they lose least under private training.

>>> model = smoothnet((3, 32, 32), 10)
>>> sum(p.numel() for p in model.parameters())
3391853
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, groups_for, seeded
from confide.nn.registry import register

__all__ = ["SmoothBlock", "SmoothStack", "smoothnet"]


class SmoothBlock(nn.Sequential):
    """Convolution 3 x 3 without bias, maximum over 3 x 3 at stride 1, group normalisation, SELU.

    Parameters
    ----------
    channels, out : int
    groups : int
    """

    def __init__(self, channels: int, out: int, groups: int = 8) -> None:
        super().__init__(
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.GroupNorm(groups_for(out, groups, "model groups"), out),
            nn.SELU(),
        )


class SmoothStack(nn.Module):
    """Dense concatenation: block i sees the input and every block before it; the output is all of them side by side.

    Parameters
    ----------
    channels : int
    growth : int
        Channels that every block adds.
    depth : int
        Number of blocks.
    groups : int

    Attributes
    ----------
    out : int
        channels + depth x growth.
    """

    def __init__(self, channels: int, growth: int, depth: int, groups: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SmoothBlock(channels + i * growth, growth, groups) for i in range(depth))
        self.out = channels + depth * growth

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, out, h, w)."""
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return x


class _Last(nn.Module):
    """Keep the last channels only: the output of the last block of a stack."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -self.channels :]


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=nn.init.calculate_gain("selu"))


@register("smoothnet")
def smoothnet(
    inputs: tuple[int, ...], outputs: int, *, width: int = 8, depth: int = 5, groups: int = 8, seed: int = 0
) -> nn.Module:
    """SmoothNet; W80D50, the published choice, as it is.

    Two stacks of `depth` blocks with growth 8 `width` and 16 `width`; between them a 1 x 1 convolution to half of the
    channels and a 2 x 2 mean; after the second stack a 2 x 2 mean, of which the last block's channels go on; mean over
    4 x 4 windows, then 256, 128 and `outputs` units with SELU. 3,391,853 parameters for 3 channels and 10 classes.
    The number of input channels and of classes is the caller's (the released code fixes both at places).

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width), 16 x 16 or more.
    outputs : int
    width, depth : int
        "W80D50" is width 8, depth 5; "W80D10" width 8, depth 1.
    groups : int
    seed : int
        Public seed of the initial weights (Xavier uniform with the gain of SELU).

    References
    ----------
    Remerscheid, Ziller, Rueckert, Kaissis: SmoothNets: optimizing CNN architecture design for differentially private
    deep learning, arXiv 2205.04095.
    """
    if width < 1 or depth < 1:
        raise InputError(
            f"width {width} and depth {depth}", where="model", expected="1 or more of each, e.g. width 8, depth 5"
        )

    def make() -> nn.Module:
        first = SmoothStack(inputs[0], 8 * width, depth, groups)
        second = SmoothStack(first.out // 2, 16 * width, depth, groups)
        model = nn.Sequential(
            InputShape("smoothnet", inputs, least=16),
            first,
            nn.Conv2d(first.out, first.out // 2, 1, bias=False),
            nn.AvgPool2d(2),
            second,
            _Last(16 * width),
            nn.AvgPool2d(2),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(16 * 16 * width, 256),
            nn.SELU(),
            nn.Linear(256, 128),
            nn.SELU(),
            nn.Linear(128, outputs),
        )
        _initialise(model)
        return model

    return seeded(seed, make)
