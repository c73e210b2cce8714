"""One step, traced whole and compiled: forward, loss, backward, norms, weights, clipped sums.

``make_fx`` follows the tape of the engine through the backward pass into one graph without breaks, which
``torch.compile`` then turns into kernels. Shapes are those of the batch it was traced with; whether units are ragged is
fixed, how they are ragged is not: sizes come in as data. A caller pads to few shapes by entries of weight zero in a
last unit of clip zero (`padded`), which add exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from confide.training.dataset import call_model
from confide.training.engine.fast import graph as passes
from confide.training.engine.fast.blocks import Blocks, Part
from confide.training.engine.fast.engine import FastClippingEngine

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class StepSums:
    """What a compiled step gives, all on the device: sums of every parameter, norms, factors, losses."""

    gradients: list[Tensor]
    norms: Tensor
    factors: Tensor
    losses: Tensor


class CompiledStep:
    """The clipped sum of one physical batch as a compiled function of its data.

    Parameters
    ----------
    engine : FastClippingEngine
        Rehearsed, with nothing that needs the first engine.
    loss : function
        (outputs, targets) to one loss for each entry.
    autocast : torch.dtype, optional
        Precision of the layers' products (bfloat16); None: that of the parameters.
    compiler : bool
        False runs the traced graph as it is (for tests).
    """

    def __init__(
        self,
        engine: FastClippingEngine,
        loss: Loss,
        *,
        autocast: torch.dtype | None = None,
        compiler: bool = True,
    ) -> None:
        self.engine, self.loss, self.autocast, self.compiler = engine, loss, autocast, compiler
        self._made: dict[Any, Callable[..., Any]] = {}

    def __call__(self, inputs: Any, targets: Tensor, units: Tensor, weights: Tensor, clips: Tensor) -> StepSums:
        """Run the step.

        Parameters
        ----------
        inputs, targets
            On the device.
        units : int64 tensor, shape (entries,), non-decreasing
        weights : tensor, shape (entries,)
        clips : float64 tensor, shape (units,)
        """
        each = len(units) // len(clips) if len(units) % len(clips) == 0 and self._even(units, len(clips)) else None
        return self.run(inputs, targets, units, weights, clips, each)

    def run(
        self, inputs: Any, targets: Tensor, units: Tensor, weights: Tensor, clips: Tensor, each: int | None
    ) -> StepSums:
        """Run the step where all units are known to have `each` entries (None: ragged), without asking the device."""
        flat, tree = tree_flatten((inputs, targets, units, weights, clips))
        key = (each, tree, *((value.shape, value.dtype) for value in flat))
        if key not in self._made:
            self._made[key] = self._make(flat, tree, each)
        losses, *sums, norms, factors = self._made[key](*self.engine.parameters, *flat)
        return StepSums(sums, norms, factors, losses)

    @staticmethod
    def _even(units: Tensor, count: int) -> bool:
        counts = torch.bincount(units, minlength=count)
        return bool((counts == counts[0]).all())

    def _context(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    def _make(self, flat: list[Tensor], tree: TreeSpec, each: int | None) -> Callable[..., Any]:
        engine = self.engine
        skip = len(engine.parameters)  # parameters are arguments, so that the graph reads them as they are in each step

        def step(*values: Tensor) -> list[Tensor]:
            inputs, targets, units, weights, clips = tree_unflatten(values[skip:], tree)
            with torch.enable_grad(), engine.capture(), self._context(targets.device):
                losses = self.loss(call_model(engine.model, inputs), targets)
            blocks = Blocks(units, len(clips), each, () if each is None else (Part(None, each, None),))
            sums, norms, factors = engine.sums(losses, weights.to(losses.dtype), blocks, clips)
            return [losses.detach(), *sums, norms, factors]

        graph = passes.simplify(make_fx(step)(*engine.parameters, *flat))
        if flat[0].device.type == "cuda":
            graph = passes.channels_last(graph)
        graph = passes.simplify(passes.decompose(graph, [*engine.parameters, *flat]))
        graph = passes.recompute(graph, skip + len(tree_flatten(tree_unflatten(flat, tree)[:2])[0]))
        made: Callable[..., Any] = torch.compile(graph, dynamic=False, fullgraph=True) if self.compiler else graph

        def call(*values: Tensor) -> Any:
            with torch.no_grad():
                return made(*values)

        return call


def padded(
    units: npt.NDArray[np.int64], count: int, *, entries: int, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Pad a batch to `entries` rows and `most` + 1 units; the last unit takes the padding.

    Returns
    -------
    rows : int64 array, shape (entries,)
        Which row of the batch to take (padding repeats the last one).
    units : int64 array, shape (entries,)
    real : int
        Rows that count; weights of the others are zero, and the clip of the last unit is zero.
    """
    real = len(units)
    rows = np.minimum(np.arange(entries), real - 1)
    filled = np.full(entries, most, dtype=np.int64)
    filled[:real] = units
    return rows.astype(np.int64), filled, real
