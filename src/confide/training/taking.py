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
from confide.training.engine.fast import FastClippingEngine
from confide.training.engine.fast.whole import WholeStep, fatal

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
    """

    def __init__(self) -> None:
        self.whole: WholeStep | None = None
        self.again = False
        self.ways: dict[str, None] = {}

    def prepare(self, engine: ClippingEngine, loss: Callable[[Any, Any], Tensor], *, even: bool) -> None:
        """After the rehearsal: set up the compiled step where the options ask for it."""
        if self.whole is not None or type(engine) is not FastClippingEngine or not engine.options.compiled:
            return
        cuda = engine.parameters[0].device.type == "cuda"
        self.whole = WholeStep(engine, loss, even=even, compiler=engine.options.compile != "trace", graphs=cuda)

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
            if self.whole.add(inputs, targets, units, weights, clips):
                self.ways["compiled"] = None
                return True
            warnings.warn(f"steps are not compiled: {self.whole.why_not}", RuntimeWarning, stacklevel=4)
            self.whole = None
            engine.start_capture()
        self.ways["layer by layer"] = None
        return False

    def recover(self, engine: ClippingEngine, entries: int, step: int, error: RuntimeError) -> None:
        """Out of memory: let the step begin anew with half as many entries at once. Anything else is raised.

        Raises
        ------
        RunError
            A single entry does not fit, or the device failed.
        """
        if fatal(error):
            raise RunError(
                f"the device failed: {str(error).splitlines()[0]}",
                where=f"step {step}",
                remedy="start again with --resume: the run goes on from its last checkpoint, and what was reserved "
                "stays reserved",
            ) from error
        if not isinstance(error, torch.OutOfMemoryError):
            raise error
        size = min(engine.physical_batch, entries)
        if size <= 1:
            raise RunError(
                "one entry does not fit into the memory of the device",
                where=f"step {step}",
                remedy="use a smaller model, or activation checkpointing; resume with --resume",
            ) from error
        engine.stop_capture()
        engine.discard()
        engine.limit(size // 2)
        self.again = True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory: from now on at most {size // 2} entries pass through the model at once",
            RuntimeWarning,
            stacklevel=4,
        )

    def stated(self, engine: ClippingEngine, noise: str | NoiseSource) -> str:
        """Return in words for the certificate: precision, what clips gave up for it, where the noise came from."""
        said = []
        for way in self.ways or ["layer by layer"]:
            if way == "compiled" and isinstance(engine, FastClippingEngine):
                said.append(f"{engine.stated}, clip weights shrunk by {engine.arithmetic.shrink:.1e}")
            else:
                kind = str(engine.parameters[0].dtype).removeprefix("torch.")
                said.append(f"{kind}, clip weights shrunk by {engine.given_up:.1e}")
        source = _NOISE.get(noise, noise) if isinstance(noise, str) else "a source given by the caller"
        return f"{'; '.join(said)}; noise: {source}"
