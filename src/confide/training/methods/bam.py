"""Bias-aware minimisation: gradients that clipping bends less, and its free neighbour along the last noisy gradient.

Clipping alone makes the noisy gradient biased, by at most the mean of max(0, |g_i| - C). `BiasAware` minimises
mean_i [l_i + strength |g_i|] instead of mean_i l_i: with u = g_i / |g_i| and radius r, the unit's gradient is

    h_i = (1 - a) g_i + a grad l_i(theta + r u),    a = strength / r,

the finite-difference form of g_i + strength H_i u. Then h_i is clipped, once. As u comes from unit i alone, h_i does
too: the sensitivity stays C and nothing more is spent. (Classic sharpness-aware steps go along the un-noised gradient
of the batch, which makes every h_i depend on everybody: not offered.) A unit's direction is that of all its drawn
entries and views together.

`PreviousDirection` (DP-SAT) takes every gradient at theta + radius v, where v is the direction of the last noisy
gradient: public, the same for everybody, one pass.

Cost: BiasAware forms the unit gradients of a physical batch explicitly, twice, with a copy of the weights for every
unit: about 2 to 4 times the time of a step, and memory of two models a unit of the physical batch.

References
----------
Knolle et al.: Bias-aware minimisation: understanding and mitigating estimator bias in
private SGD. arXiv 2308.12018. Park, Kim, Choi, Lee: Differentially private sharpness-aware training. ICML 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from confide.errors import InputError
from confide.training.dataset import call_model
from confide.training.engine import ClippingEngine
from confide.training.engine.units import Segments, UnitGradient

Loss = Callable[[Any, Any], Tensor]
_TINY = 1e-12


def _positive(value: float, name: str, where: str, *, zero: bool = False) -> None:
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise InputError(
            f"{name} is {value!r}", where=where, expected=f"a finite number {'of 0 or more' if zero else 'above 0'}"
        )


@dataclass(frozen=True)
class BiasAware:
    """Bias-aware minimisation.

    Parameters
    ----------
    strength : float
        Weight of the unit's gradient norm in the objective (lambda); 0 is the ordinary step, bit for bit.
    radius : float
        Step of the finite difference, in units of the weights; 0.01 to 0.1 in float32.
    """

    strength: float = 0.1
    radius: float = 0.05

    def __post_init__(self) -> None:
        _positive(self.strength, "strength", "bias-aware minimisation", zero=True)
        _positive(self.radius, "radius", "bias-aware minimisation")


@dataclass(frozen=True)
class PreviousDirection:
    """DP-SAT: gradients at a point moved along the last noisy gradient.

    Parameters
    ----------
    radius : float
        How far, in units of the weights.
    """

    radius: float = 0.05

    def __post_init__(self) -> None:
        _positive(self.radius, "radius", "sharpness-aware training")


class BiasAwareSum:
    """Adds the bias-aware gradients of physical batches to the engine's clipped sum.

    Parameters
    ----------
    settings : BiasAware
    engine : ClippingEngine
    loss : function
        The run's loss; a loop that computes its losses in another way gets directions of one and steps of the other.
    """

    def __init__(self, settings: BiasAware, engine: ClippingEngine, loss: Loss) -> None:
        self.settings, self._engine, self._loss = settings, engine, loss
        self.vectorised = False

    def add(
        self, losses: Tensor, inputs: Any, targets: Any, segments: Segments, weights: Tensor, clips: Tensor
    ) -> None:
        """Add a physical batch of whole units.

        Parameters
        ----------
        losses : tensor, shape (entries,)
            From the captured forward pass.
        inputs, targets
        segments : Segments
        weights : tensor, shape (entries,)
        clips : float64 tensor, shape (units,)
        """
        engine, a = self._engine, self.settings.strength / self.settings.radius
        finite = torch.bincount(segments.units[~torch.isfinite(losses.detach())], minlength=segments.count) == 0
        gradients = engine.unit_gradients(losses * weights, segments)
        engine.count(losses)
        if a:
            first = [value.dense() for value in gradients]
            moved = self.moved(first)
            second = self.at(moved, inputs, targets, segments, weights)
            units = torch.arange(segments.count, device=losses.device)
            gradients = [UnitGradient(value, segments.count) for value in engine.parameters]
            for store, g, h in zip(gradients, first, second, strict=True):
                store.add(units, (1 - a) * g + a * h)
        engine.add_units(gradients, finite, clips)

    def moved(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return a copy of the weights for each unit, moved along its own gradient, (units, *shape)."""
        squares = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64).square() for g in gradients]
        norm = torch.stack(squares).sum(0).sqrt()
        far = torch.where(torch.isfinite(norm), self.settings.radius / (norm + _TINY), torch.zeros_like(norm))
        out = []
        for value, g in zip(self._engine.parameters, gradients, strict=True):
            step = far.to(g.dtype).reshape(-1, *[1] * value.dim()) * torch.nan_to_num(g)
            out.append(value.detach() + step)
        return out

    def at(self, moved: list[Tensor], inputs: Any, targets: Any, segments: Segments, weights: Tensor) -> list[Tensor]:
        """Return the gradient of every unit at its own weights, (units, *shape) for each parameter."""
        out = [torch.zeros_like(value) for value in moved]
        for group in segments.groups:
            rows = slice(None) if group.rows is None else group.rows
            shape = (len(group.units), group.size)

            def fold(value: Any, rows: Any = rows, shape: tuple[int, int] = shape) -> Any:
                return value[rows].reshape(*shape, *value.shape[1:]) if isinstance(value, Tensor) else value

            x, y, w = tree_map(fold, inputs), tree_map(fold, targets), fold(weights)
            chosen = [value[group.units] for value in moved]
            found = self._together(chosen, x, y, w) if self.vectorised else self._one_by_one(chosen, x, y, w)
            for store, value in zip(out, found, strict=True):
                store[group.units] = value
        return out

    def settle(self, inputs: Any, targets: Any, count: int) -> None:
        """Find out on random entries whether all units may be computed at once (`torch.func`) or one after another."""
        device = self._engine.parameters[0].device
        segments = Segments(torch.arange(count, device=device), count)
        weights = torch.ones(count, dtype=self._engine.parameters[0].dtype, device=device)
        moved = [value.detach().expand(count, *value.shape) + 0.01 for value in self._engine.parameters]
        modes = [(module, module.training) for module in self._engine.model.modules()]
        self._engine.model.eval()  # random layers would differ between the two ways
        try:
            self.vectorised = False
            want = self.at(moved, inputs, targets, segments, weights)
            self.vectorised = True
            try:
                found = self.at(moved, inputs, targets, segments, weights)
            except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
                self.vectorised = False
                return
        finally:
            for module, mode in modes:
                module.training = mode
        top = max(float(value.double().abs().max()) for value in want)
        self.vectorised = all(
            torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5 * top) for a, b in zip(found, want, strict=True)
        )

    def _together(self, moved: list[Tensor], inputs: Any, targets: Any, weights: Tensor) -> list[Tensor]:
        model, names = self._engine.model, self._engine.names
        fixed = {name: value.detach() for name, value in model.named_parameters() if name not in names}
        fixed |= {name: value.detach() for name, value in model.named_buffers()}

        def total(own: dict[str, Tensor], x: Any, y: Any, w: Tensor) -> Tensor:
            def run(*args: Any, **kwargs: Any) -> Any:
                return functional_call(model, {**fixed, **own}, args, kwargs)

            return (self._loss(call_model(run, x), y) * w).sum()

        each = vmap(grad(total), in_dims=(0, 0, 0, 0), randomness="different")
        found = each(dict(zip(names, moved, strict=True)), inputs, targets, weights)
        return [found[name] for name in names]

    def _one_by_one(self, moved: list[Tensor], inputs: Any, targets: Any, weights: Tensor) -> list[Tensor]:
        parameters = self._engine.parameters
        out = [torch.zeros_like(value) for value in moved]
        for unit in range(len(weights)):
            x, y = (
                tree_map(lambda v, u=unit: v[u] if isinstance(v, Tensor) else v, part) for part in (inputs, targets)
            )
            with at_weights(parameters, [value[unit] for value in moved]), torch.enable_grad():
                total = (self._loss(call_model(self._engine.model, x), y) * weights[unit]).sum()
                found = torch.autograd.grad(total, parameters, allow_unused=True)
            for store, value in zip(out, found, strict=True):
                if value is not None:
                    store[unit] = value
        return out


