"""Ghost norm or kept gradient: the cheaper one, from shapes.

>>> Shape(units=16, rows=4, inputs=1024, outputs=1024).ghost(torch.device("cpu"), torch.float32)     # a hidden layer
True
>>> Shape(units=16, rows=4096, inputs=288, outputs=32).ghost(torch.device("cpu"), torch.float32)     # an early block
False

Counted in bytes of memory traffic that cost the same time; a machine does ``BALANCE`` floating-point operations in the
time of one byte. Both ways need one product of 2 n d p operations a unit (it replaces the weight gradient of an
ordinary backward pass), which is left out:

* keep: write the gradient (d p values), read it for the norm, read it for the sum;
* ghost: two Grams of 2 n^2 d and 2 n^2 p operations in float64 (taken as twice the cost), and both factors read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BALANCE = {"cpu": 10.0, "cuda": 20.0}
# Rows of a unit above which the allowance for cancellation (see arithmetic.py) would shrink the signal noticeably.
MOST_ROWS = 64


@dataclass(frozen=True)
class Shape:
    """A linear map applied to units: `rows` rows each, `inputs` to `outputs` features."""

    units: int
    rows: int
    inputs: int
    outputs: int

    def keep_bytes(self, dtype: torch.dtype) -> float:
        """Traffic of keeping the gradients of all units."""
        return 3.0 * dtype.itemsize * self.units * self.inputs * self.outputs

    def ghost_bytes(self, device: torch.device, dtype: torch.dtype) -> float:
        """Traffic that costs as much as the ghost norm."""
        grams = 2.0 * 2.0 * self.units * self.rows**2 * (self.inputs + self.outputs)
        reads = 2.0 * (dtype.itemsize + 8) * self.units * self.rows * (self.inputs + self.outputs)
        return grams / BALANCE.get(device.type, 10.0) + reads

    def ghost(self, device: torch.device, dtype: torch.dtype) -> bool:
        """True where the ghost norm is cheaper."""
        return self.rows <= MOST_ROWS and self.ghost_bytes(device, dtype) < self.keep_bytes(dtype)
