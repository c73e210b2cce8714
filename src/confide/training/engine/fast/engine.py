"""The fast engine: the interface of `ClippingEngine`, one backward pass, gradients consumed as the pass goes.

>>> model = torch.nn.Linear(2, 1, bias=False)
>>> engine = FastClippingEngine(model, EngineOptions(engine="fast"))
>>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.3, 0.0]])
>>> forward = lambda rows: model(x[rows]).squeeze(1)
>>> result = engine.clipped_sum(forward, units=[0, 0, 1], weights=[1, 1, 1], clips=[1, 1])
>>> result.gradients[0].round(decimals=3).tolist()
[[0.9, 0.8]]

Forward passes, rules and the rehearsal are those of the first engine. When the backward pass reaches a layer, its input
and output gradient become a *piece* (pieces.py): the kept gradients of all units, or the two factors for a ghost norm.
After the pass the norms of all pieces are added, the weights follow, and each piece gives its weighted sum.

A use of parameters with several output gradients (the time steps of a recurrent layer), or one that runs its module
again (`torch.func`), becomes a piece after the pass. A model with a parameter that needs the general way, or with a
layer without a handler here, is run by the first engine whole; `why_exact` says why. A unit that is split over physical
batches takes the first engine's way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confide.errors import InputError
from confide.training.engine.core import ClippingEngine
from confide.training.engine.fast import kernels
from confide.training.engine.fast.arithmetic import Arithmetic, arithmetic
from confide.training.engine.fast.blocks import Blocks
from confide.training.engine.fast.late import handler_for, is_late
from confide.training.engine.fast.layers import Use
from confide.training.engine.fast.pieces import SMALL, ByEntry, Group, Kept, Member, Piece
from confide.training.engine.sums import clip_factors
from confide.training.engine.tape import Layout, Site
from confide.training.engine.types import EngineOptions, UnseenUse, check_losses

__all__ = ["EngineOptions", "FastClippingEngine"]

# Squares of values below 1e-19 vanish in float32; what they could add to a norm is added to it.
UNDERFLOW = 1.1e-19

Key = tuple[int, int | None]


class FastClippingEngine(ClippingEngine):
    """Per-unit clipping for one model; see `ClippingEngine` for parameters and errors."""

    # Found once, on any pass: what the model is run by must not change with who is in a batch.
    _uncovered: str | None = None
    _loops: str | None = None

    def settle(self, *, demote: Iterable[int] = (), functional: Mapping[str, Any] | None = None) -> None:
        """See `ClippingEngine.settle`."""
        self._forget()
        super().settle(demote=demote, functional=functional)

    def restore(self, state: Any) -> None:
        """See `ClippingEngine.restore`."""
        self._forget()
        super().restore(state)

    def _forget(self) -> None:
        self._uncovered = self._loops = None
        self._tape.sites = []

    @property
    def why_exact(self) -> str | None:
        """Why this model is run by the first engine, or None."""
        if self._routes.slow:
            return f"{self.names[self._routes.slow[0]]} is used in a way that only the general way covers"
        return self._why(self._tape.sites)

    @property
    def why_in_layers(self) -> str | None:
        """Why the steps of this model are not compiled whole, or None."""
        return self.why_exact or self._loops

    @property
    def arithmetic(self) -> Arithmetic:
        """Precision of float32 (or float64, or half) computation as it would run now."""
        widest = self.parameters[0].dtype
        for value in self.parameters:
            widest = torch.promote_types(widest, value.dtype)
        return arithmetic(widest, self.parameters[0].device)

    @property
    def precision(self) -> str:
        """Precision of compiled steps: "fp32", "tf32" or "bf16"."""
        return self.options.arithmetic

    @property
    def stated(self) -> str:
        """Precision of compiled steps in words."""
        names = {"bf16": "bfloat16 products", "tf32": "TF32 products", "fp32": "float32"}
        return f"{names[self.precision]}, norms and sums accumulated in float32"

    @property
    def given_up(self) -> float:
        """See `ClippingEngine.given_up`."""
        return super().given_up if self.why_exact is not None else self.arithmetic.shrink

    def add_sums(self, gradients: list[Tensor], norms: Tensor, factors: Tensor) -> None:
        """Take what a compiled step gave for one physical batch into the running clipped sum."""
        self._sums.add_sums(gradients, norms, factors)

    def keep(self) -> None:
        """Take over tensors of the running sum that the next compiled step would overwrite."""
        self._sums.keep()

    def _why(self, sites: Sequence[Site]) -> str | None:
        for site in sites:
            if handler_for(site) is None:
                self._uncovered = f"{site.where} has no rule in the fast engine"
            if len(site.taps) > 1:
                self._loops = f"{site.where} is a loop over time, every step of which would be compiled"
        return self._uncovered

    # -- one physical batch ----------------------------------------------------------------------------------------

    def add(
        self,
        losses: Tensor,
        units: npt.ArrayLike,
        weights: npt.ArrayLike,
        clips: npt.ArrayLike,
        *,
        partial: bool = False,
    ) -> None:
        """Take the per-entry losses of one physical batch into the running clipped sum; see `ClippingEngine.add`."""
        if partial or self._sums.waiting or self.why_exact is not None:
            super().add(losses, units, weights, clips, partial=partial)
            return
        unit = np.asarray(units, dtype=np.int64)
        check_losses(losses, len(unit))
        device = losses.device
        clip = torch.as_tensor(np.asarray(clips, dtype=np.float64), device=device)
        weight = torch.as_tensor(np.asarray(weights, dtype=np.float64), device=device).to(losses.dtype)
        blocks = Blocks.of(unit, len(clip), device)
        kernels.check(device)
        self._sums.count(losses)
        sums, norms, factors = self.sums(losses, weight, blocks, clip)
        self._sums._accumulate(sums, norms, factors)  # float64 from the second physical batch of a step on

    def sums(self, losses: Tensor, weight: Tensor, blocks: Blocks, clip: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the clipped sum of every parameter, the norms and the factors of the units (float64).

        Nothing here looks at values on the host, so a tracer can follow it where `blocks` and sizes are fixed.

        Parameters
        ----------
        losses : tensor, shape (entries,)
            From a forward pass inside `capture`.
        weight : tensor, shape (entries,)
        blocks : Blocks
        clip : float64 tensor, shape (units,)
        """
        pieces, norms, factors = self.clipped_pieces(losses, weight, blocks, clip)
        wide = self.arithmetic.accumulate
        out: list[Tensor | None] = [None] * len(self.parameters)
        each = factors.to(wide)  # one tensor for all: groups add up once for each
        for (position, row), piece in pieces.items():
            found = piece.weighted(each)
            if row is not None:
                start = out[position]
                start = found.new_zeros(self.parameters[position].shape) if start is None else start
                found = torch.cat([start[:row], start[row : row + len(found)] + found, start[row + len(found) :]])
            out[position] = found
        pairs = zip(self.parameters, out, strict=True)
        return [torch.zeros_like(p, dtype=wide) if value is None else value for p, value in pairs], norms, factors

    def clipped_pieces(
        self, losses: Tensor, weight: Tensor, blocks: Blocks, clip: Tensor
    ) -> tuple[dict[Key, Piece | Member], Tensor, Tensor]:
        """Return what `sums` adds up, not added up yet: pieces by parameter and first row, norms and factors."""
        sites, self._tape.sites, self._tape.closed = self._tape.sites, [], True
        numbers = self.arithmetic
        known: dict[Key, Tensor] = {}
        with torch.enable_grad():
            weighted = losses * weight
        pieces = self._pieces(weighted, sites, blocks, numbers, known)
        total = torch.zeros(blocks.count, dtype=torch.float64, device=losses.device)
        small = [key for key, piece in pieces.items() if key not in known and _small(piece)]
        members: dict[Key, Member] = {}
        if len(small) > 1:
            group = Group([piece for key in small if isinstance(piece := pieces[key], Kept | ByEntry)])
            total = total + group.whole.squared()
            members = {key: Member(group, number) for number, key in enumerate(small)}
        for key, piece in pieces.items():
            if key not in members:
                total = total + (known[key] if key in known else piece.squared())
        size = sum(value.numel() for value in self.parameters)
        norms = total.sqrt() + (UNDERFLOW * size**0.5 if numbers.accumulate == torch.float32 else 0.0)
        bad = (~torch.isfinite(losses.detach())).to(torch.float64)
        good = (blocks.sums(bad) == 0) & torch.isfinite(norms)
        factors = clip_factors(norms, clip * (1.0 - numbers.shrink), self.gamma)
        factors = torch.where(good, factors, torch.zeros_like(norms))
        return {**pieces, **members}, norms, factors

    def _pieces(
        self, losses: Tensor, sites: Sequence[Site], blocks: Blocks, numbers: Arithmetic, known: dict[Key, Tensor]
    ) -> dict[Key, Piece]:
        """Run the backward pass and turn each use of parameters into pieces as the pass reaches it."""
        if not losses.requires_grad:
            raise InputError(
                "the losses do not depend on any trainable parameter",
                expected="losses computed from the model's outputs, with gradients enabled",
                remedy="remove torch.no_grad() or .detach() from the loop",
            )
        leaves = _leaves(losses)
        for i, value in enumerate(self.parameters):
            if any(value is leaf for leaf in leaves):
                raise UnseenUse(i, self.names)
        keys = [[(self.position(v), site.rows) for v in site.parameters.values()] for site in sites]
        once = _once([(i, rows) for group in keys for i, rows in group])
        pieces: dict[Key, Piece] = {}
        handles: list[Any] = []
        late: list[tuple[Site, list[Tensor | None]]] = []

        @torch.no_grad()
        def take(site: Site, grads: Sequence[Tensor]) -> None:
            site.check_unchanged()
            layout = self.layouts.get(site.key, Layout(site.axis or 0))
            full = [layout.canonical(value.detach(), len(losses), site.where) for value in grads]
            inputs = tuple(layout.canonical(value, len(losses), site.where) for value in site.saved)
            if len(full) > 1:  # the same weights in every step of time: so many further rows
                full, inputs = [torch.cat(full, 1)], (torch.cat(inputs, 1),)
            shared = any(self.position(value) not in once for value in site.parameters.values())
            handler = handler_for(site)
            assert handler is not None
            result = handler(Use(site, inputs, full[0], blocks, numbers, shared))
            self._keep_pieces(site, result, once, pieces, known)
            site.saved = ()

        for site in sites:
            found: list[Tensor | None] = [None] * len(site.taps)
            waits = is_late(site)
            if waits:
                late.append((site, found))
            for number in range(len(site.taps)):
                handles.append(_listen(site, number, found if waits else None, take))
        try:
            with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False), self.computing_again():
                torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
        for site, found in late:
            if any(value is not None for value in found):
                pairs = zip(found, site.taps, strict=True)
                full = [losses.new_zeros(tap.shape, dtype=tap.dtype) if g is None else g for g, tap in pairs]
                take(site, full)
        return pieces

    def _keep_pieces(
        self,
        site: Site,
        result: dict[str, Piece],
        once: set[int],
        pieces: dict[Key, Piece],
        known: dict[Key, Tensor],
    ) -> None:
        for name, piece in result.items():
            if name not in site.parameters:
                continue
            position = self.position(site.parameters[name])
            if position in once:  # squared at once, while the gradient may still be in the cache
                key = (position, None if site.rows is None else site.rows.start)
                pieces[key] = piece
                if not _small(piece):
                    known[key] = piece.squared()
            else:
                self._join(pieces, position, site.rows, piece)

    def _join(self, pieces: dict[Key, Piece], position: int, rows: slice | None, piece: Piece) -> None:
        """Add one more use of a parameter that is used in several places."""
        assert isinstance(piece, Kept)
        if rows is not None:
            part, shape = piece.straight(), self.parameters[position].shape
            above, below = (part.new_zeros((len(part), n, *shape[1:])) for n in (rows.start, shape[0] - rows.stop))
            piece = Kept(torch.cat([above, part, below], 1).flatten(1), shape, piece.arithmetic)
        before = pieces.get((position, None))
        pieces[(position, None)] = piece.plus(before) if isinstance(before, Kept) else piece


