"""Complex numbers from their two parts."""

from __future__ import annotations

import torch
from torch import Tensor


def joined(real: Tensor, imaginary: Tensor) -> Tensor:
    """Return complex numbers of two parts; under autocast to half precision these are lifted to float32 first."""
    if real.dtype.itemsize < 4 or imaginary.dtype.itemsize < 4:
        real, imaginary = real.float(), imaginary.float()
    return torch.complex(real, imaginary)
