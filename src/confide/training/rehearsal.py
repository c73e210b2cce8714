"""A rehearsal on random inputs: what mixes entries is refused, by name, before any data is touched.

Clipping bounds what one person adds only if a person's entries change nothing but their own losses and gradients. So
model and loss run on a few random entries, then again with one entry changed: outputs, losses, gradients and buffers of
all others must stay as they were. The same entries show where each layer keeps the entries and whether the engine's
per-entry gradients equal those of autograd; a parameter for which a layer rule does not hold (it is used elsewhere too,
or a shared tensor without entries hides whose gradient it is) takes the general way instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from confide.errors import ConfideError, InputError
from confide.training.dataset import ContributorDataset, call_model, to_device
from confide.training.engine import ClippingEngine, check_losses
from confide.training.engine.adapt import adapt
from confide.training.engine.failures import fatal, out_of_memory

ENTRIES, FEWER, CHANGED = 4, 3, 1
SEED = 20261


@dataclass(frozen=True)
class Example:
    """Inputs and targets of some entries.

    Attributes
    ----------
    inputs, targets
        Collated.
    values : bool
        True when the values themselves may be used (a declared, public example); False: shapes and types only.
    """

    inputs: Any
    targets: Any
    values: bool = True


def example_of(dataset: ContributorDataset) -> Example:
    """Return the first entry of a data set, of which only shapes and types will be used."""
    return Example(*dataset.batch(np.zeros(1, dtype=np.int64)), values=False)


@dataclass(frozen=True)
class Trial:
    """What one pass over random entries gave."""

    outputs: list[Tensor]
    losses: Tensor
    modules: list[tuple[str, Tensor]]
    gradients: list[list[Tensor]]
    buffers: dict[str, Tensor]


class Rehearsal:
    """Random entries, and ways to run the model on them."""

    def __init__(
        self, engine: ClippingEngine, loss: Callable[[Any, Any], Tensor], example: Example, device: torch.device
    ) -> None:
        self.engine, self.model, self.loss, self.device = engine, engine.model, loss, device
        tables = [m.num_embeddings for m in self.model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        self._high = max(min(tables, default=2), 1)
        generator = torch.Generator().manual_seed(SEED)
        count = ENTRIES + 1
        if example.values:
            self._inputs = tree_map(lambda v: _repeat(v, count), example.inputs)
            self._targets = tree_map(lambda v: _repeat(v, count), example.targets)
        else:
            self._inputs = tree_map(lambda v: self._random(v, count, generator), example.inputs)
            self._targets = tree_map(lambda v: self._random(v, count, generator, target=True), example.targets)

    def _random(self, value: Any, count: int, generator: torch.Generator, *, target: bool = False) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(
                f"random inputs cannot be made for a {type(value).__name__}",
                where="dataset[0]",
                expected="tensors and numbers",
                remedy="declare a public example: example=(inputs, targets) with five different entries or more",
            )
        shape = (count, *value.shape[1:])
        if value.dtype == torch.bool:
            return (torch.arange(count * value[0].numel()) % 2 == 0).reshape(shape)
        if value.is_complex():
            return torch.randn(shape, generator=generator, dtype=value.dtype)
        if value.is_floating_point():
            draw = torch.rand if target else torch.randn
            return draw(shape, generator=generator).to(value.dtype)
        high = 2 if target else self._high
        return torch.randint(0, high, shape, generator=generator).to(value.dtype)

    def batch(self, count: int, *, changed: bool = False) -> tuple[Any, Any]:
        """Return `count` entries; with `changed` entry number CHANGED is another one."""
        rows = list(range(count))
        if changed:
            rows[CHANGED] = ENTRIES

        def pick(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) else value

        return to_device(tree_map(pick, self._inputs), self.device), to_device(
            tree_map(pick, self._targets), self.device
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Put buffers and random numbers back afterwards; inside, random layers repeat themselves."""
        kept = {name: value.detach().clone() for name, value in self.model.named_buffers()}
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(SEED)  # torch.manual_seed would queue a call for every absent device
            if devices:
                torch.cuda.manual_seed(SEED)
            try:
                yield
            finally:
                with torch.no_grad():
                    for name, value in self.model.named_buffers():
                        if name in kept:
                            value.copy_(kept[name])

    def losses(self, count: int, *, changed: bool = False) -> Tensor:
        """Run model and loss."""
        inputs, targets = self.batch(count, changed=changed)
        losses = self.loss(call_model(self.model, inputs), targets)
        check_losses(losses, count)
        return losses

    def trial(self, count: int = ENTRIES, *, changed: bool = False) -> Trial:
        """Run the model as it is and keep everything that could show mixing."""
        seen: list[tuple[str, Tensor]] = []
        hooks = []
        for path, module in self.model.named_modules():

            def keep(_: nn.Module, __: Any, output: Any, path: str = path, module: nn.Module = module) -> None:
                name = f"{path or 'the model itself'} ({type(module).__name__})"
                seen.extend(
                    (name, value.detach().clone()) for value in tree_leaves(output) if isinstance(value, Tensor)
                )

            hooks.append(module.register_forward_hook(keep))
        try:
            with self.frozen(), torch.enable_grad():
                inputs, targets = self.batch(count, changed=changed)
                output = call_model(self.model, inputs)
                tensors = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
                copies = [value.detach().clone() for value in tensors]
                losses = self.loss(output, targets)
                check_losses(losses, count)
                buffers = {name: value.detach().clone() for name, value in self.model.named_buffers()}
                return Trial(copies, losses.detach(), seen, self.each_gradient(losses), buffers)
        finally:
            for hook in hooks:
                hook.remove()

    def each_gradient(self, losses: Tensor) -> list[list[Tensor]]:
        """Return the gradient of each loss by plain autograd: [entry][parameter]."""
        if not losses.requires_grad:
            raise InputError(
                "the losses do not depend on any trainable parameter",
                where="loss",
                expected="losses computed from the model's outputs with gradients",
                remedy="remove torch.no_grad() and .detach(); activation checkpointing needs use_reentrant=False",
            )
        out = []
        for value in losses:
            found = torch.autograd.grad(value, self.engine.parameters, retain_graph=True, allow_unused=True)
            pairs = zip(found, self.engine.parameters, strict=True)
            out.append([torch.zeros_like(p) if g is None else g.detach() for g, p in pairs])
        return out


