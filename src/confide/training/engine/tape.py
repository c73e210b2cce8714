"""The tape: what one forward pass leaves behind, so that one backward pass gives the gradient of every unit.

A layer rule runs its layer with *detached* parameters, taps the output and records a `Site`. Autograd then never forms
a weight gradient for it; the backward pass only brings the output gradients, and the rule turns saved inputs and output
gradients into unit gradients. Whatever uses a parameter past its rule still meets the live parameter, so its gradient
shows up in autograd and is never lost unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from confide.errors import InputError

# (saved tensors, output gradients, names wanted) of n units -> for each name (n, *shape), or `Rows`
Gradient = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], frozenset[str]], Mapping[str, "Tensor | Rows"]]


class Rows(NamedTuple):
    """Gradients of single rows of a parameter: `numbers` (n, k) and `values` (n, k, width) for n units."""

    numbers: Tensor
    values: Tensor


class Tap(NamedTuple):
    """A place in the autograd graph whose gradient is wanted."""

    edge: GradientEdge
    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True)
class Layout:
    """Where the entries are in the tensors of a site.

    Attributes
    ----------
    axis : int
        Axis that runs over entries, or over entries x records when several records of an entry were flattened into it.
    minor : bool
        True when a flattened axis runs over records first and entries last (time-major), False for entry-major.
    """

    axis: int = 0
    minor: bool = False

    def canonical(self, value: Tensor, entries: int, where: str) -> Tensor:
        """Return (entries, records, ...)."""
        if value.dim() <= self.axis or value.shape[self.axis] % max(entries, 1):
            raise InputError(
                f"a tensor of shape {tuple(value.shape)} has no axis over the {entries} entries of the batch",
                where=where,
                expected=f"entries along axis {self.axis}, as on the random inputs that were tried first",
                remedy="keep entries on the same axis in every step (batch_first=True where a module offers it)",
            )
        moved = value.movedim(self.axis, 0)
        records = moved.shape[0] // entries
        if self.minor:
            return moved.reshape(records, entries, *moved.shape[1:]).transpose(0, 1)
        return moved.reshape(entries, records, *moved.shape[1:])


@dataclass
class Site:
    """One use of parameters in the forward pass."""

    key: tuple[str, str]
    taps: tuple[Tap, ...]
    saved: tuple[Tensor, ...]
    versions: tuple[int, ...]
    gradient: Gradient
    parameters: dict[str, Tensor]
    axis: int | None
    rows: slice | None

    @property
    def where(self) -> str:
        """Module path, for messages."""
        return self.key[0] or "the model itself"

    def check_unchanged(self) -> None:
        """Refuse if an input was overwritten in place after the layer had used it."""
        if any(value._version != version for value, version in zip(self.saved, self.versions, strict=True)):
            raise InputError(
                "the input of a layer is overwritten in place after the layer has used it",
                where=self.where,
                expected="inputs that stay as they were until the backward pass",
                remedy="write x = x + y instead of x += y (or clone before)",
            )


class _Anchor(torch.autograd.Function):
    """Identity that gives an output a place in the autograd graph even where nothing before it needs a gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(value)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, None]:
        return (grads[0] if ctx.needs_input_grad[0] else None), None


class Tape:
    """Sites of the forward passes since the last reset."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self.closed = False

    def reset(self) -> None:
        """Forget everything."""
        self.sites, self.closed = [], False


class Call:
    """One call of one module: what a rule uses to tap outputs and to record sites."""

    def __init__(self, tape: Tape, path: str) -> None:
        self._tape, self.path = tape, path

    def tap(self, output: Tensor) -> tuple[Tensor, Tap]:
        """Mark a freshly computed output as a place whose gradient is wanted."""
        if not output.requires_grad:
            anchor = torch.zeros((), requires_grad=True, device=output.device)
            output = _Anchor.apply(output.clone() if output._is_view() else output, anchor)  # type: ignore[no-untyped-call]
        return output, Tap(get_gradient_edge(output), output.shape, output.dtype)

    def record(
        self,
        taps: Sequence[Tap],
        saved: Sequence[Tensor],
        gradient: Gradient,
        parameters: Mapping[str, Tensor | None],
        *,
        axis: int | None = None,
        label: str = "",
        rows: slice | None = None,
    ) -> None:
        """Record a site.

        Parameters
        ----------
        taps : sequence of Tap
            Outputs, as returned by `tap`.
        saved : sequence of tensors
            What the gradient needs besides; entries along the same axis as the outputs.
        gradient : function
            (saved, output gradients, names wanted), all as (units, rows, ...), to a gradient for each name.
        parameters : dict
            Parameter of each name; None and frozen ones are left out.
        axis : int, optional
            Axis over entries if the layer's definition fixes it; None where only the model knows (it is then found
            on random inputs, 0 until then).
        label : str
            Tells several sites of one module apart.
        rows : slice, optional
            Rows of the parameters that this site used.
        """
        live = {name: value for name, value in parameters.items() if value is not None and value.requires_grad}
        if not live or self._tape.closed:
            return
        kept = tuple(value.detach() for value in saved)
        self._tape.sites.append(
            Site(
                (self.path, label),
                tuple(taps),
                kept,
                tuple(value._version for value in kept),
                gradient,
                live,
                axis,
                rows,
            )
        )