def _listen(site: Site, number: int, store: list[Tensor | None] | None, take: Callable[..., None]) -> Any:
    """When the gradient of a tap arrives, store it, or take it at once."""
    edge = site.taps[number].edge

    def arrive(grads: tuple[Tensor | None, ...]) -> None:
        found = grads[edge.output_nr]
        if found is None:
            return
        if store is None:
            take(site, [found])
        else:
            store[number] = found.detach()

    return edge.node.register_prehook(arrive)


def _small(piece: Piece) -> bool:
    return isinstance(piece, ByEntry) or (
        isinstance(piece, Kept) and piece.square is None and piece.values.shape[1] <= SMALL
    )


def _once(uses: Iterable[tuple[int, slice | None]]) -> set[int]:
    """Return the parameters that no two uses touch in the same rows."""
    seen: dict[int, list[slice | None]] = {}
    for position, rows in uses:
        seen.setdefault(position, []).append(rows)
    out = set()
    for position, slices in seen.items():
        starts = {None if s is None else (s.start, s.stop) for s in slices}
        if len(slices) == 1 or (None not in starts and len(starts) == len(slices)):
            out.add(position)
    return out


def _leaves(losses: Tensor) -> list[Tensor]:
    """Return every leaf that the losses depend on: all of them as targets make every node of the pass run."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    todo = [losses.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.append(variable)
        todo.extend(following for following, _ in node.next_functions)
    return found
