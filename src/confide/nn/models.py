"""Small models that private learning likes: few parameters, smooth activations, no statistics over the batch.

>>> build("cnn", inputs=(1, 28, 28), outputs=10)(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from confide.errors import InputError
from confide.nn.parts import CheckedSequential, InputShape, make_activation, seeded, zero_linear
from confide.nn.registry import build, register

__all__ = ["build", "cnn", "logistic", "mlp"]


@register("logistic")
def logistic(inputs: tuple[int, ...], outputs: int) -> nn.Module:
    """Logistic (or softmax) regression, all weights zero at the start.

    Parameters
    ----------
    inputs : tuple of int
        (features,); anything longer is flattened.
    outputs : int
    """
    layer = zero_linear(math.prod(inputs), outputs)
    return layer if len(inputs) == 1 else nn.Sequential(nn.Flatten(), layer)


@register("mlp")
def mlp(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    hidden: Sequence[int] | int = (32,),
    activation: str = "tanh",
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Fully connected layers; tanh by default, whose bounded values lose least to clipping (Papernot et al. 2021).

    Parameters
    ----------
    inputs : tuple of int
        (features,); anything longer is flattened.
    outputs : int
    hidden : int or sequence of int
        Widths of the hidden layers.
    activation : str
        tanh, relu, gelu, silu, selu, elu or mish.
    dropout : float
        Probability after each hidden layer.
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Papernot, Thakurta, Song, Chien, Erlingsson: Tempered sigmoid activations for deep learning with differential
    privacy. AAAI 2021.
    """
    widths = [hidden] if isinstance(hidden, int) else list(hidden)
    if any(not isinstance(width, int) or width < 1 for width in widths):
        raise InputError(f"hidden is {hidden!r}", where="model hidden", expected="widths of 1 or more, e.g. [32, 16]")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}", where="model dropout", expected="a number in [0, 1)")
    act = make_activation(activation)

    def make() -> nn.Module:
        layers: list[nn.Module] = [] if len(inputs) == 1 else [nn.Flatten()]
        before = math.prod(inputs)
        for width in widths:
            layers += [nn.Linear(before, width), act()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            before = width
        return nn.Sequential(*layers, nn.Linear(before, outputs))

    return seeded(seed, make)


@register("cnn")
def cnn(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    widths: Sequence[int] = (16, 32),
    groups: int = 4,
    activation: str = "relu",
    seed: int = 0,
) -> nn.Module:
    """A small convolutional net with group normalisation and average pooling, for images of any size.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width).
    outputs : int
    widths : sequence of int
        Channels of each block; every block halves height and width.
    groups : int
        Groups of the normalisation; divides every width.
    activation : str
    seed : int
        Public seed of the initial weights.
    """
    check = InputShape("cnn", inputs)
    if not widths or any(width % groups for width in widths):
        raise InputError(
            f"widths {list(widths)} do not divide into {groups} groups",
            where="model widths",
            expected="multiples of groups",
        )
    act = make_activation(activation)

    def make() -> nn.Module:
        layers: list[Any] = []
        before = inputs[0]
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(groups, width), act()]
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
            before = width
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs)]
        return CheckedSequential(*layers).behind(check)

    return seeded(seed, make)
