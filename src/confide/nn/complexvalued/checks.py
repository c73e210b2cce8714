"""What every complex layer refuses."""

from __future__ import annotations

from torch import Tensor

from confide.errors import InputError

__all__ = ["refuse_real"]


def refuse_real(z: Tensor, name: str) -> None:
    """Refuse real numbers, with the two ways to make them complex.

    Raises
    ------
    InputError
    """
    if not z.is_complex():
        raise InputError(
            f"{name} got real numbers",
            where="model",
            expected="a complex tensor",
            remedy="as_complex joins real and imaginary parts, kspace transforms an image",
        )
