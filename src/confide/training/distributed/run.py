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

from confide.contributors import Draw, derive
from confide.errors import InputError, RunError
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
from confide.training.engine.failures import device_failed, fatal, in_words, out_of_memory
from confide.training.keys import RunKeys
from confide.training.methods.choice import Methods
from confide.training.rehearsal import Rehearsal
from confide.training.run import PrivateRun
from confide.training.taking import one_is_too_many

_ONE = np.zeros(1, dtype=np.int64)
_NOBODY = Chunk(_ONE, _ONE, _ONE, False)


class ShardedRun(PrivateRun):
    """Train a model in shards under a plan.

    Parameters
    ----------
    model, loss, optimizer, plan, dataset, **settings
        As for `PrivateRun`; the optimiser must not have made a step. Of the methods, views and rules of clipping.
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
        self._broken = 0  # entries of the pass that broke off on this process
        methods: Methods = settings.get("methods") or Methods()
        # each of these keeps or moves weights of its own, by parameters that cutting replaces
        left = (methods.averaging, methods.sharpness, methods.snapshots, methods.ensemble)
        if plan.correlation is not None or any(method is not None for method in left):
            raise InputError(
                "a model in shards takes no averages, snapshots, moved weights, ensembles or correlated noise",
                where="ShardedRun",
                expected="views, rules of clipping and independent noise",
                remedy="leave the others away, or train without shards",
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
        self._least = self._methods.views * (plan.entry_limit if plan.clip_unit == "contributor" else 1)
        if self.engine.physical_batch < self._least:
            raise InputError(
                f"a contributor may have {self._least} entries in a step, and a physical batch holds "
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
        if self.engine.sharded:
            self._rehearse_in_shards(trial)

    def _rehearse_in_shards(self, trial: Rehearsal) -> None:
        """Make one pass of a made-up entry on every process: what can fail in it fails before anybody is drawn."""
        self.engine.begin_pass()
        with in_words("rehearsal in shards"), trial.frozen():
            with self.engine.capture():
                losses = self.loss(call_model(self.model, self._made_up[0]), self._made_up[1])
            self.engine.add(losses, [0], [0.0], [0.0], idle=True)
        self.engine.take()
        self.engine.learn()

    def _batches(self, draw: Draw) -> Iterator[Batch]:
        if self._ranks.world == 1:
            yield from super()._batches(draw)
            return
        while True:
            self._taking.again = False
            yield from self._passes(draw)
            if not self._taking.again:
                return
            self._seed_layers()  # the step begins anew on every process

    def _passes(self, draw: Draw) -> Iterator[Batch]:
        """Give equally many batches on every process; those beyond the draw are made up and add nothing."""
        parts = list(chunks(draw.units, self.engine.physical_batch))
        most = self._ranks.most(len(parts))
        for number in range(most):
            self._idle, self._broken = number >= len(parts), 0
            chunk = _NOBODY if self._idle else parts[number]
            self.engine.begin_pass()
            try:
                inputs, targets = self._made_up if self._idle else self._rows(draw, chunk)
                self._waiting = Batch(inputs, targets, self._keys.step, number == most - 1, chunk)
            except (RuntimeError, MemoryError) as error:
                self._recover(len(chunk.rows), error)
            if self._waiting is not None:
                self.engine.start_capture()
                yield self._waiting
            inputs = targets = None
            if self._waiting is not None:
                raise no_losses()
            if self.engine.may_break_off:
                if self._broken:
                    self.engine.catch_up()
                if self._ranks.most(self._broken):
                    self._begin_anew()
                    return

    def _rows(self, draw: Draw, chunk: Chunk) -> tuple[Any, Any]:
        inputs, targets = to_device(self._data.batch(draw.entries[chunk.rows]), self._device)
        key = derive(self._keys.coins, "augmentation")
        return self._methods.view(inputs, targets, chunk.rows, draw, self._data.index, key)

    def _recover(self, entries: int, error: RuntimeError | MemoryError) -> None:
        """Memory ran out in this process: the pass breaks off here, and all are told at its end."""
        if self._ranks.world == 1 or not self._cut:
            super()._recover(entries, error)
            return
        self._waiting = None
        if fatal(error):
            raise device_failed(error, f"step {self._keys.step}") from error
        if not out_of_memory(error):
            raise error
        size = min(self.engine.physical_batch, entries)
        if not self.engine.may_break_off:
            raise RunError(
                "memory ran out in one of several processes",
                where=f"process {self._ranks.rank}, step {self._keys.step}",
                expected="PyTorch 2.13 or later to go on with smaller batches by itself",
                remedy=f"start again with --resume and a physical_batch of {max(1, size // 2)}",
            ) from error
        self._broken = size

    def _begin_anew(self) -> None:
        """On every process, after a pass that broke off on some: forget the step, in which those take fewer at once."""
        self.engine.discard()
        self._taking.again = True

        def smaller() -> None:
            if self._broken:
                size = max(self._broken // 2, self._least)
                if self._idle or size >= self._broken:
                    raise one_is_too_many(
                        self._keys.step, "the entries of one contributor" if self._least > 1 else None
                    )
                self._taking.shrink(self.engine, size)

        self._ranks.together(smaller)

    def take(self, batch: Batch) -> None:
        """See `PrivateRun`; batches that are made up belong to nobody."""
        if not self._idle or self._waiting is not batch:
            super().take(batch)
            return
        try:
            self.step(self.loss(call_model(self.model, batch.inputs), batch.targets))
        except (RuntimeError, MemoryError) as error:
            self._recover(1, error)

    def step(self, losses: Tensor) -> None:
        """See `PrivateRun`."""
        if self._waiting is None or not self._idle:
            super().step(losses)
            return
        self.engine.stop_capture()
        try:
            self.engine.add(losses, [0], [0.0], [0.0], idle=True)
        except (RuntimeError, MemoryError) as error:
            self._recover(1, error)
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
            noisy = noise.add(value.reshape(-1), at) / self._methods.divisor
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
