"""What fixed features have in common: a shape they are made for, a number of outputs, and a way over a whole array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.nn.parts import choice

__all__ = ["FeatureModel", "FixedFeatures", "features_named"]


class FixedFeatures(nn.Module):
    """A map from images to numbers without anything to learn.

    Attributes
    ----------
    size : int
        Numbers for each image.
    """

    size: int

    def transform(self, images: npt.ArrayLike, *, batch: int = 256) -> npt.NDArray[np.float32]:
        """Features of many images, once, so that training a linear layer on them need not compute them at every step.

        Parameters
        ----------
        images : array, shape (n, channels, height, width)
        batch : int
            Images at a time.

        Returns
        -------
        float32 array, shape (n, size)
        """
        values = np.asarray(images, dtype=np.float32)
        out = np.empty((len(values), self.size), dtype=np.float32)
        with torch.no_grad():
            for low in range(0, len(values), batch):
                found: Tensor = self(torch.from_numpy(values[low : low + batch]))
                out[low : low + batch] = found.numpy()
        return out


class FeatureModel(nn.Module):
    """A learned head on fixed features; it takes images, or their features where these were computed before.

    Parameters
    ----------
    features : FixedFeatures
    head : torch.nn.Module
        (n, features.size) to outputs.
    """

    def __init__(self, features: FixedFeatures, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width), or (n, features.size) from `FixedFeatures.transform`, to outputs."""
        known = x.dim() == 2 and x.shape[1] == self.features.size
        out: Tensor = self.head(x if known else self.features(x))
        return out


_KINDS: dict[str, Callable[..., FixedFeatures]] = {}


def keep(name: str) -> Callable[[Any], Any]:
    """Register a kind of fixed features."""

    def register(kind: Any) -> Any:
        _KINDS[name] = kind
        return kind

    return register


def features_named(name: str, inputs: tuple[int, ...], **options: Any) -> FixedFeatures:
    """Return fixed features by name ("scattering" or "hog") for images of shape `inputs`.

    Raises
    ------
    InputError
        Unknown name, images that are too small.
    """
    return _KINDS[choice(name, _KINDS, "model features")](inputs, **options)
