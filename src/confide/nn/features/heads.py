"""Linear models on fixed features, by name.

>>> hog((1, 28, 28), 1)(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 1])
"""

from __future__ import annotations

from torch import nn

from confide.nn.features.fixed import FeatureModel, FixedFeatures
from confide.nn.features.hog import HOG
from confide.nn.features.scattering import Scattering2d
from confide.nn.parts import zero_linear
from confide.nn.registry import register

__all__ = ["hog", "scattering"]


def _head(features: FixedFeatures, outputs: int) -> nn.Module:
    return FeatureModel(features, zero_linear(features.size, outputs))


@register("scattering")
def scattering(
    inputs: tuple[int, ...], outputs: int, *, scales: int = 2, angles: int = 8, groups: int | None = None
) -> nn.Module:
    """Logistic (or softmax) regression on scattering coefficients, all weights zero at the start.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width).
    outputs, scales, angles : int
    groups : int, optional
        See `Scattering2d`.

    References
    ----------
    Tramer, Boneh: Differentially private learning needs better features (or much more data), ICLR 2021.
    """
    return _head(Scattering2d(inputs, scales=scales, angles=angles, groups=groups), outputs)


@register("hog")
def hog(
    inputs: tuple[int, ...], outputs: int, *, cell: int = 4, block: int = 2, bins: int = 9, norm: str = "l2-hys"
) -> nn.Module:
    """Logistic (or softmax) regression on histograms of oriented gradients, all weights zero at the start.

    Parameters
    ----------
    inputs : tuple of int
        (channels, height, width).
    outputs, cell, block, bins : int
    norm : str
        See `HOG`.

    References
    ----------
    Dalal, Triggs: Histograms of oriented gradients for human detection, CVPR 2005.
    """
    return _head(HOG(inputs, cell=cell, block=block, bins=bins, norm=norm), outputs)
