"""A small complex-valued net for k-space or other complex images.

>>> complex_cnn((1, 32, 32), 4)(torch.zeros(2, 1, 32, 32)).shape
torch.Size([2, 4])
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.complexvalued.activations import Cardioid, ConjMish, SeparableMish, iGaussian
from confide.nn.complexvalued.layers import ComplexConv2d, ComplexWSConv2d, as_complex, kspace
from confide.nn.complexvalued.norm import ComplexGroupNorm
from confide.nn.complexvalued.pooling import ComplexAvgPool2d, ComplexMaxPool2d
from confide.nn.parts import InputShape, choice, seeded
from confide.nn.registry import register

__all__ = ["complex_cnn"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "conjmish": ConjMish,
    "cardioid": Cardioid,
    "separablemish": SeparableMish,
    "igaussian": iGaussian,
}


class _Representation(nn.Module):
    """Real channels to complex ones."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return kspace(x) if self.kind == "kspace" else as_complex(x)


class _Length(nn.Module):
    """|z| of the mean over the image, as real features; finite gradient at 0."""

    def forward(self, z: Tensor) -> Tensor:
        pooled = z.mean((2, 3))
        return (pooled.real.square() + pooled.imag.square() + 1e-12).sqrt()


@register("complex-cnn")
def complex_cnn(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    widths: Sequence[int] = (16, 32),
    groups: int = 4,
    activation: str = "conjmish",
    pool: str = "mean",
    weights: str = "plain",
    representation: str = "kspace",
    seed: int = 0,
) -> nn.Module:
    """Blocks of complex convolution, whitening, activation and pooling, then ``|mean z|`` and a real linear layer.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width) of real numbers; every block halves height and width.
    outputs : int
    widths : sequence of int
        Complex channels of each block.
    groups : int
        Groups of the whitening; divides every width.
    activation : str
        "conjmish", "cardioid", "separablemish" or "igaussian".
    pool : str
        "mean" or "max", each part by itself.
    weights : str
        "plain"; "centred": each filter minus its complex mean; "whitened": also with uncorrelated parts of one size.
    representation : str
        "kspace": the Fourier transform of an image; "pairs": channels are all real parts, then all imaginary parts.
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Riess et al.: Complex-valued federated learning with differential privacy and MRI applications, arXiv 2110.03478.
    """
    choice(representation, ("kspace", "pairs"), "model representation")
    choice(activation, _ACTIVATIONS, "model activation")
    choice(pool, ("mean", "max"), "model pool")
    choice(weights, ("plain", "centred", "whitened"), "model weights")
    if not widths or any(width % groups for width in widths):
        raise InputError(
            f"widths {list(widths)} do not divide into {groups} groups",
            where="model widths",
            expected="multiples of groups",
        )
    check = InputShape("complex-cnn", inputs, least=2 ** len(widths))
    if representation == "pairs" and inputs[0] % 2:
        raise InputError(
            f"{inputs[0]} channels cannot be real and imaginary parts",
            where="model",
            expected="an even number: all real parts, then all imaginary parts",
            remedy='for plain images take representation = "kspace"',
        )

    def make() -> nn.Module:
        before = inputs[0] if representation == "kspace" else inputs[0] // 2
        layers: list[nn.Module] = [check, _Representation(representation)]
        for width in widths:
            layers += [
                ComplexConv2d(before, width, 3, padding=1)
                if weights == "plain"
                else ComplexWSConv2d(before, width, 3, padding=1, whiten=weights == "whitened"),
                ComplexGroupNorm(groups, width),
                _ACTIVATIONS[activation](),
                ComplexAvgPool2d(2) if pool == "mean" else ComplexMaxPool2d(2),
            ]
            before = width
        return nn.Sequential(*layers, _Length(), nn.Linear(before, outputs))

    return seeded(seed, make)
