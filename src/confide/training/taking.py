"""How a run takes its physical batches: as one compiled function or layer by layer, and what is done when it fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confide.errors import RunError
from confide.mechanisms import NoiseSource
from confide.training.device_noise import NAME
from confide.training.engine import ClippingEngine
from confide.training.engine.failures import device_failed, fatal, out_of_memory
from confide.training.engine.fast import FastClippingEngine
from confide.training.engine.fast.whole import WholeStep
from confide.training.rehearsal import ENTRIES, Rehearsal

_NOISE = {"device": NAME, "default": "numpy generator (float64), 256-bit key from the operating system"}


class Taking:
    """The ways of one run.

    Attributes
    ----------
    whole : WholeStep or None
        The compiled step, where there is one.
    again : bool
        True when the current step has to begin anew, in smaller physical batches.
    ways : dict
        "compiled", "layer by layer": what was used, in order.
    why_layers : str or None
        Why steps that were meant to be compiled are not.
    traced : bool
        Whether a step of made-up entries could be traced whole, before anybody was drawn.
    rooms : set
        See `WholeStep.room`; kept in checkpoints, so that a run that goes on rounds as it would have.
    """

    def __init__(self) -> None:
        self.whole: WholeStep | None = None
        self.again = False
        self.ways: dict[str, None] = {}
        self.why_layers: str | None = None
        self.traced = False
        self.rooms: set[tuple[int | None, int, int]] = set()

    def prepare(self, engine: ClippingEngine, loss: Callable[[Any, Any], Tensor], *, even: bool) -> None:
        """After the rehearsal: set up the compiled step where the options ask for it."""
        if (
            self.whole is not None
            or self.why_layers is not None
            or type(engine) is not FastClippingEngine
            or not engine.options.compiled
        ):
            return
        cuda = engine.parameters[0].device.type == "cuda"
        compiler = engine.options.compile != "trace"
        self.whole = WholeStep(engine, loss, even=even, compiler=compiler, graphs=cuda, rooms=self.rooms)

    def trial(self, engine: ClippingEngine, rehearsal: Rehearsal) -> None:
        """Trace a step of random entries once, so that the way of this model is known, and may be told, before a draw.

        What the batches of a run do later may have to do with who is in them; the certificate states what was found
        here.
        """
        if self.whole is None or self.traced:
            return
        count = min(ENTRIES, engine.physical_batch)
        engine.stop_capture()
        with rehearsal.frozen():
            self.traced = self.whole.trial(*rehearsal.batch(count), count)
        if not self.traced:
            self._in_layers(self.whole.why_not)

    def _in_layers(self, why: str | None) -> None:
        self.whole, self.why_layers = None, why
        warnings.warn(f"steps are not compiled: {why}", RuntimeWarning, stacklevel=5)

    def add(
        self,
        engine: ClippingEngine,
        inputs: Any,
        targets: Any,
        units: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float64],
        clips: npt.NDArray[np.float64],
        *,
        partial: bool,
    ) -> bool:
        """Take a batch whole; False where it has to go layer by layer (the engine is then recording)."""
        if self.whole is not None and not partial and not engine.waiting:
            engine.stop_capture()
            compiler = self.whole.why_traced
            done = self.whole.add(inputs, targets, units, weights, clips)
            if self.whole.why_traced != compiler:
                warnings.warn(f"steps run as they were traced: {self.whole.why_traced}", RuntimeWarning, stacklevel=4)
            if done:
                self.ways["compiled"] = None
                return True
            self._in_layers(self.whole.why_not)
            engine.start_capture()
        self.ways["layer by layer"] = None
        return False

    def recover(self, engine: ClippingEngine, entries: int, step: int, error: RuntimeError | MemoryError) -> None:
        """Out of memory: let the step begin anew with half as many entries at once. Anything else is raised.

        Raises
        ------
        RunError
            A single entry does not fit, or the device failed.
        """
        if fatal(error):
            raise device_failed(error, f"step {step}") from error
        if not out_of_memory(error):
            raise error
        size = min(engine.physical_batch, entries if self.whole is None else self.whole.rows(entries))
        if size <= 1:
            raise one_is_too_many(step) from error
        engine.stop_capture()
        engine.discard()
        self.shrink(engine, size // 2)

    def shrink(self, engine: ClippingEngine, size: int) -> None:
        """Let the step begin anew with at most `size` entries at once, and say so."""
        engine.limit(size)
        self.again = True
        if self.whole is not None:
            self.whole.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory: from now on at most {size} entries pass through the model at once",
            RuntimeWarning,
            stacklevel=5,
        )

    def described(self, engine: ClippingEngine) -> str:
        """Return in words which engine ran this model, and why where it is not the one that was meant. Internal."""
        if not isinstance(engine, FastClippingEngine):
            found = "exact engine, layer by layer"
        elif engine.why_exact is not None:
            found = f"exact engine, layer by layer: {engine.why_exact}"
        elif self.whole is not None:
            why = self.whole.why_traced
            found = "fast engine, whole steps " + ("compiled" if why is None else f"traced: {why}")
        else:
            why = self.why_layers
            found = "fast engine, layer by layer" + ("" if why is None else f": {why}")
        slow = [engine.names[number] for number in engine.whole_graph_parameters()]
        if slow:
            names = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
            found += f"; one backward row for each unit, which is slow, for {names}"
        return found

    def stated(self, engine: ClippingEngine, noise: str | NoiseSource) -> str:
        """Return in words for the certificate: precision, what clips gave up for it, where the noise came from.

        Steps are stated as compiled where the options ask for it and a step of random entries could be traced
        (`trial`). Such a run takes a contributor with more entries than one physical batch holds layer by layer. Both
        ways are stated whether or not there was such a person: the certificate must not tell.
        """
        said = []
        compiled = isinstance(engine, FastClippingEngine) and self.traced
        if isinstance(engine, FastClippingEngine) and compiled:
            said.append(f"compiled steps: {engine.stated}, clip weights shrunk by {engine.arithmetic.shrink:.1e}")
        kind = str(engine.parameters[0].dtype).removeprefix("torch.")
        said.append(f"{'others: ' if compiled else ''}{kind}, clip weights shrunk by {engine.given_up:.1e}")
        source = _NOISE.get(noise, noise) if isinstance(noise, str) else "a source given by the caller"
        return f"{'; '.join(said)}; noise: {source}"


def one_is_too_many(step: int, what: str | None = None) -> RunError:
    """Say that no batch is small enough."""
    return RunError(
        f"{'one entry does' if what is None else f'{what} do'} not fit into the memory of the device",
        where=f"step {step}",
        remedy="use a smaller model, or activation checkpointing; resume with --resume",
    )
