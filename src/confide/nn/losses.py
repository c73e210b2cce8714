"""Losses with one value for each entry, for outputs that PyTorch's own losses would average over the batch.

>>> soft_dice(torch.full((2, 1, 4, 4), 9.0), torch.ones(2, 1, 4, 4)).round(decimals=3)
tensor([0., 0.])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from confide.errors import InputError

__all__ = ["pixel_cross_entropy", "soft_dice"]


def soft_dice(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Soft Dice loss of each entry: 1 - (2 sum p t + smooth) / (sum p + sum t + smooth), averaged over the classes.

    Sums run over the pixels of one entry, never over the batch. An empty mask that is predicted empty has loss near 0:
    `smooth` decides what an empty mask means, where the plain quotient would be 0 / 0.

    Parameters
    ----------
    logits : tensor, shape (n, classes, ...)
        One class: sigmoid; several: softmax.
    target : tensor
        (n, 1, ...) or (n, ...) with 0 and 1 for one class, class numbers (n, ...) for several. A number that is no
        class belongs to none of them: a value in the data must not stop a private run.
    smooth : float

    Returns
    -------
    tensor, shape (n,)

    Raises
    ------
    InputError
        The target has another shape than the outputs (which says nothing about its values).

    References
    ----------
    Milletari, Navab, Ahmadi: V-Net, 3DV 2016.
    """
    classes = logits.shape[1]
    if classes == 1:
        p = torch.sigmoid(logits)
        t = _one_class(target if target.is_floating_point() else target.long(), p)
        t = torch.where((t >= 0) & (t <= 1), t, 0)
    else:
        p = torch.softmax(logits, 1)
        t = target
        if target.dim() < p.dim():  # by comparison: one_hot looks at the values, and a step with it cannot be traced
            numbers = torch.arange(classes, device=target.device).reshape(-1, *[1] * (target.dim() - 1))
            t = (target if target.is_floating_point() else target.long()).unsqueeze(1) == numbers
    if t.shape != p.shape:
        raise _unlike(target, logits, "soft_dice")
    t = t.to(p.dtype)
    both, each = (p * t).flatten(2).sum(2), (p + t).flatten(2).sum(2)
    return (1 - (2 * both + smooth) / (each + smooth)).mean(1)


def pixel_cross_entropy(logits: Tensor, target: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Cross-entropy of every pixel, averaged over the pixels of one entry: a fixed number, the same for everybody.

    Parameters
    ----------
    logits : tensor, shape (n, classes, ...)
        One class: the logit of yes; several: one for each.
    target : tensor
        (n, 1, ...) or (n, ...) with 0 and 1 for one class, class numbers (n, ...) for several. A pixel whose number
        is no class (negative, also -100, or too large) adds nothing, with and without weights, and still counts among
        the pixels: a value in the data must neither stop a private run nor set the scale of its entry.
    weights : sequence of float, optional
        A declared weight for each class (for one class: of no and yes). The sum is divided by the number of pixels and
        not by the sum of their weights, so that no entry's own classes set its scale.

    Returns
    -------
    tensor, shape (n,)

    Raises
    ------
    InputError
        The target has another shape than the outputs (which says nothing about its values).
    """
    classes = logits.shape[1]
    wanted = _one_class(target, logits) if classes == 1 else target
    expected = logits.shape if classes == 1 else (logits.shape[0], *logits.shape[2:])
    if tuple(wanted.shape) != tuple(expected):
        raise _unlike(target, logits, "pixel_cross_entropy")
    wanted = wanted if wanted.is_floating_point() else wanted.long()
    inside = (wanted >= 0) & (wanted <= max(classes - 1, 1))  # before any rounding: long() of NaN is 0 on some devices
    if classes > 1:
        inside = inside & (wanted == torch.where(inside, wanted, 0).long())
    wanted = torch.where(inside, wanted, 0)
    if classes == 1:
        each = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none")
    else:
        each = F.cross_entropy(logits, wanted.long(), reduction="none")
    if weights is not None:
        each = each * torch.tensor(weights, dtype=each.dtype, device=each.device)[wanted.long()]
    return torch.where(inside, each, 0.0).flatten(1).mean(1)


def _one_class(target: Tensor, outputs: Tensor) -> Tensor:
    """(n, ...) as (n, 1, ...); nothing else is reshaped, since height and width of equal product are not the same."""
    return target.unsqueeze(1) if target.dim() == outputs.dim() - 1 else target


def _unlike(target: Tensor, logits: Tensor, where: str) -> InputError:
    return InputError(
        f"masks of shape {tuple(target.shape)} for outputs of shape {tuple(logits.shape)}",
        where=where,
        expected="one value for each pixel of each entry",
    )
