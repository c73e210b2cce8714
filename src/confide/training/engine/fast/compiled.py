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
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from confide.training.dataset import call_model
from confide.training.engine.fast import graph as passes
from confide.training.engine.fast import kernels
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
        False runs the traced graph as it is (for tests, and where the compiler fails).
    prepare : bool, optional
        Rewrite the graph first (see graph.py); by default where it is compiled.
    graphs : bool
        Record the kernels of a step once and replay them (CUDA graphs), so that the host has nothing to launch.
    """

    def __init__(
        self,
        engine: FastClippingEngine,
        loss: Loss,
        *,
        autocast: torch.dtype | None = None,
        compiler: bool = True,
        prepare: bool | None = None,
        graphs: bool = False,
    ) -> None:
        self.engine, self.loss, self.autocast, self.compiler = engine, loss, autocast, compiler
        self.prepare = compiler if prepare is None else prepare
        self.graphs = graphs
        model = engine.model
        self._frozen = [value for value in model.parameters() if not value.requires_grad]
        self._buffers = [(module._buffers, name) for module in model.modules() for name in module._buffers]
        self._pool: Any = None
        self._made: dict[Any, Callable[..., Any]] = {}

    def without_compiler(self) -> None:
        """Run the traced graphs as they are from now on: the same products, sums and precision."""
        self.compiler = self.prepare = self.graphs = False
        self._made.clear()

    def record(self) -> None:
        """Replay what was compiled so far as CUDA graphs from now on."""
        self.graphs = True
        self._made = {key: self._replayed(made) for key, made in self._made.items()}

    def _replayed(self, made: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(made, Replay) or self.engine.parameters[0].device.type != "cuda":
            return made
        self._pool = torch.cuda.graph_pool_handle() if self._pool is None else self._pool
        return Replay(made, len(self._state()), self._pool)

    def _state(self) -> list[Tensor]:
        """What the step reads besides its data: parameters first, then what is frozen, and buffers."""
        # walking through the model in every step would keep a replayed device waiting
        held = [place[name] for place, name in self._buffers]
        return [*self.engine.parameters, *self._frozen, *(value for value in held if value is not None)]

    @property
    def compilations(self) -> int:
        """How often a step was traced and compiled: once for every shape that came."""
        return len(self._made)

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
        tree: TreeSpec | None = None
        if isinstance(inputs, Tensor) and isinstance(targets, Tensor):  # what is spent here a replayed device waits for
            flat: list[Any] = [inputs, targets, units, weights, clips]
        else:
            flat, tree = tree_flatten((inputs, targets, units, weights, clips))
        key = (each, tree, *[(value.shape, value.dtype) for value in flat])
        made = self._made.get(key)
        if made is None:
            tree = tree_flatten((inputs, targets, units, weights, clips))[1] if tree is None else tree
            made = self._made[key] = self._make(flat, tree, each)
        losses, *sums, norms, factors = made(*self._state(), *flat)
        return StepSums(sums, norms, factors, losses)

    def trace(self, *data: Any, each: int | None) -> None:
        """Trace a step of the data as `run` would, and keep nothing: raises what tracing raises. Compiles nothing."""
        flat, tree = tree_flatten(data)
        self._traced(flat, tree, each)

    @staticmethod
    def _even(units: Tensor, count: int) -> bool:
        counts = torch.bincount(units, minlength=count)
        return bool((counts == counts[0]).all())

    def _context(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    @staticmethod
    def _one_mode(device: torch.device) -> AbstractContextManager[Any]:
        """Describe all values of a trace under one mode: make_fx makes one, with the stack in words, for every value.

        A third of the time of a trace on a CPU; elsewhere compiling takes many times as long.
        """
        if device.type != "cpu":
            return nullcontext()
        return tracing(TracingContext(FakeTensorMode()))

    def _traced(self, flat: list[Tensor], tree: TreeSpec, each: int | None) -> Any:
        """Return the graph of a step as its functions stand there."""
        engine = self.engine
        state = self._state()  # arguments, so that the graph reads them as they are in each step
        skip = len(state)

        def step(*values: Tensor) -> list[Tensor]:
            inputs, targets, units, weights, clips = tree_unflatten(values[skip:], tree)
            with torch.enable_grad(), engine.capture(), self._context(targets.device):
                losses = self.loss(call_model(engine.model, inputs), targets)
            blocks = Blocks(units, len(clips), each, () if each is None else (Part(None, each, None),))
            sums, norms, factors = engine.sums(losses, weights.to(losses.dtype), blocks, clips)
            return [losses.detach(), *sums, norms, factors]

        kernels.check(flat[0].device)
        with self._one_mode(flat[0].device):
            return make_fx(step)(*state, *flat)

    def _make(self, flat: list[Tensor], tree: TreeSpec, each: int | None) -> Callable[..., Any]:
        state = self._state()
        skip = len(state)
        graph = passes.simplify(self._traced(flat, tree, each))
        if self.prepare:
            if flat[0].device.type == "cuda":
                graph = passes.channels_last(graph)
            graph = passes.simplify(passes.decompose(graph, [*state, *flat]))
            graph = passes.recompute(graph, skip + len(tree_flatten(tree_unflatten(flat, tree)[:2])[0]))
            graph = passes.realise(graph)
        made: Callable[..., Any] = torch.compile(graph, dynamic=False, fullgraph=True) if self.compiler else graph

        def call(*values: Tensor) -> Any:
            with torch.no_grad():
                return made(*values)

        return self._replayed(call) if self.graphs else call


class Replay:
    """Run a function of tensors a few times, then record its kernels and replay them on copies of new data.

    Parameters
    ----------
    function : callable
    fixed : int
        Leading arguments that stay at their place in memory (parameters).
    pool : handle
        Memory that the recordings of one run share: only one of them is in use at a time.
    """

    WARM = 2

    def __init__(self, function: Callable[..., Any], fixed: int, pool: Any) -> None:
        self._function, self._fixed, self._pool, self._runs = function, fixed, pool, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: list[Tensor] = []
        self._places: list[int] = []
        self._out: Any = None

    def __call__(self, *values: Tensor) -> Any:
        """Return what the function returns; the tensors are overwritten by the next call."""
        places = list(map(Tensor.data_ptr, values[: self._fixed]))
        data = values[self._fixed :]
        if self._graph is None or places != self._places:
            self._runs += 1
            if self._runs <= self.WARM or places == self._places:  # warming, or this step cannot be recorded
                return self._function(*values)
            self._places = places
            self._held = [value.clone() for value in data]
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    self._out = self._function(*values[: self._fixed], *self._held)
            except RuntimeError:
                torch.cuda.synchronize()
                return self._function(*values)
            self._graph = graph
        for held, value in zip(self._held, data, strict=True):
            held.copy_(value)
        self._graph.replay()
        return self._out


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
