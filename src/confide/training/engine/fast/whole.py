"""Whole physical batches through the compiled step: few shapes by padding, sums into the engine's running sum.

>>> [bucket(n) for n in (1, 8, 9, 17, 100, 129)]
[8, 8, 10, 20, 112, 160]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from confide.errors import ConfideError
from confide.training.engine.failures import fatal, out_of_memory
from confide.training.engine.fast.compiled import CompiledStep, Loss, padded
from confide.training.engine.fast.engine import FastClippingEngine

LEAST = 8
# A batch goes through a step that is compiled already if that has up to so many times its entries and units, by how
# many steps there are: compiling one more takes as long as thousands of steps, and the common sizes come first.
IDLE = {4: 1.3, 8: 2.0}


def bucket(count: int) -> int:
    """Return the number of rows (or units) that `count` is padded to: at most a quarter more, four sizes an octave."""
    step = max(LEAST, 1 << (max(count, 1) - 1).bit_length()) // 8
    if count <= LEAST:
        return LEAST
    return -(-count // step) * step


class WholeStep:
    """Physical batches by the compiled step.

    Parameters
    ----------
    engine : FastClippingEngine
        Rehearsed.
    loss : function
        (outputs, targets) to one loss for each entry.
    even : bool
        True when all units may have equally many entries (the plan says so): a batch where they have goes through a
        step of its own, whose units are plain reshapes.
    compiler : bool
        See `CompiledStep`.
    graphs : bool
        See `CompiledStep`.
    rooms : set, optional
        Steps that earlier batches called for, as (entries of a unit or None, rows, units); added to.

    Attributes
    ----------
    why_not : str or None
        Why batches go layer by layer instead; set when the step cannot be traced.
    why_traced : str or None
        Why traced steps run as they are: the compiler failed.
    """

    def __init__(
        self,
        engine: FastClippingEngine,
        loss: Loss,
        *,
        even: bool = False,
        compiler: bool = True,
        graphs: bool = False,
        rooms: set[tuple[int | None, int, int]] | None = None,
    ) -> None:
        self.engine, self.even = engine, even
        autocast = torch.bfloat16 if engine.precision == "bf16" else None
        self.step = CompiledStep(engine, loss, autocast=autocast, compiler=compiler, graphs=graphs)
        self.why_not: str | None = engine.why_in_layers
        self.why_traced: str | None = None
        self.proven = False
        self._rooms = set() if rooms is None else rooms

    def trial(self, inputs: Any, targets: Any, count: int) -> bool:
        """Trace a step of `count` made-up entries; False where steps of this model go layer by layer.

        Nothing private takes part, so the answer may be told. Nothing is compiled or kept: the batches of a run have
        other shapes.
        """
        leaves = tree_leaves((inputs, targets))
        self._check(leaves, count)
        if self.why_not is not None:
            return False
        device = leaves[0].device
        units = torch.arange(count, device=device)
        weights, clips = torch.ones(count, device=device), torch.ones(count, dtype=torch.float64, device=device)
        try:
            with precise(self.engine.precision):
                self.step.trace(inputs, targets, units, weights, clips, each=1 if self.even else None)
        except Exception as error:
            if fatal(error) or out_of_memory(error):
                raise
            self.why_not = _in_words("it cannot be traced", error)
        return self.why_not is None

    def _check(self, leaves: list[Any], real: int) -> None:
        if self.why_not is None and not all(isinstance(v, Tensor) and v.shape[:1] == (real,) for v in leaves):
            self.why_not = "the inputs are not tensors with entries along the first axis"

    def forget(self) -> None:
        """Let go of all compiled steps: recordings of larger batches hold memory that smaller ones need."""
        self.step._made.clear()
        self.step._pool = None
        self._rooms.clear()

    def room(self, real: int, count: int, each: int | None) -> tuple[int, int]:
        """Return the rows and units of the step that takes a batch: one that is there already, if little of it is idle.

        Parameters
        ----------
        real, count : int
            Entries and units of the batch.
        each : int or None
            Entries of every unit, where all have the same.
        """
        idle = next((share for few, share in IDLE.items() if len(self._rooms) < few), np.inf)
        fits = [
            (rows, most)
            for known, rows, most in self._rooms
            if known == each and real <= rows <= max(LEAST, idle * real) and count <= most <= max(LEAST, idle * count)
        ]
        if fits:
            return min(fits)
        if each is None:
            rows = self.rows(real)
            most = min(bucket(count), rows)
        else:
            most = max(count, min(bucket(count), self.engine.physical_batch // each))
            rows = most * each
        self._rooms.add((each, rows, most))
        return rows, most

    def rows(self, real: int) -> int:
        """Return how many rows pass through the model for `real` entries: padding has to fit into memory as well."""
        return max(real, min(bucket(real), self.engine.physical_batch))

    def add(
        self,
        inputs: Any,
        targets: Any,
        units: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float64],
        clips: npt.NDArray[np.float64],
    ) -> bool:
        """Take a physical batch into the running sum of the engine.

        Parameters
        ----------
        inputs, targets
            Collated entries on the device, entries along the first axis of every tensor.
        units, weights, clips
            See `ClippingEngine.add`.

        Returns
        -------
        bool
            False where nothing was done because the batch cannot go this way; `why_not` says why.
        """
        real, count = len(units), len(clips)
        leaves = tree_leaves((inputs, targets))
        self._check(leaves, real)
        if self.why_not is not None:
            return False
        self.engine.keep()
        device = leaves[0].device
        each = self._each(units, count)
        entries, most = self.room(real, count, each)
        rows, filled, _ = padded(units, count, entries=entries, most=most)
        if each is not None:  # the padding rows are units of their own
            filled = np.arange(entries) // each
        weight, clip = np.zeros(entries, dtype=np.float32), np.zeros(most + (each is None))
        weight[:real], clip[:count] = weights, clips
        chosen = torch.as_tensor(rows, device=device)
        x, y = (
            tree_map(lambda v: v.index_select(0, chosen), (inputs, targets)) if entries != real else (inputs, targets)
        )
        data = (torch.as_tensor(filled, device=device), torch.as_tensor(weight, device=device))
        try:
            with precise(self.engine.precision):
                found = self.step.run(x, y, *data, torch.as_tensor(clip, device=device), each)
        except ConfideError:
            raise
        except Exception as error:
            if self.proven or fatal(error) or out_of_memory(error):
                raise
            if self.step.compiler:  # a graph that cannot be compiled can still be run, with the arithmetic as stated
                self.why_traced = _in_words("the compiler failed", error)
                self.step.without_compiler()
                return self.add(inputs, targets, units, weights, clips)
            self.why_not = _in_words("it cannot be traced", error)
            return False
        self.proven = True
        self.engine.count(found.losses[:real])
        self.engine.add_sums(found.gradients, found.norms[:count], found.factors[:count])
        return True

    def _each(self, units: npt.NDArray[np.int64], count: int) -> int | None:
        """Entries of every unit where all have equally many and may have, else None."""
        sizes = np.bincount(units, minlength=count) if self.even else np.zeros(0, dtype=np.int64)
        return int(sizes[0]) if len(sizes) and bool((sizes == sizes[0]).all()) and sizes[0] > 0 else None


def _in_words(what: str, error: Exception) -> str:
    return f"{what} ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"


@contextmanager
def precise(precision: str) -> Iterator[None]:
    """Set what float32 products on CUDA may round to, and put it back."""
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    cuda.allow_tf32 = cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32 = before
