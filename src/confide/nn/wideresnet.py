"""Wide residual nets as private training wants them: weight standardisation, and the order of activation and norm.

>>> wideresnet((3, 32, 32), 10, depth=16, width=4)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, choice, convolution, groups_for, seeded
from confide.nn.registry import register
from confide.nn.residual import ScaleNorm

__all__ = ["WideBlock", "wideresnet"]

# name -> (does the norm come first in the branch, and in the projecting shortcut?)
_ORDERS = {
    "activation-norm": (False, False),
    "norm-activation": (True, True),
    "shortcut-norm-activation": (False, True),
}


def _before(channels: int, groups: int, norm_first: bool) -> list[nn.Module]:
    """ReLU and group normalisation, in one of the two orders."""
    pair = [nn.ReLU(), nn.GroupNorm(groups_for(channels, groups, "model groups"), channels)]
    return pair[::-1] if norm_first else pair


def _unit(
    channels: int, out: int, kernel: int, stride: int, groups: int, weights: str, norm_first: bool
) -> nn.Sequential:
    """ReLU and group normalisation, then the convolution."""
    return nn.Sequential(
        *_before(channels, groups, norm_first),
        convolution(2, weights, channels, out, kernel, stride=stride, padding=kernel // 2),
    )


class WideBlock(nn.Module):
    """x + f(x) with two units of ReLU, norm, convolution; the first block of a stage projects the shortcut by another.

    Parameters
    ----------
    channels, out, stride : int
    project : bool
        Give the shortcut a unit of its own with a 1 x 1 convolution.
    groups : int
    weights : str
    scale_norm : bool
        Normalise the sum by a `ScaleNorm`.
    order : str
        See `wideresnet`.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        *,
        project: bool,
        groups: int,
        weights: str,
        scale_norm: bool,
        order: str = "activation-norm",
    ) -> None:
        super().__init__()
        inside, beside = _ORDERS[choice(order, _ORDERS, "model order")]
        self.shortcut = _unit(channels, out, 1, stride, groups, weights, beside) if project else nn.Identity()
        self.branch = nn.Sequential(
            *_unit(channels, out, 3, stride, groups, weights, inside), *_unit(out, out, 3, 1, groups, weights, inside)
        )
        self.norm = ScaleNorm(out, groups) if scale_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) to (n, out, h / stride, w / stride)."""
        out: Tensor = self.norm(self.shortcut(x) + self.branch(x))
        return out


@register("wideresnet")
def wideresnet(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    depth: int = 16,
    width: int = 4,
    groups: int = 16,
    weights: str = "standardised",
    scale_norm: bool = False,
    order: str = "activation-norm",
    seed: int = 0,
) -> nn.Module:
    """WRN-`depth`-`width` with weight standardisation and group normalisation.

    A 3 x 3 convolution to 16 channels, three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width`
    channels and strides 1, 2, 2, then ReLU, group normalisation, mean over the image and a linear layer.
    Convolutions have a bias and, where standardised, a gain for each filter.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width), 8 x 8 or more.
    outputs : int
    depth : int
        6 n + 4: 10, 16, 22, 28, 40, ...
    width : int
    groups : int
    weights : str
        "standardised", "centred" or "plain".
    scale_norm : bool
    order : str
        "activation-norm": ReLU before group normalisation everywhere (De et al.); "norm-activation": the classical
        order; "shortcut-norm-activation": the classical order in the projecting shortcuts alone (Sander et al.).
        Parameters are the same in all three.
    seed : int
        Public seed of the initial weights.

    References
    ----------
    De, Berrada, Hayes, Smith, Balle: Unlocking high-accuracy differentially private image classification through
    scale, arXiv 2204.13650. Sander, Stock, Sablayrolles: TAN without a burn: scaling laws of DP-SGD, ICML 2023 (the
    order in the shortcut). Zagoruyko, Komodakis: Wide residual networks, BMVC 2016.
    """
    if depth < 10 or (depth - 4) % 6:
        raise InputError(
            f"depth is {depth}", where="model depth", expected="6 n + 4 for a whole n: 10, 16, 22, 28, 34, 40, ..."
        )
    choice(order, _ORDERS, "model order")
    if width < 1:
        raise InputError(f"width is {width}", where="model width", expected="1 or more")

    def make() -> nn.Module:
        layers: list[nn.Module] = [
            InputShape("wideresnet", inputs, least=8),
            convolution(2, weights, inputs[0], 16, 3, padding=1),
        ]
        before = 16
        for stage, stride in enumerate((1, 2, 2)):
            out = 16 * 2**stage * width
            for i in range((depth - 4) // 6):
                layers.append(
                    WideBlock(
                        before,
                        out,
                        stride if i == 0 else 1,
                        project=i == 0,
                        groups=groups,
                        weights=weights,
                        scale_norm=scale_norm,
                        order=order,
                    )
                )
                before = out
        layers += _before(before, groups, _ORDERS[order][0])
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs)]
        return nn.Sequential(*layers)

    return seeded(seed, make)
