"""Pooling of complex images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.nn.complexvalued.checks import refuse_real
from confide.nn.parts import choice

__all__ = ["ComplexAvgPool2d", "ComplexMaxPool2d"]


class _Pool(nn.Module):
    def __init__(self, pool: nn.Module, kind: str, size: int) -> None:
        super().__init__()
        self.size = size
        self.pool, self.kind = pool, choice(kind, ("separable", "conjugate"), "model pooling kind")

    def forward(self, z: Tensor) -> Tensor:
        """Complex (n, c, h, w) to complex (n, c, h', w')."""
        refuse_real(z, type(self).__name__)
        try:
            x, y = self.pool(z.real), self.pool(z.imag)
        except RuntimeError as error:
            if min(z.shape[-2:]) >= self.size:
                raise
            raise InputError(
                f"{type(self).__name__} got images of {z.shape[-2]} x {z.shape[-1]}, smaller than its windows",
                where="model",
                expected=f"at least {self.size} along both axes",
            ) from error
        return torch.complex(x, y) if self.kind == "separable" else torch.complex(x - y, x + y)


class ComplexAvgPool2d(_Pool):
    """Mean over windows of both parts; "conjugate" turns it by (1 + i) for a pair with `ConjMish`.

    Parameters
    ----------
    size : int
    kind : "separable" or "conjugate"
        p(x) + i p(y), or (p(x) - p(y)) + i (p(x) + p(y)).
    **options
        As for ``nn.AvgPool2d``.

    References
    ----------
    Riess et al., arXiv 2110.03478.
    """

    def __init__(self, size: int = 2, *, kind: str = "separable", **options: Any) -> None:
        super().__init__(nn.AvgPool2d(size, **options), kind, size)


class ComplexMaxPool2d(_Pool):
    """Maximum over windows of each part; `kind` and reference as for `ComplexAvgPool2d`.

    Parameters
    ----------
    size : int
    kind : "separable" or "conjugate"
    **options
        As for ``nn.MaxPool2d``.
    """

    def __init__(self, size: int = 2, *, kind: str = "separable", **options: Any) -> None:
        super().__init__(nn.MaxPool2d(size, **options), kind, size)
