"""Correlated noise as a stream: y = C^-1 z one step at a time, with as many vectors kept as the factor has memory.

>>> import numpy as np
>>> stream = MatrixNoise(Correlation("banded", 2, (0.8, 0.6)))
>>> [round(float(stream.next(np.ones(1))[0]), 4) for _ in range(3)]           # 1/0.8, (1 - 0.6 x 1.25)/0.8, ...
[1.25, 0.3125, 1.0156]

What is kept are past values of y, noise that is already in gradients of the run: whoever finds a checkpoint could take
that of the last steps out again. A checkpoint is private data in any case.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from confide.accounting import Correlation
from confide.errors import RunError

F64 = npt.NDArray[np.float64]


class MatrixNoise:
    """Solve C y = z forwards.

    Parameters
    ----------
    factor : Correlation
    """

    def __init__(self, factor: Correlation) -> None:
        self._factor = factor
        self._kept: list[F64] = []

    def next(self, fresh: F64) -> F64:
        """Return y of the next step from independent noise z, float64 [values] each.

        banded: y_t = (z_t - sum_j c_j y_(t-j)) / c_0. blt: y_t = z_t / c_0 - sum_i w_i s_i with the buffers
        s_i <- d_i s_i + y_t.
        """
        factor = self._factor
        if factor.kind == "banded":
            y = np.array(fresh, dtype=np.float64)
            for coefficient, past in zip(factor.coefficients[1:], reversed(self._kept), strict=False):
                y -= coefficient * past
            y /= factor.coefficients[0]
            if factor.memory:
                self._kept = [*self._kept[-(factor.memory - 1) :], y] if factor.memory > 1 else [y]
            return y
        if not self._kept:
            self._kept = [np.zeros_like(fresh) for _ in factor.decays]
        y = fresh / factor.coefficients[0]
        for weight, buffer in zip(factor.weights, self._kept, strict=True):
            y -= weight * buffer
        for decay, buffer in zip(factor.decays, self._kept, strict=True):
            buffer *= decay
            buffer += y
        return np.asarray(y)

    def state(self) -> list[torch.Tensor]:
        """Return what a checkpoint keeps."""
        return [torch.from_numpy(value.copy()) for value in self._kept]

    def load(self, state: list[torch.Tensor]) -> None:
        """Go on from `state`.

        Raises
        ------
        RunError
            More vectors than the factor has memory.
        """
        if len(state) > self._factor.memory:
            raise RunError("the checkpoint's noise does not fit the plan's factor", where="checkpoint")
        self._kept = [value.numpy().copy() for value in state]