def rehearse(
    engine: ClippingEngine, loss: Callable[[Any, Any], Tensor], example: Example, device: torch.device
) -> None:
    """Check model and loss on random inputs and settle how each parameter's unit gradients are formed.

    Raises
    ------
    InputError
        The model, the loss, a gradient or a buffer mixes entries; a loss that is not one value for each entry; values
        that are not finite on random inputs.
    """
    with _careful(device):
        _rehearse(engine, Rehearsal(engine, loss, example, device))


def _rehearse(engine: ClippingEngine, rehearsal: Rehearsal) -> None:
    before = {name: value.detach().clone() for name, value in engine.model.named_buffers()}
    try:
        first = rehearsal.trial()
    except ConfideError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if out_of_memory(error) or fatal(error):
            raise
        raise InputError(
            f"the model or the loss fails on random inputs: {error}",
            where="rehearsal",
            expected="a model and a loss that take batches like those of the data set",
            remedy="correct the shapes, or declare a public example: example=(inputs, targets)",
        ) from error
    if not all(bool(torch.isfinite(value).all()) for value in (first.losses, *(g for e in first.gradients for g in e))):
        raise InputError(
            "the model or the loss is not finite on random inputs",
            where="rehearsal",
            expected="finite losses and gradients",
            remedy="declare a public example: example=(inputs, targets) with five different entries or more",
        )
    _refuse_memory(before, first.buffers)
    other = rehearsal.trial(changed=True)
    fewer = rehearsal.trial(FEWER)
    _refuse_mixing(engine, first, other, fewer)
    adapt(engine, rehearsal, first.gradients)


