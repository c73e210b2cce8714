"""ResNet-9 with group normalisation, with and without scale normalisation after the residual sums.

>>> sum(p.numel() for p in resnet9((3, 32, 32), 10).parameters())
2448714
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from confide.errors import InputError
from confide.nn.parts import InputShape, choice, convolution, groups_for, make_activation, seeded
from confide.nn.registry import register
from confide.nn.residual import Residual, ScaleNorm

__all__ = ["resnet9"]


def _unit(channels: int, out: int, groups: int, act: str, weights: str, *, pool: bool = False) -> list[nn.Module]:
    layers: list[nn.Module] = [
        convolution(2, weights, channels, out, 3, padding=1, bias=False),
        nn.GroupNorm(groups_for(out, groups, "model groups"), out),
        make_activation(act)(),
    ]
    return [*layers, nn.MaxPool2d(2)] if pool else layers


@register("resnet9")
def resnet9(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    scale_norm: bool = True,
    groups: int | Sequence[int] = 32,
    activation: str = "mish",
    weights: str = "plain",
    pool: str = "max",
    seed: int = 0,
) -> nn.Module:
    """ResNet-9: four convolutions of 64, 128, 256 and 256 channels and two residual blocks.

    2,447,946 parameters for 3 channels and 10 classes, 2,448,714 with scale normalisation.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width), 16 x 16 or more.
    outputs : int
    scale_norm : bool
        Normalise each residual sum by a `ScaleNorm` of its own.
    groups : int or four of them
        Groups of the normalisation in the stages of 64, 128, 256 and again 256 channels; never more than channels.
    activation : str
    weights : str
        "plain"; "centred" subtracts each filter's mean, "standardised" divides by its length too.
    pool : str
        "max" or "mean" over the last 2 x 2 windows.
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Klause, Ziller, Rueckert, Hammernik, Kaissis: Differentially private training of residual networks with scale
    normalisation, arXiv 2203.00324.
    """
    each = [groups] * 4 if isinstance(groups, int) else list(groups)
    if len(each) != 4:
        raise InputError(
            f"groups is {groups}", where="model groups", expected="one number, or one for each of 4 stages"
        )
    choice(pool, ("max", "mean"), "model pool")
    make_activation(activation)

    def residual(channels: int, groups: int) -> Residual:
        branch = [layer for _ in range(2) for layer in _unit(channels, channels, groups, activation, weights)]
        return Residual(nn.Sequential(*branch), norm=ScaleNorm(channels, groups) if scale_norm else None)

    def make() -> nn.Module:
        return nn.Sequential(
            InputShape("resnet9", inputs, least=16),
            *_unit(inputs[0], 64, each[0], activation, weights),
            *_unit(64, 128, each[1], activation, weights, pool=True),
            residual(128, each[1]),
            *_unit(128, 256, each[2], activation, weights, pool=True),
            *_unit(256, 256, each[3], activation, weights, pool=True),
            residual(256, each[3]),
            nn.AdaptiveMaxPool2d(2) if pool == "max" else nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, outputs),
        )

    return seeded(seed, make)
