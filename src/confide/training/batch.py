"""What a training loop is handed, and what it must have handed back before it is handed more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from confide.errors import InputError
from confide.training.engine.chunks import Chunk

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, repr=False)
class Batch:
    """What a loop gets: one physical batch of the current step. Private.

    Attributes
    ----------
    inputs, targets
        Collated entries on the device of the run.
    step : int
        Step that this batch belongs to.
    last : bool
        True when the step ends with this batch (the optimiser moves after it).
    """

    inputs: Any
    targets: Any
    step: int
    last: bool
    chunk: Chunk

    def __len__(self) -> int:
        return len(self.chunk.rows)


def no_batch() -> InputError:
    """Losses came and no batch was out."""
    return InputError(
        "there is no batch to take losses for",
        where="run.step",
        expected="run.step(losses) once for every batch of `for batch in run`",
    )


def no_losses() -> InputError:
    """The next batch was asked for and the losses of the last are missing."""
    return InputError(
        "a batch was taken and no losses were given back",
        where="the training loop",
        expected="run.step(losses) once for every batch",
        remedy="call run.step(losses) at the end of the loop's body",
    )


def moved_by_hand() -> InputError:
    """The optimiser moved outside of `run.step`."""
    return InputError(
        "optimizer.step() was called by the loop",
        where="the training loop",
        expected="run.step(losses), which clips, adds the noise and moves the optimiser",
        remedy="remove loss.backward() and optimizer.step() from the loop",
    )
