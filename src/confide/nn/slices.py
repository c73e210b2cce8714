"""Volumes seen slice by slice: one 2D net on the slices of three orientations, joined by attention over the slices.

>>> model = slices((1, 16, 16, 16), 2)
>>> seen = model.explain(torch.zeros(3, 1, 16, 16, 16))
>>> seen.logits.shape, [tuple(w.shape) for w in seen.weights]
(torch.Size([3, 2]), [(3, 16), (3, 16), (3, 16)])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.parts import InputShape, seeded
from confide.nn.registry import build, register

__all__ = ["SliceAttention", "SliceView", "slices"]


@dataclass(frozen=True)
class SliceView:
    """What `SliceAttention.explain` gives.

    Attributes
    ----------
    logits : tensor, shape (n, outputs)
    weights : three tensors, shapes (n, depth), (n, height), (n, width)
        Attention of every slice of each orientation; all of them together sum to 1 for each volume. They may be
        compared within a volume, not between volumes of different size.
    """

    logits: Tensor
    weights: tuple[Tensor, Tensor, Tensor]


class SliceAttention(nn.Module):
    """One 2D backbone on the slices along all three axes, then attention pooling over all slices at once.

    With features f_s of slice s the query is their mean, keys and values are the f_s, so that
    w = softmax(q K^T / sqrt(d)) over all three orientations together and the volume is sum_s w_s V_s. There are no
    positions: permuting the slices changes nothing but the order of the weights. A grey volume is repeated over the
    backbone's channels by a view, in which there is nothing to train.

    Parameters
    ----------
    backbone : torch.nn.Module
        (n, channels, height, width) to (n, features); it must take slices of all three orientations.
    features, outputs : int
    heads : int
        Divides `features`.
    channels : int, optional
        Channels of the backbone, where a single one is to be repeated (3 for a net that was trained on photographs).

    References
    ----------
    Ziller et al.: Interpretable 2D vision models for 3D medical images, arXiv 2307.06614.
    """

    def __init__(
        self, backbone: nn.Module, features: int, outputs: int, *, heads: int = 8, channels: int | None = None
    ) -> None:
        super().__init__()
        if heads < 1 or features % heads:
            raise InputError(
                f"{features} features with {heads} heads", where="model heads", expected="heads that divide features"
            )
        self.backbone, self.channels = backbone, channels
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)
        self.head = nn.Linear(features, outputs)

    def slice_features(self, x: Tensor) -> Tensor:
        """(n, channels, z, y, x) to (n, z + y + x, features)."""
        if x.dim() != 5:
            raise InputError(
                f"slices got a batch of shape {tuple(x.shape)}",
                where="model",
                expected="(entries, channels, depth, height, width)",
            )
        if self.channels is not None and x.shape[1] != self.channels:
            if x.shape[1] != 1:
                raise InputError(
                    f"slices got volumes with {x.shape[1]} channels",
                    where="model",
                    expected=f"1 or {self.channels}, the channels of the backbone",
                )
            x = x.expand(-1, self.channels, -1, -1, -1)
        found = []
        for axis in (2, 3, 4):
            each = x.movedim(axis, 1)
            found.append(self.backbone(each.flatten(0, 1)).unflatten(0, each.shape[:2]))
        return torch.cat(found, 1)

    def _pooled(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        f = self.slice_features(x)
        if mask is None:
            query = f.mean(1, keepdim=True)
        else:
            if mask.shape != f.shape[:2] or not bool(mask.any(1).all()):
                raise InputError(
                    f"a slice mask of shape {tuple(mask.shape)}",
                    where="model mask",
                    expected=f"{tuple(f.shape[:2])}, true for slices that count, at least one in each volume",
                )
            real = mask.unsqueeze(2).to(f.dtype)
            query = (f * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        pooled, weights = self.attention(query, f, f, key_padding_mask=None if mask is None else ~mask)
        return self.head(pooled.squeeze(1)), weights.squeeze(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give logits.

        Parameters
        ----------
        x : tensor, shape (n, channels, depth, height, width)
        mask : bool tensor, shape (n, depth + height + width), optional
            False for padding: such slices get no weight and do not enter the query.

        Returns
        -------
        tensor, shape (n, outputs)
        """
        return self._pooled(x, mask)[0]

    def explain(self, x: Tensor, mask: Tensor | None = None) -> SliceView:
        """Give logits and the weight of every slice; arguments as for `forward`."""
        with torch.no_grad():
            logits, weights = self._pooled(x, mask)
        first, second, third = torch.split(weights, list(x.shape[2:]), 1)
        return SliceView(logits, (first, second, third))


class _Checked(SliceAttention):
    """The same behind a check of the declared shape."""

    def __init__(self, check: InputShape, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check = check

    def slice_features(self, x: Tensor) -> Tensor:
        return super().slice_features(self.check(x))


@register("slices")
def slices(
    inputs: tuple[int, ...],
    outputs: int,
    *,
    backbone: str = "cnn",
    features: int = 64,
    heads: int = 8,
    backbone_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A 2D net of this registry on the slices of a volume in three orientations, with attention pooling.

    Parameters
    ----------
    inputs : tuple of int
        (channels, depth, height, width), large enough for the backbone's pooling along every axis.
    outputs : int
    backbone : str
        Any 2D model that `build` knows, made with `features` outputs.
    features : int
        Features of a slice.
    heads : int
        Heads of the attention; the weights that are shown are their mean.
    backbone_options : mapping, optional
    seed : int
        Public seed of the initial weights.

    References
    ----------
    Ziller et al.: Interpretable 2D vision models for 3D medical images, arXiv 2307.06614.
    """
    check = InputShape("slices", inputs, dims=3)
    planes = [tuple(size for j, size in enumerate(inputs[1:]) if j != i) for i in range(3)]
    smallest = (inputs[0], min(p[0] for p in planes), min(p[1] for p in planes))
    net = build(backbone, smallest, features, **dict(backbone_options or {}))
    return seeded(seed, lambda: _Checked(check, net, features, outputs, heads=heads))
