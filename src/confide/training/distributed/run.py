"""A private run whose model is in shards: for models that do not fit one GPU.

>>> run = ShardedRun(model, loss, optimizer, plan, data, options=EngineOptions(device="cuda"))     # doctest: +SKIP

Started by torchrun, like any run. The model is made and rehearsed on the CPU; then it is cut (see
`confide.training.distributed.sharded`), and the optimiser is handed the shards. Noise is drawn by position, so that it
is the same whatever the number of processes: a checkpoint moves between them, one alone included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from confide.contributors import Draw
from confide.errors import InputError
from confide.mechanisms import SecureNoise
from confide.planning import Plan
from confide.training.batch import Batch, Loss, no_losses
from confide.training.dataset import ContributorDataset, call_model, to_device
from confide.training.distributed.noise import BlockNoise
from confide.training.distributed.ranks import join
from confide.training.distributed.sharded import SMALLEST, ShardedEngine, shard_like, whole_state
from confide.training.distributed.shares import Share
from confide.training.engine import ClippedSum, ClippingEngine, EngineOptions
from confide.training.engine.chunks import Chunk, chunks
from confide.training.keys import RunKeys
from confide.training.rehearsal import Rehearsal
from confide.training.run import PrivateRun

_ONE = np.zeros(1, dtype=np.int64)
_NOBODY = Chunk(_ONE, _ONE, _ONE, False)


class ShardedRun(PrivateRun):
    """Train a model in shards under a plan.

    Parameters
    ----------
    model, loss, optimizer, plan, dataset, **settings
        As for `PrivateRun`; the optimiser must not have made a step. `methods` and correlated noise are not for shards.
    smallest : int
        Fewest weights of a part of the model that is gathered on its own.

    Raises
    ------
    InputError
        Besides what `PrivateRun` raises: a model that the fast engine does not cover, shared or frozen weights, a
        physical batch that may not hold one contributor's entries.
    """

    engine: ShardedEngine

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        dataset: ContributorDataset,
        *,
        smallest: int = SMALLEST,
        **settings: Any,
    ) -> None:
        options: EngineOptions = settings.pop("options", None) or EngineOptions()
        ranks = settings.pop("ranks", None) or join(options.device)
        self._smallest, self._place, self._cut, self._idle = smallest, options.torch_device(), False, False
        if settings.get("methods") is not None or plan.correlation is not None:
            raise InputError(
                "a model in shards takes the plain step with independent noise only",
                where="ShardedRun",
                remedy="leave methods and correlated noise away, or train without shards",
            )
        if settings.get("noise") == "secure" or isinstance(settings.get("noise"), SecureNoise):
            raise InputError(
                "secure noise stands on sums in float64, and shards add up in float32",
                where="ShardedRun",
                expected='noise "default" or "device"',
                remedy="train without shards under secure noise, or take noise of the operating system",
            )
        if settings.get("noise", "default") == "default" and self._place.type == "cuda":
            settings["noise"] = "device"
        super().__init__(
            model,
            loss,
            optimizer,
            plan,
            dataset,
            options=replace(options, device="cpu", engine="fast"),
            ranks=ranks,
            **settings,
        )
        # Judged on the plan, never on who is drawn.
        if plan.clip_unit == "contributor" and self.engine.physical_batch < plan.entry_limit:
            raise InputError(
                f"a contributor may have {plan.entry_limit} entries in a step, and a physical batch holds "
                f"{self.engine.physical_batch}",
                where="physical_batch",
                expected="room for all entries of one contributor: shards cannot take them in parts",
                remedy="raise physical_batch, or lower the plan's max_entries",
            )

    def rehearse(self) -> None:
        """See `PrivateRun`; what is cut has been rehearsed."""
        if not self._cut:
            super().rehearse()

    def _engine_for(self, model: nn.Module, options: EngineOptions | None) -> ClippingEngine:
        return ShardedEngine(model, options)

    def _identity(self, keys: RunKeys) -> dict[str, Any]:
        found = super()._identity(keys)
        return {**found, "noise": f"{found['noise']} by position, {self._place.type}"}

    def _settle(self) -> None:
        """Cut the model and give the optimiser, with what it remembers, the shards."""
        if self._cut:
            return
        if self._ranks.world > 1 and not isinstance(self._noise, str) and not self._noise.testing_only:
            raise InputError(
                "a noise source of one's own cannot serve several processes: equal copies would give equal noise",
                where="noise",
                expected='"default" or "device", which draw by position',
            )
        before = list(self.engine.parameters)
        if self._ranks.world == 1:
            self.model.to(self._place)
            after = before
        else:
            after = self.engine.shard(self._ranks, self._place, smallest=self._smallest)
        new = {id(a): b for a, b in zip(before, after, strict=True)}
        remembered = dict(self.optimizer.state)
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["params"] = [new.get(id(value), value) for value in group["params"]]
        for value, state in remembered.items():
            shard = new[id(value)]
            self.optimizer.state[shard] = {name: shard_like(part, shard) for name, part in state.items()}
        self._device, self._cut = self._place, True
        trial = Rehearsal(self.engine, self.loss, self._example, self._device)
        self._made_up = trial.batch(1)

    def _batches(self, draw: Draw) -> Iterator[Batch]:
        """Give equally many batches on every process; those beyond the draw are made up and add nothing."""
        if self._ranks.world == 1:
            yield from super()._batches(draw)
            return
        parts = list(chunks(draw.units, self.engine.physical_batch))
        most = self._ranks.most(len(parts))
        for number in range(most):
            self._idle = number >= len(parts)
            if self._idle:
                (inputs, targets), chunk = self._made_up, _NOBODY
            else:
                chunk = parts[number]
                inputs, targets = to_device(self._data.batch(draw.entries[chunk.rows]), self._device)
            self._waiting = Batch(inputs, targets, self._keys.step, number == most - 1, chunk)
            self.engine.start_capture()
            yield self._waiting
            if self._waiting is not None:
                raise no_losses()

    def take(self, batch: Batch) -> None:
        """Compute and take the losses of a batch; passes stay in step, so none begins anew in smaller parts."""
        self.step(self.loss(call_model(self.model, batch.inputs), batch.targets))

    def step(self, losses: Tensor) -> None:
        """See `PrivateRun`."""
        if self._waiting is None or not self._idle:
            super().step(losses)
            return
        self.engine.stop_capture()
        self.engine.add(losses, [0], [0.0], [0.0], idle=True)
        self._waiting = None

    def _total(self, share: Share) -> ClippedSum:
        return self._ranks.total(self.engine.take(), share, self._device, gradients=self._ranks.world == 1)

    def _noise_and_divide(self, total: ClippedSum) -> None:
        size = sum(value.numel() for value in self.engine.parameters)
        noise = BlockNoise(self._noise, self._keys.noise_key(), self._keys.step, self._methods.scale, size)
        sums, start = total.gradients, 0
        starts = self.engine.flat_starts() if self.engine.sharded else []
        for number, value in enumerate(sums):  # one after the other, so that two whole gradients are never there
            at = starts[number] if starts else start
            noisy = noise.add(value.reshape(-1), at) / self.plan.denominator
            sums[number] = noisy.reshape(value.shape)
            start += value.numel()
        if self.engine.sharded:
            self.engine.set_gradients(sums)
            return
        for parameter, part in zip(self.engine.parameters, sums, strict=True):
            parameter.grad = part.to(parameter.device, parameter.dtype)

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            cast(dict[str, Any], whole_state(dict(self.model.state_dict()))),
            cast(dict[str, Any], whole_state(self.optimizer.state_dict())),
        )
