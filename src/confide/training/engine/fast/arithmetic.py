r"""What rounding may add, and what the clip weights give up for it.

>>> Arithmetic(torch.float32, tf32=False).shrink == 2.0**-18
True

One unit adds ``w G`` with ``w = C (1 - shrink) / N``. ``N`` must be at least the norm of what is really added:

*Kept gradients* (``Kept``). The values v_k of G_u are stored once, in whatever precision, and norm and sum read these
very values. Squares are added in chunks of ``CHAIN`` = 64 in float32, the chunks in float64, so the computed square is
at least (1 - gamma_65) |v|^2 with gamma_m = m u / (1 - m u), u = 2^-24 [Higham, Accuracy and Stability, 2002, eq. 3.5],
whatever the order of additions; the norm is low by at most 1.94e-6 + 2u, rounding the weight and the product to
float32 adds 2u. Together below 2.2e-6 < ``shrink`` = 2^-18 = 3.8e-6. (float64 models: the same with u = 2^-53.)

*Rows* (``Pair``, the ghost norm). |G_u|^2 = sum_ij (a_i.a_j)(g_i.g_j) is taken in float64 from the operands that the
sum uses; the sum is one matrix product of (w g_i) with a_i. Rounding in that product changes what the unit adds by at
most ``slack(n)`` x sum_i |a_i| |g_i| (n rows), by the triangle inequality and Higham eq. 3.13: (n + 2) u for
float32; under TF32 both factors are rounded to 11 bits first, which adds 2^-10 (1 + 2^-10). That much is added to the
norm, so the allowance grows with the cancellation inside the unit and is never guessed.

What is *not* covered: adding the contributions of different units to one another rounds too (float32 inside a physical
batch, float64 between them). This changes the sum, not what one unit adds before it is added, and is bounded by
units x u x (sum of clips); the same holds for every floating-point implementation of the Gaussian mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from confide.training.engine.fast.kernels import triton_for

CHAIN = 64


@dataclass(frozen=True)
class Arithmetic:
    """Precision of norms, weights and sums.

    Attributes
    ----------
    operands : torch.dtype
        Precision in which layers compute and in which kept gradients are stored.
    tf32 : bool
        True when float32 matrix products may round their factors to 11 bits.
    """

    operands: torch.dtype
    tf32: bool

    @property
    def accumulate(self) -> torch.dtype:
        """Precision of sums: float32, or float64 for float64 models."""
        return torch.float64 if self.operands == torch.float64 else torch.float32

    @property
    def unit(self) -> float:
        """Rounding unit of sums."""
        return float(torch.finfo(self.accumulate).eps) / 2

    @property
    def shrink(self) -> float:
        """Share of the clip that is given up for rounding of kept gradients; see the module."""
        return 64 * self.unit

    def slack(self, rows: int) -> float:
        """Rounding of the matrix product over `rows` rows of a unit, relative to sum_i |a_i| |g_i|."""
        return (rows + 2) * self.unit + (2.0**-10 * (1 + 2.0**-10) if self.tf32 else 0.0)

    @property
    def name(self) -> str:
        """For the certificate: "float32", "tf32", "bfloat16", ..."""
        name = str(self.operands).removeprefix("torch.")
        return "tf32" if self.tf32 and self.operands == torch.float32 else name

    def to_dict(self) -> dict[str, object]:
        """Return what a certificate states."""
        accumulate = str(self.accumulate).removeprefix("torch.")
        return {"operands": self.name, "norms_and_sums": accumulate, "clip_shrink": self.shrink}


def arithmetic(operands: torch.dtype, device: torch.device) -> Arithmetic:
    """Return the arithmetic in force: TF32 counts where torch allows it on a CUDA device."""
    fast = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return Arithmetic(operands, device.type == "cuda" and operands != torch.float64 and bool(fast))


def squares(values: Tensor, accumulate: torch.dtype) -> Tensor:
    """Return the sum of squares of each row of (units, n), float64, by chunks of `CHAIN`."""
    count, width = values.shape
    if accumulate == torch.float32 and triton_for(values, "squares"):
        found: Tensor = torch.ops.confide.unit_squares(values)
        return found
    whole = width // CHAIN * CHAIN
    total = torch.zeros(count, dtype=torch.float64, device=values.device)
    if whole:
        main = values if whole == width else values[:, :whole]
        chunk = torch.linalg.vector_norm(main.reshape(count, -1, CHAIN), dim=2, dtype=accumulate)
        total = total + chunk.double().square().sum(1)
    if whole < width:
        rest = torch.linalg.vector_norm(values[:, whole:], dim=1, dtype=accumulate)
        total = total + rest.double().square()
    return total
