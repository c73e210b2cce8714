"""Settle, on random entries, where each layer keeps the entries and which parameters need the general way."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from confide.training.engine.core import ClippingEngine
from confide.training.engine.failures import fatal, out_of_memory
from confide.training.engine.functional import Batching
from confide.training.engine.memory import kept_bytes
from confide.training.engine.registry import rule_for
from confide.training.engine.tape import Layout, Site
from confide.training.engine.types import UnseenUse
from confide.training.engine.units import Segments

SIZES = (4, 3)


class Trials(Protocol):
    """Runs of model and loss on random entries."""

    def losses(self, count: int) -> Tensor:
        """Return the losses of `count` entries."""
        ...

    def frozen(self) -> Any:
        """Repeat random numbers inside, put buffers back afterwards."""
        ...

    def each_gradient(self, losses: Tensor) -> list[list[Tensor]]:
        """Return the gradient of each loss by plain autograd."""
        ...


def adapt(engine: ClippingEngine, trials: Trials, truth: list[list[Tensor]]) -> None:
    """Make the engine's per-entry gradients equal those of autograd on random entries.

    Parameters
    ----------
    engine : ClippingEngine
    trials : Trials
    truth : list of lists of tensors
        Gradient of each of the `SIZES[0]` losses for each parameter, by autograd.
    """
    engine.settle(demote=_locate(engine, trials))
    wrong = _wrong(engine, trials, truth)
    if wrong and _turn_flattened(engine, wrong):
        wrong = _wrong(engine, trials, truth)
    if wrong:
        # Layers that draw random numbers in another order than PyTorch's own agree once nothing is random.
        wrong &= _wrong_when_still(engine, trials)
    engine.settle(demote=wrong)
    for path, batching in _candidates(engine, trials).items():
        before = engine.snapshot()
        engine.settle(functional={path: batching})
        if _wrong(engine, trials, truth):
            engine.restore(before)
    _sites(engine, trials, SIZES[1])  # how the model is run, for whoever asks the engine


def _sites(engine: ClippingEngine, trials: Trials, count: int) -> list[Site]:
    with trials.frozen(), engine.capture():
        trials.losses(count)
    return engine.recorded()


def _locate(engine: ClippingEngine, trials: Trials) -> set[int]:
    """Find the axis over entries of every site; return the parameters of sites that have none."""
    more, fewer = (_sites(engine, trials, count) for count in SIZES)
    engine.entry_bytes = kept_bytes(more, SIZES[0])
    lost: set[int] = set()
    found: dict[tuple[str, str], Layout] = {}
    if len(more) != len(fewer):
        return {engine.position(value) for site in more for value in site.parameters.values()}
    for a, b in zip(more, fewer, strict=True):
        axes = {_axis(x, y, a.axis) for x, y in zip(_shapes(a), _shapes(b), strict=True)}
        layout = Layout(next(iter(axes)) or 0)
        if len(axes) != 1 or None in axes or found.get(a.key, layout) != layout:
            lost |= {engine.position(value) for value in a.parameters.values()}
            continue
        found[a.key] = layout
    engine.layouts.update(found)
    return lost


def _shapes(site: Site) -> list[torch.Size]:
    return [tap.shape for tap in site.taps] + [value.shape for value in site.saved]


def _axis(more: torch.Size, fewer: torch.Size, fixed: int | None) -> int | None:
    if len(more) != len(fewer):
        return None
    axes = [i for i, (a, b) in enumerate(zip(more, fewer, strict=True)) if a * SIZES[1] == b * SIZES[0] and a != b]
    if fixed is not None:
        return fixed if fixed in axes else None
    return axes[0] if len(axes) == 1 else None


def _entry_gradients(engine: ClippingEngine, trials: Trials) -> list[Tensor]:
    with trials.frozen():
        with engine.capture():
            losses = trials.losses(SIZES[0])
        units = torch.arange(SIZES[0], device=losses.device)
        return [value.dense() for value in engine.unit_gradients(losses, Segments(units, SIZES[0]))]


def _wrong(engine: ClippingEngine, trials: Trials, truth: list[list[Tensor]]) -> set[int]:
    """Return the parameters whose per-entry gradients differ from autograd's."""
    while True:
        try:
            found = _entry_gradients(engine, trials)
        except UnseenUse as error:
            engine.settle(demote={error.position})
            continue
        except (RuntimeError, ValueError, IndexError, NotImplementedError, TypeError) as error:
            if out_of_memory(error) or fatal(error):  # says nothing about the rules of layers
                raise
            return set(range(len(engine.parameters)))
        expected = [torch.stack([entry[i] for entry in truth]) for i in range(len(found))]
        largest = max(float(value.double().norm()) for value in expected)
        out = set()
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            coarse = 50 * float(torch.finfo(b.dtype).eps)
            allowed = max(1e-3, coarse) * float(b.double().norm()) + max(1e-6, coarse) * largest
            if not float((a.double() - b.double()).norm()) <= allowed:
                out.add(i)
        return out


