"""Keep the processes of a run in shards in step when the pass of one of them breaks off.

In a pass every process gathers the same blocks in the same order. A process whose memory runs out in the middle would
leave the others waiting for ever. It counts what it has taken part in; once it has let go of the pass it takes part in
the rest with zeros, so that all come to the end, where they agree that the pass counts for nothing (`ShardedRun`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from confide.training.distributed.ranks import Ranks

# What a gather moved: shapes of the whole and of this process's part, and their type.
Gathered = tuple[torch.Size, torch.Size, torch.dtype, torch.device]


class Abreast:
    """Gathers blocks of weights for FSDP2 (its `AllGather` interface), and counts.

    Parameters
    ----------
    ranks : Ranks
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._group = ranks, None
        self._made: list[Gathered] = []
        self._pass: list[Gathered] = []

    @staticmethod
    def possible() -> bool:
        """True where this version of PyTorch lets a pass be broken off and begun anew."""
        from torch.distributed.fsdp import FSDPModule

        return hasattr(FSDPModule, "reset_iter_state") and hasattr(FSDPModule, "set_custom_all_gather")

    def attach(self, model: nn.Module) -> None:
        """Gather the blocks of a cut model from now on."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_all_gather(self)  # type: ignore[arg-type]

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory for a gathered block."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        """Gather a block."""
        self._group = group
        self._made.append((output_tensor.shape, input_tensor.shape, output_tensor.dtype, output_tensor.device))
        act = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with self._ranks._talk():
            return act(output_tensor, input_tensor, group=group, async_op=async_op)

    def begin(self) -> None:
        """Before a pass."""
        self._made = []

    def learn(self) -> None:
        """After a pass that was made whole: this is what every pass gathers."""
        self._pass = self._made

    def rest(self) -> None:
        """Gather with zeros what is left of a pass that broke off."""
        for whole, part, dtype, device in self._pass[len(self._made) :]:
            out = torch.empty(whole, dtype=dtype, device=device)
            self(out, torch.zeros(part, dtype=dtype, device=device), self._group)
