"""The clipping engine: units and a weight per entry in, one backward pass, norms of units, clipped sum out.

>>> model = torch.nn.Linear(2, 1, bias=False)
>>> engine = ClippingEngine(model)
>>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.3, 0.0]])
>>> forward = lambda rows: model(x[rows]).squeeze(1)
>>> result = engine.clipped_sum(forward, units=[0, 0, 1], weights=[1, 1, 1], clips=[1, 1])
>>> [round(norm, 2) for norm in result.norms.tolist()]         # 3-4-5: the two entries are summed before the norm
[5.0, 0.3]
>>> result.gradients[0].round(decimals=3).tolist()
[[0.9, 0.8]]

For a unit u with entries b, weights w_b and per-entry losses l_b the engine forms G_u = grad sum_b w_b l_b, then
sum_u G_u min(1, C_u (1 - shrink) / |G_u|). Norm and sum use the same stored values of G_u; the norm and the sum over
units are taken in float64, so that what one unit adds is at most C_u although G_u itself is rounded. ``shrink`` is
four rounding units of the parameters' precision (4.8e-7 in float32): twice what rounding the factor and the product to
that precision can add.

A unit whose gradient or loss is not finite adds exactly zero.

References
----------
Lee, Kifer: Scaling up differentially private deep learning with fast per-example gradient clipping. PoPETs 2021.
Bu, Wang, Zha, Karypis: Differentially private optimization on large model at small cost. ICML 2023 (book-keeping).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.errors import InputError, RunError
from confide.training.engine import functional
from confide.training.engine.chunks import chunks
from confide.training.engine.memory import most_entries
from confide.training.engine.routes import Routes
from confide.training.engine.sums import ClipAndSum
from confide.training.engine.tape import Layout, Rows, Site, Tape
from confide.training.engine.types import ClippedSum, EngineOptions, UnseenUse, check_losses
from confide.training.engine.units import Segments, UnitGradient
from confide.training.engine.validate import validate


class ClippingEngine:
    """Per-unit clipping for one model.

    Parameters
    ----------
    model : torch.nn.Module
        Its trainable parameters at this moment are what is learned.
    options : EngineOptions

    Raises
    ------
    InputError
        A module that cannot be private (named with its path and the way out), no trainable parameter, complex or
        uninitialised parameters.
    """

    def __new__(cls, model: nn.Module, options: EngineOptions | None = None) -> ClippingEngine:
        """Return the engine that the options ask for: this class, or the fast one, which is a subclass of it."""
        if cls is ClippingEngine and (options or EngineOptions()).fast:
            from confide.training.engine.fast import FastClippingEngine

            return super().__new__(FastClippingEngine)
        return super().__new__(cls)

    def __init__(self, model: nn.Module, options: EngineOptions | None = None) -> None:
        self.model, self.options = model, options or EngineOptions()
        validate(model)
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters: list[nn.Parameter] = [value for _, value in named]
        self._tape = Tape()
        self.layouts: dict[tuple[str, str], Layout] = {}
        self._patched: list[tuple[nn.Module, Any]] = []
        self._routes = Routes(model, self.parameters, self._tape)
        self._sums = ClipAndSum(self.parameters)
        # Bytes that the layers keep of one entry for the backward pass; the rehearsal measures them.
        self.entry_bytes = 0

    @property
    def gamma(self) -> float | None:
        """Constant of automatic clipping, None for the ordinary clip; see `confide.training.engine.sums`."""
        return self._sums.gamma

    @gamma.setter
    def gamma(self, value: float | None) -> None:
        self._sums.gamma = value

    # -- what the rehearsal settles --------------------------------------------------------------------------------

    def settle(
        self, *, demote: Iterable[int] = (), functional: Mapping[str, functional.Batching] | None = None
    ) -> None:
        """Send parameters the general way, or take modules by `torch.func`; see `Routes.settle`."""
        self.stop_capture()
        self._routes.settle(demote=demote, functional=functional)

    def snapshot(self) -> Any:
        """Return what `settle` changes, for `restore`."""
        return self._routes.snapshot()

    def restore(self, state: Any) -> None:
        """Undo `settle`."""
        self.stop_capture()
        self._routes.restore(state)

    def recorded(self) -> list[Site]:
        """Return the sites of the last forward pass."""
        return list(self._tape.sites)

    def whole_graph_parameters(self) -> list[int]:
        """Return positions of the parameters that need one backward row for each unit (the slow, general way)."""
        return list(self._routes.slow)

    @property
    def isolates_entries(self) -> bool:
        """True when a non-finite entry cannot touch the gradients of others inside one physical batch."""
        return not self.whole_graph_parameters()

    @property
    def physical_batch(self) -> int:
        """Most entries that pass through the model at once: what was asked for, or what memory is estimated to hold."""
        if self.options.physical_batch is not None:
            return self.options.physical_batch
        return most_entries(self.parameters, self.entry_bytes)

    # -- forward ---------------------------------------------------------------------------------------------------

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record forward passes of the model inside this context (with gradients enabled)."""
        self.start_capture()
        try:
            yield
        finally:
            self.stop_capture()

    def start_capture(self) -> None:
        """Begin to record; see `capture`."""
        self.stop_capture()
        self._tape.reset()
        self._patch()

    @contextmanager
    def computing_again(self) -> Iterator[None]:
        """Let modules that activation checkpointing runs again in the backward pass run as they did, unrecorded."""
        self._tape.closed = True
        if self._patched:
            yield
            return
        self._patch()
        try:
            yield
        finally:
            self.stop_capture()

    def _patch(self) -> None:
        for module, runner in self._routes.runners:
            original = module.forward
            self._patched.append((module, vars(module).get("forward")))

            def forward(*args: Any, _original: Any = original, _runner: Any = runner, **kwargs: Any) -> Any:
                return _runner(*args, **kwargs) if torch.is_grad_enabled() else _original(*args, **kwargs)

            module.__dict__["forward"] = forward

    def stop_capture(self) -> None:
        """Give the modules their own `forward` back."""
        for module, own in self._patched:
            module.__dict__.pop("forward", None)
            if own is not None:
                module.__dict__["forward"] = own
        self._patched = []

    # -- backward --------------------------------------------------------------------------------------------------

    def unit_gradients(self, losses: Tensor, segments: Segments) -> list[UnitGradient]:
        """Return the gradient of every unit for every trainable parameter, from one backward pass.

        Parameters
        ----------
        losses : tensor, shape (entries,)
            Weighted loss of each entry, computed inside `capture`.
        segments : Segments
        """
        sites = list(self._tape.sites)
        self._tape.closed = True
        slow = self._routes.slow
        out = [UnitGradient(value, segments.count) for value in self.parameters]
        if not losses.requires_grad:
            raise InputError(
                "the losses do not depend on any trainable parameter",
                expected="losses computed from the model's outputs, with gradients enabled",
                remedy="remove torch.no_grad() or .detach() from the loop",
            )
        edges = [tap.edge for site in sites for tap in site.taps]
        fast = [value for i, value in enumerate(self.parameters) if i not in set(slow)]
        sources: list[Any] = [*edges, *fast]
        grads: list[Tensor | None] = []
        if sources:
            with self.computing_again():
                grads = list(torch.autograd.grad(losses.sum(), sources, allow_unused=True, retain_graph=bool(slow)))
        for value, unseen in zip(fast, grads[len(edges) :], strict=True):
            if unseen is not None:
                raise UnseenUse(self.position(value), self.names)
        taken = 0
        for site in sites:
            part = grads[taken : taken + len(site.taps)]
            taken += len(site.taps)
            if any(g is not None for g in part):
                self._add_site(site, part, segments, out, len(losses))
        if slow:
            chosen = [self.parameters[i] for i in slow]
            for i, values in zip(slow, functional.whole_graph(losses, chosen, segments), strict=True):
                out[i].add(torch.arange(segments.count, device=values.device), values)
        return out

    def position(self, value: Tensor) -> int:
        """Return the number of a trainable parameter."""
        return next(i for i, other in enumerate(self.parameters) if other is value)

    def _add_site(
        self,
        site: Site,
        grads: Sequence[Tensor | None],
        segments: Segments,
        out: list[UnitGradient],
        entries: int,
    ) -> None:
        site.check_unchanged()
        layout = self.layouts.get(site.key, Layout(site.axis or 0))
        full = [
            torch.zeros(tap.shape, dtype=tap.dtype, device=segments.units.device) if g is None else g.detach()
            for g, tap in zip(grads, site.taps, strict=True)
        ]
        g = [layout.canonical(value, entries, site.where) for value in full]
        a = [layout.canonical(value, entries, site.where) for value in site.saved]
        wanted = frozenset(site.parameters)
        for group in segments.groups:
            found = site.gradient(tuple(map(group.take, a)), tuple(map(group.take, g)), wanted)
            for name, value in found.items():
                target = out[self.position(site.parameters[name])]
                if isinstance(value, Rows):
                    units = group.units[:, None].expand_as(value.numbers).reshape(-1)
                    target.add_rows(units, value.numbers.reshape(-1), value.values.flatten(0, 1))
                else:
                    target.add(group.units, value, site.rows)

    # -- clip and sum ----------------------------------------------------------------------------------------------

    def add(
        self,
        losses: Tensor,
        units: npt.ArrayLike,
        weights: npt.ArrayLike,
        clips: npt.ArrayLike,
        *,
        partial: bool = False,
    ) -> None:
        """Take the per-entry losses of one physical batch, computed inside `capture`, into the running clipped sum.

        Parameters
        ----------
        losses : tensor, shape (n,)
        units : int64, shape (n,)
            Unit 0..U-1 of each entry; entries of one unit side by side.
        weights : float64, shape (n,)
        clips : float64, shape (U,)
            Clipping norm of each unit.
        partial : bool
            True when further entries of this one unit follow in the next call: its gradient is then only added up and
            clipped with the last part.

        Raises
        ------
        InputError
            Losses of the wrong shape; a parameter used outside of its module in a way that was not seen before.
        """
        check_losses(losses, len(np.asarray(units)))
        device = losses.device
        clip = torch.as_tensor(np.asarray(clips, dtype=np.float64), device=device)
        segments = Segments(torch.as_tensor(np.asarray(units, dtype=np.int64), device=device), len(clip))
        weight = torch.as_tensor(np.asarray(weights, dtype=np.float64), device=device).to(losses.dtype)
        if (partial or self._sums.waiting) and segments.count != 1:
            raise RunError("a unit that is split over physical batches came together with others")
        gradients = self.unit_gradients(losses * weight, segments)
        bad = ~torch.isfinite(losses.detach())
        finite = torch.bincount(segments.units[bad], minlength=segments.count) == 0
        self._sums.count(losses)
        if not partial and not self._sums.waiting:
            self._sums.add(gradients, finite, clip)
            return
        self._sums.add_part(gradients, bool(finite.all()))
        if not partial:
            self._sums.close(clip)

    def take(self, *, native: bool = False) -> ClippedSum:
        """Return the clipped sum since the last `take` and start anew; zeros if nothing was added."""
        return self._sums.take(native=native)

    @property
    def waiting(self) -> bool:
        """True while the last part of a unit that was split over physical batches is missing."""
        return self._sums.waiting

    @property
    def given_up(self) -> float:
        """Share of the clip that is given up for rounding where sums are formed layer by layer."""
        return self._sums.shrink

    def limit(self, entries: int) -> None:
        """Let at most so many entries pass through the model at once from now on."""
        self.options = replace(self.options, physical_batch=entries)

    def add_units(self, gradients: list[UnitGradient], finite: Tensor, clips: Tensor) -> None:
        """Clip and add gradients of whole units that were formed outside; see `ClipAndSum.add`."""
        self._sums.add(gradients, finite, clips)

    def count(self, losses: Tensor) -> None:
        """Take note of losses whose gradients come through `add_units`."""
        self._sums.count(losses)

    def discard(self) -> None:
        """Forget what was added since the last `take`: a step that was left in the middle is made anew, not twice."""
        self._sums.discard()

    def clipped_sum(
        self,
        forward: Callable[[npt.NDArray[np.int64]], Tensor],
        units: npt.ArrayLike,
        weights: npt.ArrayLike,
        clips: npt.ArrayLike,
    ) -> ClippedSum:
        """Return the clipped sum of one step, in physical batches that never split a unit unseen.

        Parameters
        ----------
        forward : function
            Positions (rows of `units`) to the losses of these entries; it calls the model.
        units, weights, clips
            Of all entries of the step (see `add`); entries of one unit side by side.
        """
        unit, weight = np.asarray(units, dtype=np.int64), np.asarray(weights, dtype=np.float64)
        clip = np.asarray(clips, dtype=np.float64)
        for chunk in chunks(unit, self.physical_batch):
            self._add_isolated(forward, chunk.rows, chunk.units, weight[chunk.rows], clip[chunk.members], chunk.partial)
        return self.take()

    def _add_isolated(
        self,
        forward: Callable[[npt.NDArray[np.int64]], Tensor],
        rows: npt.NDArray[np.int64],
        units: npt.NDArray[np.int64],
        weights: npt.NDArray[np.float64],
        clips: npt.NDArray[np.float64],
        partial: bool,
    ) -> None:
        """Add one physical batch; where entries could touch each other through non-finite values, unit by unit."""
        if len(clips) > 1 and not self.isolates_entries:
            with self.capture():
                losses = forward(rows)
            if not bool(torch.isfinite(losses).all()) or not self._whole_graph_finite(losses, units, len(clips)):
                for i in range(len(clips)):
                    mine = units == i
                    self._add_isolated(
                        forward, rows[mine], np.zeros(int(mine.sum()), np.int64), weights[mine], clips[i : i + 1], False
                    )
                return
        else:
            with self.capture():
                losses = forward(rows)
        self.add(losses, units, weights, clips, partial=partial)

    def _whole_graph_finite(self, losses: Tensor, units: npt.NDArray[np.int64], count: int) -> bool:
        """Whether zero upstream gradients stay zero: else one entry's NaN would reach every unit."""
        chosen = [self.parameters[i] for i in self.whole_graph_parameters()]
        found = torch.autograd.grad(losses.sum(), chosen, retain_graph=True, allow_unused=True)
        return all(value is None or bool(torch.isfinite(value).all()) for value in found)
