"""A rehearsal on random inputs before the first step: whatever mixes entries is refused, by name, before data is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from confide.training.dataset import ContributorDataset
from confide.training.engine import ClippingEngine


@dataclass(frozen=True)
class Example:
    """Inputs and targets of a few entries, of which shapes and types matter."""

    inputs: Any
    targets: Any


def example_of(dataset: ContributorDataset) -> Example:
    """Return the first entry of a data set, of which only shapes and types will be used."""
    import numpy as np

    return Example(*dataset.batch(np.zeros(1, dtype=np.int64)))


def rehearse(
    engine: ClippingEngine, loss: Callable[[Any, Any], Tensor], example: Example, device: torch.device
) -> None:
    """Check model and loss on random inputs."""
