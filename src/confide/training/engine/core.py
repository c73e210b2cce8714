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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.errors import InputError, RunError
from confide.training.engine import functional
from confide.training.engine.chunks import chunks
from confide.training.engine.registry import rule_for
from confide.training.engine.tape import Call, Layout, Rows, Site, Tape
from confide.training.engine.units import Segments, UnitGradient
from confide.training.engine.validate import validate

# Bytes of unit gradients that one physical batch may hold when `physical_batch` is not given.
MEMORY = 512 * 2**20


@dataclass(frozen=True)
class EngineOptions:
    """What changes only speed and memory, never the guarantee or the result beyond floating-point rounding.

    Attributes
    ----------
    physical_batch : int, optional
        Most entries that pass through the model at once; by default chosen from the number of parameters.
    device : str
        "cpu", "cuda", ..., or "auto": the first CUDA device if there is one, else the CPU.
    """

    physical_batch: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.physical_batch is not None and self.physical_batch < 1:
            raise InputError("physical_batch must be at least 1", expected="a whole number of entries, or None")

    def torch_device(self) -> torch.device:
        """Return the device that is meant."""
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(name)


@dataclass(frozen=True)
class ClippedSum:
    """The result of one step before noise. Private: it must not leave.

    Attributes
    ----------
    gradients : list of float64 tensors
        Sum over units of the clipped gradients, for each trainable parameter in the order of ``model.parameters()``.
    norms : float64 array, shape (units,)
        Norm of every unit before clipping (NaN where it was not finite).
    factors : float64 array, shape (units,)
        What each unit was multiplied by.
    nonfinite : int
        Units that counted as zero because something in them was not finite.
    loss : float
        Sum of the finite losses.
    entries : int
    """

    gradients: list[Tensor]
    norms: npt.NDArray[np.float64]
    factors: npt.NDArray[np.float64]
    nonfinite: int
    loss: float
    entries: int


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

    def __init__(self, model: nn.Module, options: EngineOptions | None = None) -> None:
        self.model, self.options = model, options or EngineOptions()
        validate(model)
        named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters: list[nn.Parameter] = [value for _, value in named]
        self._tape = Tape()
        self.layouts: dict[tuple[str, str], Layout] = {}
        # Parameters without a rule that holds for all their uses take the whole graph: one backward row for each unit.
        self._demoted: set[int] = set()
        self._functional: dict[str, functional.Batching] = {}
        self._patched: list[tuple[nn.Module, Any]] = []
        self._refresh()
        self._reset_sums()

    # -- what rules cover ------------------------------------------------------------------------------------------

    def settle(
        self, *, demote: Iterable[int] = (), functional: Mapping[str, functional.Batching] | None = None
    ) -> None:
        """Send parameters the general way, or take modules without a rule by `torch.func`.

        Parameters
        ----------
        demote : iterable of int
            Parameters whose rule does not hold for all their uses.
        functional : dict
            Module path to its batched arguments; own parameters of these modules leave the general way.
        """
        self._demoted |= {id(self.parameters[i]) for i in demote}
        for path, batching in (functional or {}).items():
            own = self.model.get_submodule(path)._parameters.values()
            self._demoted -= {id(value) for value in own}
            self._functional[path] = batching
        self._refresh()

    def snapshot(self) -> tuple[set[int], dict[str, functional.Batching]]:
        """Return what `settle` changes, for `restore`."""
        return set(self._demoted), dict(self._functional)

    def restore(self, state: tuple[set[int], dict[str, functional.Batching]]) -> None:
        """Undo `settle`."""
        self._demoted, self._functional = set(state[0]), dict(state[1])
        self._refresh()

    def recorded(self) -> list[Site]:
        """Return the sites of the last forward pass."""
        return list(self._tape.sites)

    def _refresh(self) -> None:
        """Decide anew which module runs by which rule (never while forward passes are recorded)."""
        self.stop_capture()
        while True:
            self._runners = list(self._choose_runners())
            owned = [_owned(module) for _, module, _ in self._runners]
            covered = {id(value) for own in owned for value in own}
            running = {id(module) for _, module, _ in self._runners}
            for _, module, _ in self._runners:
                running |= {id(child) for child in module.children()} if module_uses_children(module) else set()
            # A parameter that several modules share counts as covered only if all of them run by a rule.
            for module in self.model.modules():
                if id(module) not in running:
                    covered -= {id(value) for value in module._parameters.values()}
            self._slow = [i for i, value in enumerate(self.parameters) if id(value) not in covered]
            slow = {id(self.parameters[i]) for i in self._slow}
            if slow <= self._demoted:
                return
            self._demoted |= slow

    def _choose_runners(self) -> Iterator[tuple[str, nn.Module, Callable[..., Any]]]:
        """Yield (path, module, runner) of the modules whose parameters are taken out of autograd."""
        for path, module in self.model.named_modules():
            own = _owned(module)
            if not any(value.requires_grad for value in own) or any(id(value) in self._demoted for value in own):
                continue
            rule = rule_for(module)
            if rule is not None:
                yield path, module, _bind(rule, self._tape, path, module)
            elif path in self._functional:
                yield path, module, functional.bind(self._tape, path, module, self._functional[path])

    def whole_graph_parameters(self) -> list[int]:
        """Return positions of the parameters that need one backward row for each unit (the slow, general way)."""
        return list(self._slow)

    @property
    def isolates_entries(self) -> bool:
        """True when a non-finite entry cannot touch the gradients of others inside one physical batch."""
        return not self.whole_graph_parameters()

    @property
    def physical_batch(self) -> int:
        """Most entries that pass through the model at once."""
        if self.options.physical_batch is not None:
            return self.options.physical_batch
        size = sum(value.numel() * value.element_size() for value in self.parameters)
        return int(min(max(MEMORY // max(size, 1), 1), 512))

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
        for _, module, runner in self._runners:
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
        slow = self.whole_graph_parameters()
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

    def _reset_sums(self) -> None:
        self._sums: list[Tensor] | None = None
        self._open: list[Tensor] | None = None
        self._open_finite = True
        self._norms: list[npt.NDArray[np.float64]] = []
        self._factors: list[npt.NDArray[np.float64]] = []
        self._nonfinite, self._loss, self._entries = 0, 0.0, 0

    @property
    def shrink(self) -> float:
        """Relative amount by which clip weights are lowered, so that rounding cannot lift a unit above its clip."""
        return 4.0 * max(float(torch.finfo(value.dtype).eps) for value in self.parameters)

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
        if (partial or self._open is not None) and segments.count != 1:
            raise RunError("a unit that is split over physical batches came together with others")
        gradients = self.unit_gradients(losses * weight, segments)
        bad_loss = ~torch.isfinite(losses.detach())
        finite = torch.bincount(segments.units[bad_loss], minlength=segments.count) == 0
        self._loss += float(losses.detach()[~bad_loss].double().sum())
        self._entries += len(losses)
        if partial or self._open is not None:
            self._add_part(gradients, bool(finite.all()))
            if not partial:
                self._close(clip)
            return
        norms = torch.stack([value.squared_norms() for value in gradients]).sum(0).sqrt()
        factors = self._weights(norms, finite, clip)
        self._accumulate([value.clipped_sum(factors) for value in gradients], norms, factors)

    def _weights(self, norms: Tensor, finite: Tensor, clip: Tensor) -> Tensor:
        good = finite & torch.isfinite(norms)
        bound = clip * (1.0 - self.shrink)
        factors = torch.where(norms > bound, bound / norms, torch.ones_like(norms))
        return torch.where(good, factors, torch.zeros_like(norms))

    def _accumulate(self, parts: list[Tensor], norms: Tensor, factors: Tensor) -> None:
        if self._sums is None:
            self._sums = parts
        else:
            for total, part in zip(self._sums, parts, strict=True):
                total += part
        counted = norms.detach().cpu().numpy().copy()
        multiplied = factors.detach().cpu().numpy()
        counted[multiplied == 0] = np.nan
        self._norms.append(counted)
        self._factors.append(multiplied)
        self._nonfinite += int((multiplied == 0).sum())

    def _add_part(self, gradients: list[UnitGradient], finite: bool) -> None:
        one = torch.ones(1, dtype=torch.float64, device=self.parameters[0].device)
        parts = [value.clipped_sum(one) for value in gradients]
        self._open_finite = self._open_finite and finite
        if self._open is None:
            self._open = parts
        else:
            for total, part in zip(self._open, parts, strict=True):
                total += part

    def _close(self, clip: Tensor) -> None:
        """Clip the unit whose entries came in several parts; its sum is kept in float64."""
        opened, finite = self._open or [], self._open_finite
        self._open, self._open_finite = None, True
        norm = torch.stack([value.square().sum() for value in opened]).sum().sqrt().reshape(1)
        factors = self._weights(norm, torch.tensor([finite], device=norm.device), clip)
        factor = float(factors[0])
        self._accumulate([value * factor if factor else torch.zeros_like(value) for value in opened], norm, factors)

    def take(self) -> ClippedSum:
        """Return the clipped sum since the last `take` and start anew; zeros if nothing was added."""
        if self._open is not None:
            raise RunError("the last part of a split unit is missing")
        sums = self._sums or [torch.zeros_like(value, dtype=torch.float64) for value in self.parameters]
        empty = np.empty(0)
        result = ClippedSum(
            [value.detach() for value in sums],
            np.concatenate([empty, *self._norms]),
            np.concatenate([empty, *self._factors]),
            self._nonfinite,
            self._loss,
            self._entries,
        )
        self._reset_sums()
        return result

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


class UnseenUse(InputError):
    """A parameter was used outside of the module that owns it, past the rule of that module."""

    def __init__(self, position: int, names: Sequence[str]) -> None:
        self.position = position
        super().__init__(
            "a parameter is used outside of the module that owns it, which was not seen on random inputs",
            where=names[position],
            expected="the same uses of every parameter in every step",
            remedy="declare an example that takes the same path through the model",
        )


def module_uses_children(module: nn.Module) -> bool:
    """Return True for modules that compute with their children's parameters without calling the children."""
    return isinstance(module, nn.MultiheadAttention)


def _owned(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a runner of this module takes out of autograd."""
    if module_uses_children(module):
        return list(module.parameters())
    return [value for value in module._parameters.values() if value is not None]


def _bind(rule: Callable[..., Any], tape: Tape, path: str, module: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: rule(Call(tape, path), module, *args, **kwargs)


def check_losses(losses: Any, entries: int) -> None:
    """Refuse anything but one loss for each entry.

    Raises
    ------
    InputError
        A scalar, or the wrong number of values.
    """
    if not isinstance(losses, Tensor):
        raise InputError(
            f"the loss is a {type(losses).__name__}", expected="a tensor with one loss for each entry", where="loss"
        )
    if losses.dim() != 1 or len(losses) != entries:
        kind = "one number for the whole batch" if losses.dim() == 0 else f"a tensor of shape {tuple(losses.shape)}"
        raise InputError(
            f"the loss gives {kind}",
            where="loss",
            expected=f"one value for each entry, shape ({entries},)",
            remedy='use reduction="none" (and average over all axes but the first, e.g. .flatten(1).mean(1))',
        )
