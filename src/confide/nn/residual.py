"""Residual sums, with or without a normalisation after the sum (ScaleNorm).

>>> block = Residual(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.Mish()), norm=ScaleNorm(64))
>>> block(torch.zeros(2, 64, 8, 8)).shape
torch.Size([2, 64, 8, 8])
"""

from __future__ import annotations

from torch import Tensor, nn

from confide.nn.parts import groups_for

__all__ = ["Residual", "ScaleNorm"]


class ScaleNorm(nn.GroupNorm):
    """Group normalisation of a residual sum, with weights of its own and no activation after it.

    Under group normalisation the branch and the shortcut reach the sum on different scales; y = GN(x + f(x)) brings the
    sum back to one scale. Its scale and shift must be its own: using a normalisation of the branch a second time is
    another layer with other gradients (a published re-run did that).

    Parameters
    ----------
    channels : int
    groups : int
        At most one for each channel.

    References
    ----------
    Klause, Ziller, Rueckert, Hammernik, Kaissis: Differentially private training of residual networks with scale
    normalisation, arXiv 2203.00324.
    """

    def __init__(self, channels: int, groups: int = 32, *, eps: float = 1e-5) -> None:
        super().__init__(groups_for(channels, groups, "ScaleNorm"), channels, eps=eps)


class Residual(nn.Module):
    """y = norm(shortcut(x) + branch(x)).

    Parameters
    ----------
    branch : torch.nn.Module
    shortcut : torch.nn.Module, optional
        The identity if not given.
    norm : torch.nn.Module, optional
        For example `ScaleNorm`; nothing if not given.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block; shape as branch and shortcut give it."""
        out: Tensor = self.norm(self.shortcut(x) + self.branch(x))
        return out
