"""Models that do not fit one device: weights, noisy gradients and the optimiser's state in shards (FSDP2).

>>> engine = ShardedEngine(model, options)                                            # doctest: +SKIP
>>> shards = engine.shard(ranks, torch.device("cuda"))                                # doctest: +SKIP
>>> optimizer = torch.optim.AdamW(shards)                                             # doctest: +SKIP

``torch.distributed.fsdp.fully_shard`` gathers one block's weights at a time, in the forward and again in the backward
pass. Each rank runs its own units through the whole model, so it sees the whole of their activations and output
gradients, layer by layer: **the norm of a unit needs no word from other ranks**. Once the norms are known each
parameter's weighted sum is formed, added over ranks and cut in one operation (reduce-scatter), and dropped before the
next is formed; a whole gradient of the model is never in one place. Every rank then adds noise to the rows it keeps,
and to no others: each coordinate gets noise once.

Gathering is a common act: all ranks make equally many passes in a step, whatever is drawn. A rank with less to do
passes made-up entries whose clip is zero, which add exactly nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.errors import InputError
from confide.training.distributed.abreast import Abreast
from confide.training.distributed.ranks import Ranks
from confide.training.engine import ClippedSum, EngineOptions, check_losses
from confide.training.engine.fast.blocks import Blocks
from confide.training.engine.fast.engine import FastClippingEngine
from confide.training.engine.fast.late import is_late
from confide.training.engine.tape import Site

# (name of a parameter, this rank's rows of it): sets their first values
Fill = Callable[[str, Tensor], None]

# A block is gathered whole: parts of a model with fewer weights than this are left with their parent.
SMALLEST = 1 << 16


class ShardedEngine(FastClippingEngine):
    """Per-unit clipping with the model in shards; before `shard` it is the fast engine.

    Parameters
    ----------
    model : torch.nn.Module
    options : EngineOptions, optional
    """

    def __init__(self, model: nn.Module, options: EngineOptions | None = None) -> None:
        super().__init__(model, options)
        self._ranks: Ranks | None = None
        self.shards: list[nn.Parameter] = []
        self._part: list[Tensor] | None = None
        self._abreast: Abreast | None = None
        self._reduced = 0  # parameters that were added up over all ranks in this pass

    @property
    def sharded(self) -> bool:
        """True after `shard`."""
        return self._ranks is not None

    @property
    def isolates_entries(self) -> bool:
        """See `ClippingEngine`; a model that needs the general way is refused by `shard`."""
        return True

    def shard(
        self, ranks: Ranks, device: torch.device, *, smallest: int = SMALLEST, fill: Fill | None = None
    ) -> list[nn.Parameter]:
        """Cut the model into shards, in place; every rank calls this, with the same weights.

        Parameters
        ----------
        ranks : Ranks
            Two or more.
        device : torch.device
            Where the shards go.
        smallest : int
            Fewest weights of a part of the model that is gathered on its own.
        fill : function, optional
            For a model made on the meta device, whose weights are nowhere yet: called with (name, this rank's rows of
            the parameter), it gives them their first values.

        Returns
        -------
        list of parameters
            The shards, for an optimiser, in the order of ``model.parameters()``.

        Raises
        ------
        InputError
            A model that the fast engine does not cover, that ties weights across blocks, or frozen parameters.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self._refuse()
        mesh = init_device_mesh(device.type, (ranks.world,))
        for block in _blocks(self.model, smallest):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        if fill is not None:
            self.model.to_empty(device=device)
            with torch.no_grad():
                for name, value in self.model.named_parameters():
                    fill(name, _local(value))
        if any(value.device.type != device.type for value in self.model.buffers()):
            for module in self.model.modules():
                for name, held in module._buffers.items():
                    module._buffers[name] = None if held is None else held.to(device)
        self.shards = [value for value in self.model.parameters() if value.requires_grad]
        whole: dict[str, nn.Parameter] = {}
        for path, module in self.model.named_modules():
            if isinstance(module, FSDPModule):
                module.unshard()
                for name, value in cast(nn.Module, module).named_parameters(prefix=path):
                    if not hasattr(value, "placements"):
                        whole[name] = value
                module.reshard()
        # The tape knows a parameter by the object that a layer holds while it runs: the gathered one.
        self.parameters[:] = [whole[name] for name in self.names]
        self._ranks = ranks
        if Abreast.possible():
            self._abreast = Abreast(ranks)
            self._abreast.attach(self.model)
        return self.shards

    def _runs_again(self, sites: Sequence[Site]) -> str | None:
        """Modules that `torch.func` runs again need their weights after the pass, when these are in shards again."""
        return next((f"{s.where} has no rule of its own" for s in sites if is_late(s) and len(s.taps) == 1), None)

    def _refuse(self) -> None:
        why = self._runs_again(self._tape.sites)
        if self._routes.slow:
            why = f"{self.names[self._routes.slow[0]]} is used in a way that only the general way covers"
        elif len(self.parameters) != len(list(self.model.parameters())):
            why = "some parameters are frozen"
        elif len(self.names) != len(list(self.model.named_parameters(remove_duplicate=False))):
            why = "layers share a weight"
        if why is not None:
            raise InputError(
                f"this model cannot be trained in shards: {why}",
                where="shard",
                expected="layers with a rule of the fast engine, each with weights of its own, all trained",
                remedy="train it without shards",
            )

    # -- a pass ----------------------------------------------------------------------------------------------------

    @property
    def may_break_off(self) -> bool:
        """True where a pass that fails on one rank can be brought to an end, see `catch_up`."""
        return self._abreast is not None

    def begin_pass(self) -> None:
        """Before every pass, on every rank."""
        self._reduced = 0
        if self._abreast is not None:
            self._abreast.begin()

    def learn(self) -> None:
        """After a whole pass: remember what ranks say to each other in one."""
        if self._abreast is not None:
            self._abreast.learn()

    def catch_up(self) -> None:
        """After a pass that broke off on this rank: take part in the rest of it with zeros; it counts for nothing."""
        assert self._abreast is not None
        self.stop_capture()
        self.discard()
        cast(Any, self.model).reset_iter_state()
        self._abreast.rest()
        wide = self.arithmetic.accumulate
        while self._reduced < len(self.parameters):
            number = self._reduced
            self._reduce(self.parameters[number].new_zeros(self.shards[number].shape, dtype=wide), None)

    def add(
        self,
        losses: Tensor,
        units: npt.ArrayLike,
        weights: npt.ArrayLike,
        clips: npt.ArrayLike,
        *,
        partial: bool = False,
        idle: bool = False,
    ) -> None:
        """Take the losses of one pass; see `ClippingEngine.add`. With `idle` they are made-up ones that add nothing."""
        if not self.sharded:
            super().add(losses, units, weights, clips, partial=partial)
            return
        if partial or self._sums.waiting:
            raise InputError(
                "a unit has more entries than one physical batch, and shards cannot take it in parts",
                where="physical_batch",
                expected="a physical batch that holds all entries of a contributor that one step may use",
                remedy="raise physical_batch, or lower the plan's max_entries",
            )
        why = self._why(self._tape.sites) or self._runs_again(self._tape.sites)
        if why is not None:
            raise InputError(f"this model cannot be trained in shards: {why}", where="shard")
        unit = np.asarray(units, dtype=np.int64)
        check_losses(losses, len(unit))
        bound = np.zeros_like(np.asarray(clips, dtype=np.float64)) if idle else np.asarray(clips, dtype=np.float64)
        clip = torch.as_tensor(bound, device=losses.device)
        weight = torch.as_tensor(np.asarray(weights, dtype=np.float64), device=losses.device).to(losses.dtype)
        blocks = Blocks.of(unit, len(clip), losses.device)
        pieces, norms, factors = self.clipped_pieces(losses, weight, blocks, clip)
        if idle:
            factors = torch.zeros_like(factors)
        wide = self.arithmetic.accumulate
        part = (
            [torch.zeros_like(_local(value), dtype=wide) for value in self.shards] if self._part is None else self._part
        )
        each = factors.to(wide)
        for position, value in enumerate(self.parameters):
            found: Tensor | None = None
            for key in [key for key in pieces if key[0] == position]:
                rows = pieces.pop(key).weighted(each)
                if key[1] is None:
                    found = rows
                else:
                    found = torch.zeros_like(value, dtype=wide) if found is None else found
                    found[key[1] : key[1] + len(rows)] += rows
            found = torch.zeros(value.shape, dtype=wide, device=losses.device) if found is None else found
            self._reduce(found, part[position])
        self._part = part
        if not idle:
            self._sums.count(losses)
            self._sums._accumulate([], norms, factors)

    def _reduce(self, found: Tensor, into: Tensor | None) -> None:
        """Add a whole sum over all ranks; this rank keeps its rows, as FSDP2 cuts them: equal parts, the last short."""
        ranks = cast(Ranks, self._ranks)
        each = -(-found.shape[0] // ranks.world)
        padded = found.new_zeros((each * ranks.world, *found.shape[1:]))
        padded[: len(found)] = found
        mine = ranks.reduce_scatter(padded)
        self._reduced += 1
        if into is not None:
            into += mine[: len(into)]

    def take(self, *, native: bool = False) -> ClippedSum:
        """Return norms and counts of this rank's units, and its shards of everybody's sum, and start anew."""
        if not self.sharded:
            return super().take(native=native)
        kind = self.arithmetic.accumulate
        part = self._part or [torch.zeros_like(_local(value), dtype=kind) for value in self.shards]
        taken = super().take()
        self._part = None
        return ClippedSum(part, taken.norms, taken.factors, taken.nonfinite, taken.loss, taken.entries)

    def discard(self) -> None:
        """See `ClippingEngine.discard`."""
        super().discard()
        self._part = None

    # -- after the sum ---------------------------------------------------------------------------------------------

    def set_gradients(self, noisy: list[Tensor]) -> None:
        """Put this rank's rows of the noisy gradient where an optimiser over `shards` looks for them."""
        from torch.distributed.tensor import DTensor

        for value, grad in zip(self.shards, noisy, strict=True):
            held = cast(Any, value)
            value.grad = DTensor.from_local(
                grad.to(value.dtype),
                held.device_mesh,
                held.placements,
                run_check=False,
                shape=value.shape,
                stride=value.stride(),
            )

    def flat_starts(self) -> list[int]:
        """Return where each of this rank's shards begins in the flattened gradient of the whole model."""
        ranks, out, before = cast(Ranks, self._ranks), [], 0
        for value in self.shards:
            rows, width = value.shape[0], value.numel() // value.shape[0]
            out.append(before + min(ranks.rank * -(-rows // ranks.world), rows) * width)
            before += value.numel()
        return out


def _local(value: Tensor) -> Tensor:
    found: Tensor = cast(Any, value).to_local()
    return found.detach()


def _blocks(model: nn.Module, smallest: int) -> list[nn.Module]:
    """Return the parts that are gathered on their own: large members of lists and sequences, the deepest of them."""
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            size = sum(value.numel() for value in child.parameters())
            if size < smallest:
                continue
            if isinstance(child, nn.ModuleList | nn.Sequential | nn.ModuleDict):
                walk(child)
            else:
                found.append(child)

    walk(model)
    return found


def shard_like(value: Any, shard: nn.Parameter) -> Any:
    """Cut what an optimiser remembers of a whole parameter as the parameter was cut; leave all else as it is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, Tensor) or value.shape != shard.shape or value.dim() == 0:
        return value
    held = cast(Any, shard)
    if not isinstance(shard.data, DTensor):
        return value.to(shard.device)
    mesh, rows = held.device_mesh, _local(shard).shape[0]
    start = mesh.get_local_rank() * -(-shard.shape[0] // mesh.size())
    mine = value[min(start, len(value)) :][:rows].to(mesh.device_type)
    return DTensor.from_local(mine, mesh, held.placements, run_check=False, shape=shard.shape, stride=shard.stride())


def whole_state(state: Any) -> Any:
    """Return nested dictionaries and lists with every shard gathered, on the CPU; all ranks call this alike."""
    if isinstance(state, dict):
        return {name: whole_state(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole_state(value) for value in state)
    if hasattr(state, "full_tensor"):
        return state.full_tensor().detach().cpu()
    return state


__all__ = ["ShardedEngine", "shard_like", "whole_state"]
