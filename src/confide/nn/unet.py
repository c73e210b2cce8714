"""U-Net for images and volumes, with group normalisation.

>>> unet((1, 64, 64), 1)(torch.zeros(2, 1, 64, 64)).shape
torch.Size([2, 1, 64, 64])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, convolution, groups_for, make_activation, seeded
from confide.nn.registry import register

__all__ = ["UNet", "unet"]


def _double(dims: int, channels: int, out: int, groups: int, act: str, weights: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (channels, out):
        layers += [
            convolution(dims, weights, before, out, 3, padding=1, bias=False),
            nn.GroupNorm(groups_for(out, groups, "model groups"), out),
            make_activation(act)(),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Halve the image `levels` times while doubling the channels, come back up, and join each level with its own.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width) or (channels, depth, height, width); multiples of 2^levels.
    outputs : int
        Channels of the output, one logit for each class and pixel.
    width : int
        Channels of the first level.
    levels, groups : int
    activation, weights : str
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: int,
        *,
        width: int = 16,
        levels: int = 3,
        groups: int = 8,
        activation: str = "relu",
        weights: str = "plain",
    ) -> None:
        super().__init__()
        if levels < 1 or width < 1:
            raise InputError(f"levels {levels}, width {width}", where="model", expected="1 or more of each")
        self.check = InputShape("unet", inputs, dims=(2, 3), least=2**levels, multiple=2**levels)
        dims = len(inputs) - 1
        sizes = [width * 2**i for i in range(levels + 1)]

        def double(channels: int, out: int) -> nn.Module:
            return _double(dims, channels, out, groups, activation, weights)

        self.down = nn.ModuleList(
            double(before, out) for before, out in zip([inputs[0], *sizes[:-1]], sizes, strict=True)
        )
        self.pool = nn.MaxPool2d(2) if dims == 2 else nn.MaxPool3d(2)
        transposed = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        rising = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = nn.ModuleList(transposed(low, high, 2, stride=2) for low, high in rising)
        self.join = nn.ModuleList(double(2 * high, high) for _, high in rising)
        self.head = (nn.Conv2d if dims == 2 else nn.Conv3d)(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, ...) to logits (n, outputs, ...)."""
        x = self.check(x)
        kept: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            kept.append(x)
        for rise, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, rise(x)], 1))
        out: Tensor = self.head(x)
        return out


@register("unet")
def unet(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    width: int = 16,
    levels: int = 3,
    groups: int = 8,
    activation: str = "relu",
    weights: str = "plain",
    seed: int = 0,
) -> nn.Module:
    """U-Net in 2D or 3D, as `inputs` has it; gives one logit for each class and pixel.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width) or (channels, depth, height, width), sizes multiples of 2^levels.
    outputs : int
        1 for a mask, otherwise the number of classes.
    width : int
        Channels of the first level; they double at each of the `levels`.
    levels : int
        How often the image is halved.
    groups : int
    activation : str
    weights : str
        "plain", "centred" or "standardised".
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Ronneberger, Fischer, Brox: U-Net, MICCAI 2015. Cicek, Abdulkadir, Lienkamp, Brox, Ronneberger: 3D U-Net, MICCAI
    2016. Ziller et al.: Differentially private federated deep learning for multi-site medical image segmentation,
    arXiv 2107.02586.
    """
    make_activation(activation)
    return seeded(
        seed,
        lambda: UNet(
            inputs, outputs, width=width, levels=levels, groups=groups, activation=activation, weights=weights
        ),
    )