def _wrong_when_still(engine: ClippingEngine, trials: Trials) -> set[int]:
    modes = [(module, module.training) for module in engine.model.modules()]
    engine.model.eval()
    try:
        with trials.frozen():
            truth = trials.each_gradient(trials.losses(SIZES[0]))
        return _wrong(engine, trials, truth)
    finally:
        for module, mode in modes:
            module.training = mode


def _turn_flattened(engine: ClippingEngine, wrong: set[int]) -> bool:
    """Read flattened axes of the sites in doubt the other way round (records first, entries last)."""
    turned = False
    for site in engine.recorded():
        layout = engine.layouts.get(site.key)
        flat = layout is not None and any(shape[layout.axis] > SIZES[0] for shape in _shapes(site))
        if layout is not None and flat and {engine.position(v) for v in site.parameters.values()} & wrong:
            engine.layouts[site.key] = Layout(layout.axis, minor=True)
            turned = True
    return turned


def _candidates(engine: ClippingEngine, trials: Trials) -> dict[str, Batching]:
    """Return the modules without a rule whose own parameters `torch.func` could take, with their batched arguments."""
    slow = {id(engine.parameters[i]) for i in engine.whole_graph_parameters()}
    modules = {
        path: module
        for path, module in engine.model.named_modules()
        if rule_for(module) is None
        and any(id(v) in slow for v in module._parameters.values())
        and "forward" not in vars(module)
    }
    if not modules:
        return {}
    more, fewer = (_arguments(modules, trials, count) for count in SIZES)
    out = {}
    for path in modules:
        pairs = list(zip(more.get(path, []), fewer.get(path, []), strict=False))
        settings = {_batching(a, b) for a, b in pairs}
        if len(more.get(path, [])) == len(fewer.get(path, [])) and len(settings) == 1 and None not in settings:
            found = settings.pop()
            if found is not None and any(found.arguments):
                out[path] = found
    return out


def _batching(more: tuple[torch.Size, ...], fewer: tuple[torch.Size, ...]) -> Batching | None:
    if len(more) != len(fewer):
        return None
    kinds = []
    for a, b in zip(more, fewer, strict=True):
        if a == b:
            kinds.append(False)
        elif len(a) == len(b) and (a[0], b[0]) == SIZES and a[1:] == b[1:]:
            kinds.append(True)
        else:
            return None
    return Batching(tuple(kinds))


def _arguments(modules: dict[str, nn.Module], trials: Trials, count: int) -> dict[str, list[tuple[torch.Size, ...]]]:
    """Return the shapes of the tensor arguments in every call of each module."""
    seen: dict[str, list[tuple[torch.Size, ...]]] = {}
    hooks = []
    for path, module in modules.items():

        def keep(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            flat = tree_flatten((args, kwargs))[0]
            seen.setdefault(path, []).append(tuple(v.shape for v in flat if isinstance(v, Tensor)))

        hooks.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with trials.frozen():
            trials.losses(count)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
