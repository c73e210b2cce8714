"""Learning a network with one clipped gradient for each patient: all patients in every step, all noise on the meter.

Every step sums over patients the gradient of the patient's whole loss (static columns and all visits together), clipped
at `clip` by confide's engine, and releases the sum through the meter. There is no sampling, so steps compose exactly as
Gaussians, and nothing but released gradients moves the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confide.errors import MissingExtraError
from confide.synthesis.domain import Floats, Ints, Panel
from confide.synthesis.meter import Meter

if TYPE_CHECKING:
    from torch import Tensor, nn

PUBLIC_SEED = 20_240_301
VISITS_A_STEP = 8


def torch_or_error() -> Any:
    """Import torch; errors name the extra."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("this method learns with PyTorch", "train") from error
    return torch


def zuko_or_error() -> Any:
    """Import zuko; errors name the extra."""
    torch_or_error()
    try:
        import zuko
    except ImportError as error:
        raise MissingExtraError("the spline flow needs zuko", "flows") from error
    return zuko


def learn(
    model: nn.Module,
    inputs: Callable[[int], tuple[Tensor, ...]],
    meter: Meter,
    *,
    name: str,
    patients: float,
    clip: float,
    share: float,
    steps: int,
    rate: float,
    scale: Floats | None = None,
) -> None:
    """Train `model`, whose forward pass returns one loss for each patient.

    Parameters
    ----------
    inputs : function
        Step to tensors with one row a patient, a function of each patient's own data.
    patients : float
        Released number of patients, the fixed denominator.
    clip : float
        Norm at which a patient's gradient is clipped (times the patient's `scale`).
    share : float
        Part of mu^2 for all steps together.
    rate : float
        Learning rate of Adam, which sees noisy gradients only.
    """
    torch = torch_or_error()
    from confide.training import ClippingEngine, EngineOptions
    from confide.training.rehearsal import Example, rehearse

    engine = ClippingEngine(model, EngineOptions(physical_batch=1024))
    first = inputs(0)
    number = len(first[0])
    random = tuple(torch.rand((1, *part.shape[1:]), generator=_generator(torch)) for part in first)
    rehearse(engine, lambda out, _: out, Example(random, torch.zeros(1), values=False), torch.device("cpu"))
    optimizer = torch.optim.Adam(engine.parameters, lr=rate, betas=(0.9, 0.95))
    clips = np.full(number, clip) if scale is None else clip * scale
    sizes = [value.numel() for value in engine.parameters]
    for step in range(steps):
        parts = inputs(step)
        total = np.zeros(sum(sizes))
        if number:
            found = engine.clipped_sum(_losses(model, parts), np.arange(number), np.ones(number), clips)
            total = torch.cat([value.reshape(-1).double() for value in found.gradients]).numpy()
        noisy = meter.gaussian(f"{name}, step {step + 1}", total, sensitivity=clip, share=share / steps)
        for value, part in zip(engine.parameters, np.split(noisy / patients, np.cumsum(sizes)[:-1]), strict=True):
            value.grad = torch.from_numpy(part).reshape(value.shape).to(value.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _losses(model: nn.Module, parts: Sequence[Tensor]) -> Callable[[Ints], Tensor]:
    import torch

    def losses(rows: Ints) -> Tensor:
        at = torch.from_numpy(np.asarray(rows))
        found: Tensor = model(*(part[at] for part in parts))
        return found

    return losses


def _generator(torch: Any) -> Any:
    return torch.Generator().manual_seed(PUBLIC_SEED)


def window(panel: Panel, step: int, size: int = VISITS_A_STEP) -> tuple[Ints, Floats]:
    """Return for each patient up to `size` visits in a row, another stretch in every step, and their weights.

    Returns
    -------
    rows : int64 array, shape (patients, size)
        Positions among all visits; any valid number where the weight is zero.
    weights : float array, shape (patients, size)
        They add up to 1 for a patient with visits.
    """
    counts = panel.counts[:, None]
    start = (step * size) % np.maximum(counts, 1)
    place = (start + np.arange(size)) % np.maximum(counts, 1)
    taken = np.arange(size) < counts
    rows = np.where(taken, panel.starts[:-1, None] + place, 0)
    weights = taken / np.maximum(np.minimum(counts, size), 1)
    return rows.astype(np.int64), np.asarray(weights, dtype=np.float64)
