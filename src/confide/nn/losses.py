"""Losses with one value for each entry, for outputs that PyTorch's own losses would average over the batch.

>>> soft_dice(torch.full((2, 1, 4, 4), 9.0), torch.ones(2, 1, 4, 4)).round(decimals=3)
tensor([0., 0.])
"""

from __future__ import annotations

import torch
from torch import Tensor

from confide.errors import InputError

__all__ = ["soft_dice"]


def soft_dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each entry: 1 - (2 sum p t + smooth) / (sum p + sum t + smooth), averaged over the classes.

    Sums run over the pixels of one entry, never over the batch. An empty mask that is predicted empty has loss near 0:
    `smooth` decides what an empty mask means, where the plain quotient would be 0 / 0.

    Parameters
    ----------
    logits : tensor, shape (n, classes, ...)
        One class: sigmoid; several: softmax.
    target : tensor
        (n, 1, ...) or (n, ...) with 0 and 1 for one class, class numbers (n, ...) for several.
    smooth : float

    Returns
    -------
    tensor, shape (n,)

    References
    ----------
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016.
    """
    classes = logits.shape[1]
    if classes == 1:
        p = torch.sigmoid(logits)
        t = target.reshape(p.shape) if target.numel() == p.numel() else target
    else:
        p = torch.softmax(logits, 1)
        t = torch.nn.functional.one_hot(target.long(), classes).movedim(-1, 1) if target.dim() < p.dim() else target
    if t.shape != p.shape:
        raise InputError(
            f"masks of shape {tuple(target.shape)} for outputs of shape {tuple(logits.shape)}",
            where="soft_dice",
            expected="one value for each pixel of each entry",
        )
    t = t.to(p.dtype)
    both, each = (p * t).flatten(2).sum(2), (p + t).flatten(2).sum(2)
    return (1 - (2 * both + smooth) / (each + smooth)).mean(1)