@contextmanager
def _careful(device: torch.device) -> Iterator[None]:
    """On a GPU: no shortened products and no sums in changing order while the gradients of two passes are compared."""
    if device.type != "cuda":
        yield
        return
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def entry_axis(shape: torch.Size, fewer: torch.Size) -> int | None:
    """Return the axis that runs over entries, from the shapes at two batch sizes."""
    if len(shape) != len(fewer):
        return None
    axes = [i for i, (a, b) in enumerate(zip(shape, fewer, strict=True)) if a * FEWER == b * ENTRIES and a != b]
    return axes[0] if axes else None


def _others_differ(first: Tensor, other: Tensor, axis: int) -> bool:
    rows = torch.tensor([i for i in range(ENTRIES) if i != CHANGED], device=first.device)
    a, b = (value.movedim(axis, 0) for value in (first, other))
    if len(a) != ENTRIES or a.shape != b.shape:
        return False
    return not _close(a.index_select(0, rows), b.index_select(0, rows))


def _close(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    if not a.is_floating_point():
        return False
    scale = float(torch.nan_to_num(a.double()).abs().max())
    # A GPU adds a convolution's gradient in another order when the batch differs. Layers that do mix entries move the
    # gradients of the other four by a part of themselves, not by a ten-thousandth of the largest.
    slack = 100.0 if a.is_cuda else 1.0
    return bool(torch.allclose(a.double(), b.double(), rtol=slack * 1e-5, atol=slack * 1e-6 * scale, equal_nan=True))


def _refuse_memory(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Refuse a buffer that any pass changes: even a counter of entries or of passes tells exactly who was drawn."""
    for name, value in after.items():
        if name not in before or before[name].shape != value.shape or not torch.equal(before[name], value):
            raise InputError(
                "the model remembers data: a buffer changes when inputs pass through",
                where=name,
                expected="buffers that stay as they are, as they leave with the model without noise",
                remedy="remove running statistics and counters (track_running_stats=False, no spectral norm)",
            )


def _refuse_mixing(engine: ClippingEngine, first: Trial, other: Trial, fewer: Trial) -> None:
    where = "the model itself"
    for (name, a), (_, b), (_, small) in zip(first.modules, other.modules, fewer.modules, strict=False):
        axis = entry_axis(a.shape, small.shape)
        if axis is not None and _others_differ(a, b, axis):
            where = name
            break
    remedy = "keep every operation within one entry (GroupNorm or LayerNorm instead of statistics over the batch)"
    for a, b, small in zip(first.outputs, other.outputs, fewer.outputs, strict=False):
        axis = entry_axis(a.shape, small.shape)
        if axis is not None and _others_differ(a, b, axis):
            raise InputError(
                "the model mixes entries: changing one entry changed the output of another one",
                where=where,
                expected="outputs that depend on their own entry alone",
                remedy=remedy,
            )
    if _others_differ(first.losses, other.losses, 0):
        raise InputError(
            "the loss mixes entries: changing one entry changed the loss of another one",
            where="loss",
            expected="each value computed from its own output and target",
            remedy='use reduction="none" and no statistics over the batch (no pairs, no ranking, no batch weights)',
        )
    for i in range(ENTRIES):
        if i == CHANGED:
            continue
        for name, a, b in zip(engine.names, first.gradients[i], other.gradients[i], strict=True):
            if not _close(a, b):
                raise InputError(
                    "a gradient mixes entries: changing one entry changed the gradient of another one's loss",
                    where=name,
                    expected="gradients that depend on their own entry alone",
                    remedy=remedy,
                )


def _repeat(value: Any, count: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    if len(value) < 2:
        raise InputError(
            "the declared example has fewer than two entries", where="example", expected="two different entries or more"
        )
    return value[torch.arange(count) % len(value)]