@contextmanager
def at_weights(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Put other values into parameters, and the old ones back afterwards."""
    kept = [value.detach().clone() for value in parameters]
    try:
        with torch.no_grad():
            for value, other in zip(parameters, values, strict=True):
                value.copy_(other)
        yield
    finally:
        with torch.no_grad():
            for value, other in zip(parameters, kept, strict=True):
                value.copy_(other)


class Displacement:
    """Moves the weights along the last noisy gradient for a step's passes, and back before the optimiser moves.

    Parameters
    ----------
    settings : PreviousDirection
    parameters : list of tensors
    """

    def __init__(self, settings: PreviousDirection, parameters: list[nn.Parameter]) -> None:
        self._settings, self._parameters = settings, parameters
        self.direction: list[Tensor] | None = None
        self._kept: list[Tensor] | None = None

    @torch.no_grad()
    def out(self) -> None:
        """Move; in the first step there is no direction yet."""
        self.back()
        if self.direction is None:
            return
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in self.direction))
        if not (math.isfinite(norm) and norm > 0):
            return
        self._kept = [value.detach().clone() for value in self._parameters]
        for value, way in zip(self._parameters, self.direction, strict=True):
            value.add_(way, alpha=self._settings.radius / norm)

    @torch.no_grad()
    def back(self) -> None:
        """Put the weights back as they were, bit for bit."""
        for value, kept in zip(self._parameters, self._kept or (), strict=False):
            value.copy_(kept)
        self._kept = None

    def remember(self) -> None:
        """Keep the noisy gradient that is in ``.grad``."""
        self.direction = [
            torch.zeros_like(value) if value.grad is None else value.grad.detach().clone() for value in self._parameters
        ]
