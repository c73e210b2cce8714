"""A private run: one object that gives batches and takes per-entry losses.

>>> run = PrivateRun(model, loss, optimizer, plan, data)                    # doctest: +SKIP
>>> for batch in run:                                                       # doctest: +SKIP
...     losses = loss(model(batch.inputs), batch.targets)                   # one value for each entry
...     run.step(losses)
>>> result = run.result()                                                   # doctest: +SKIP

Every step: the sampler draws, each unit's gradient is clipped to ``plan.clip_norm * class.clip_norm``, the sum gets
N(0, (plan.noise_multiplier * plan.clip_norm)^2 I) once, is divided by ``plan.denominator`` and handed to the optimiser
as ``.grad``. Steps that draw nobody are made all the same, with noise alone; they give no batch.

A run seeds torch's default generator in every step (dropout and augmentation are then the same after a resume); `fit`
puts the caller's random numbers back. Random numbers from numpy or `random` in a data set are not part of this.

`Methods` changes what a step does (views of entries, other clipping rules, bias-aware gradients) or what is kept of its
weights (averages, snapshots); correlated noise and a clipping norm that follows a quantile belong to the plan.

Whatever a loop does with the losses it sees (printing, stopping early, choosing) is not covered by the guarantee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.contributors import Draw, derive
from confide.errors import InputError, RunError
from confide.mechanisms import NoiseSource, SecureNoise, noise_for_step
from confide.planning import Plan
from confide.training.assign import assign, check_optimizer, make_sampler
from confide.training.batch import Batch, Loss, moved_by_hand, no_batch, no_losses
from confide.training.clips import Clips
from confide.training.dataset import ContributorDataset, call_model, to_device
from confide.training.distributed import Ranks, Share, join
from confide.training.engine import ClippedSum, ClippingEngine, EngineOptions
from confide.training.engine.chunks import chunks
from confide.training.engine.failures import in_words
from confide.training.host_memory import kept_pages
from confide.training.keeping import Resumable
from confide.training.keys import RunKeys, key_from_seed
from confide.training.methods.choice import MethodRun, Methods
from confide.training.noise import keyed_noise
from confide.training.noising import from_host, from_stream
from confide.training.placing import place
from confide.training.rehearsal import ENTRIES, Example, Rehearsal, example_of, rehearse
from confide.training.result import TrainingResult, empty_figures, keep_figures
from confide.training.taking import Taking


class PrivateRun(Resumable):
    """Train under a plan.

    Parameters
    ----------
    model : torch.nn.Module
        Its trainable parameters are learned. Moved to the device of `options` and put in training mode.
    loss : function
        (outputs, targets) to one loss for each entry, shape (entries,).
    optimizer : torch.optim.Optimizer
        Any, over parameters of the model; it sees the noisy gradient only.
    plan : Plan
    dataset : ContributorDataset
    admitted : bool array, shape (contributors,), optional
        False drops a contributor (no balance left); denominators stay as planned.
    options : EngineOptions, optional
        Speed and memory only.
    scheduler : learning-rate scheduler, optional
        Stepped after every step; its state goes into the checkpoint.
    noise : str or NoiseSource
        "default" (on CUDA: "device"), "device" (ChaCha20 where the sum is, see `device_noise`), "secure" (on the host;
        see `noise_seconds` for its cost), or a source of `confide.mechanisms` (then a resumed run repeats the noise
        only if the source does).
    run_key : bytes, optional
        32 secret bytes; by default from the operating system. A key that is given marks the run "for testing only":
        two runs with one key share their noise.
    seed : int, optional
        Makes the run repeatable and marks it "for testing only".
    checkpoint : path, optional
        File for checkpoints: private data. Written before the first step and every `checkpoint_every` steps.
    resume : bool
        Go on from `checkpoint`.
    on_nonfinite : str
        "zero": a unit with a non-finite gradient adds nothing and is counted internally; "stop": the run stops.
    example : pair (inputs, targets), optional
        Public example with two or more entries; its values are what the rehearsal runs on. By default random values of
        the shape and type of the first entry.
    on_start : function, optional
        Called once right before the first private batch is drawn (the ledger's start).
    progress : function, optional
        Called with (steps done, steps) after every step.
    ranks : Ranks, optional
        The processes that share the steps; by default those that torchrun started, or this one alone. `on_start`,
        `progress` and the checkpoint belong to the first of them.
    methods : Methods, optional
        What a step does besides the plain one; see `confide.training.methods`.

    Raises
    ------
    InputError
        A model, loss or optimiser that cannot be private; contributors that the plan has no class for; a checkpoint of
        another plan, model or data set.
    RunError
        A damaged checkpoint, a full disk, a non-finite gradient with on_nonfinite="stop".
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        dataset: ContributorDataset,
        *,
        admitted: npt.NDArray[np.bool_] | None = None,
        options: EngineOptions | None = None,
        scheduler: Any = None,
        noise: str | NoiseSource = "default",
        run_key: bytes | None = None,
        seed: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 100,
        resume: bool = False,
        on_nonfinite: str = "zero",
        example: tuple[Any, Any] | None = None,
        on_start: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        ranks: Ranks | None = None,
        methods: Methods | None = None,
    ) -> None:
        if on_nonfinite not in ("zero", "stop"):
            raise InputError(f"on_nonfinite is {on_nonfinite!r}", expected='"zero" or "stop"')
        if seed is not None and run_key is not None:
            raise InputError("both a seed and a run key were given", expected="at most one of them")
        if checkpoint_every < 1:
            raise InputError("checkpoint_every must be at least 1", expected="a number of steps")
        if resume and checkpoint is None:
            raise InputError("resume needs the checkpoint to go on from", expected="checkpoint=PATH")
        self.plan, self.model, self.loss, self.optimizer = plan, model, loss, optimizer
        self._data, self._scheduler, self._progress, self._on_start = dataset, scheduler, progress, on_start
        self._every, self._on_nonfinite = checkpoint_every, on_nonfinite
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        self._ranks = join((options or EngineOptions()).device) if ranks is None else ranks
        self._device = (options or EngineOptions()).torch_device()
        place(model, self._device).train()
        if noise == "secure" or isinstance(noise, SecureNoise):
            # its lattice is finer than float32: other people's partial sums must not round with one person's presence
            options = replace(options or EngineOptions(), engine="exact", compile="no")
        self.engine = self._engine_for(model, options)
        check_optimizer(optimizer, self.engine.parameters)
        self._noise = noise
        self._methods = MethodRun(methods or Methods(), plan, self.engine, loss)
        self._methods.methods.check(plan, optimizer, noise, scheduler)
        if noise == "default" and self._device.type == "cuda":
            self._noise = "device"
        self._taking = Taking()
        self._stated: dict[str, None] = {}  # arithmetic of the steps before a resume
        source = self._source(bytes(32), 0)
        # A key that the caller holds may have been used before, and equal keys give equal noise.
        self.testing_only = seed is not None or run_key is not None or source.testing_only
        self._rates, assigned = assign(plan, dataset, admitted)
        size = sum(value.numel() for value in self.engine.parameters)
        margin = source.margin(size, scale=self._methods.scale)
        self._clips = Clips(plan, assigned, margin, self._methods.norm)
        self._record = empty_figures()
        self._nonfinite = 0
        self._example = Example(*example) if example is not None else example_of(dataset)
        if resume:
            self._keys = self._restore()
        else:
            given = key_from_seed(seed) if seed is not None else run_key
            self._keys = RunKeys.from_dict(self._ranks.from_first(RunKeys.start(given).to_dict))
            if self._ranks.world > 1:
                self._ranks.same(self._identity(self._keys), "what is trained on what")
                self._ranks.spread_state(model)
        self._sampler = make_sampler(plan, self._keys, dataset.index, self._rates)
        self._waiting: Batch | None = None
        self._draw: Draw | None = None
        self._drawn: Draw | None = None
        self._share: Share | None = None
        self._stepping = False

    # -- the loop --------------------------------------------------------------------------------------------------

    @property
    def steps_done(self) -> int:
        """Steps made so far, empty ones included."""
        return self._keys.step

    def rehearse(self) -> None:
        """Check model and loss on random inputs; done before the first step in any case."""
        rehearse(self.engine, self.loss, self._example, self._device)
        trial = Rehearsal(self.engine, self.loss, self._example, self._device)
        with trial.frozen():
            self._methods.rehearse(*trial.batch(ENTRIES), ENTRIES, self.optimizer)
        if self._methods.aware is None:
            even = self.plan.clip_unit == "entry" or len({c.entries_used for c in self.plan.classes}) == 1
            self._taking.prepare(self.engine, self.loss, even=even)

    def _rehearse_in_words(self) -> None:
        with in_words("rehearsal"):
            self.rehearse()
            self._taking.trial(self.engine, Rehearsal(self.engine, self.loss, self._example, self._device))

    def __iter__(self) -> Iterator[Batch]:
        self._ranks.together(self._rehearse_in_words)
        self._settle()
        if self._checkpoint is not None and self.steps_done == 0:
            self._save()
        if self.steps_done < self.plan.steps:
            self._ranks.from_first(self._on_start or (lambda: None))
        guard = self.optimizer.register_step_pre_hook(self._guard)
        try:
            with kept_pages(self._device), in_words("a step, outside of the model's passes"):
                yield from self._steps()
        finally:
            guard.remove()
            self.engine.stop_capture()
            self._methods.summed()

    def _steps(self) -> Iterator[Batch]:
        while self.steps_done < self.plan.steps:
            # A loop may have been left in the middle of this step: what it added must not count a second time.
            self.engine.discard()
            self._waiting = None
            self._methods.begin()
            self._seed_layers()
            self._drawn = self._sampler.draw(self._keys.step)
            self._share = self._ranks.share(self._drawn)
            self._draw = self._methods.expand(self._share.draw)
            yield from self._batches(self._draw)
            self._finish_step()

    def _batches(self, draw: Draw) -> Iterator[Batch]:
        while True:
            self._taking.again = False
            yield from self._parts(draw)
            if not self._taking.again:
                return
            self._seed_layers()  # the step begins anew, in smaller parts

    def _parts(self, draw: Draw) -> Iterator[Batch]:
        size = self._methods.batch_size(draw, self.engine.physical_batch)
        parts = list(chunks(draw.units, size, single=not self.engine.isolates_entries))
        for number, chunk in enumerate(parts):
            try:
                inputs, targets = to_device(self._data.batch(draw.entries[chunk.rows]), self._device)
                inputs, targets = self._methods.view(
                    inputs, targets, chunk.rows, draw, self._data.index, derive(self._keys.coins, "augmentation")
                )
            except (RuntimeError, MemoryError) as error:
                self._recover(len(chunk.rows), error)
                return
            self._waiting = Batch(inputs, targets, self._keys.step, number == len(parts) - 1, chunk)
            self.engine.start_capture()
            yield self._waiting
            if self._taking.again:
                return
            if self._waiting is not None:
                raise no_losses()

    def take(self, batch: Batch) -> None:
        """Compute and take the losses of a batch: as one compiled function where `EngineOptions` says so.

        Where memory runs out the step begins anew with physical batches of half the size, with the same result.

        Raises
        ------
        RunError
            The device failed, or a single entry does not fit into memory.
        """
        draw, chunk = self._draw, batch.chunk
        if self._waiting is not batch or draw is None:
            raise no_batch()
        clips = self._clips.now[draw.contributors[chunk.members]]
        rows = batch.inputs, batch.targets, chunk.units, draw.weights[chunk.rows], clips
        try:
            if self._taking.add(self.engine, *rows, partial=chunk.partial):
                self._waiting = None
            else:
                self.step(self.loss(call_model(self.model, batch.inputs), batch.targets))
        except (RuntimeError, MemoryError) as error:
            self._recover(len(batch), error)

    def step(self, losses: Tensor) -> None:
        """Take the losses of the batch that the loop holds; with the last batch of a step the optimiser moves.

        Parameters
        ----------
        losses : tensor, shape (entries,)
            One loss for each entry of the batch, computed by the model in this turn of the loop.

        Raises
        ------
        InputError
            Losses of another shape (use reduction="none"), or no batch to take losses for.
        RunError
            A non-finite gradient and on_nonfinite="stop".
        """
        batch, draw = self._waiting, self._draw
        if batch is None or draw is None:
            raise no_batch()
        chunk = batch.chunk
        clips = self._clips.now[draw.contributors[chunk.members]]
        self.engine.stop_capture()
        try:
            self._methods.add(losses, batch.inputs, batch.targets, chunk, draw.weights[chunk.rows], clips)
        except (RuntimeError, MemoryError) as error:
            self._recover(len(batch), error)
        self._waiting = None

    def _recover(self, entries: int, error: RuntimeError | MemoryError) -> None:
        self._taking.recover(self.engine, entries, self._keys.step, error)
        self._waiting = None

    def _finish_step(self) -> None:
        """Noise, divide, move the optimiser: the same for full and for empty draws."""
        assert self._share is not None
        total = self._total(self._share)
        self._methods.summed()
        if total.nonfinite and self._on_nonfinite == "stop":
            raise RunError(
                f"{total.nonfinite} units had a gradient that is not finite (internal message, must not leave)",
                where=f"step {self._keys.step}",
                remedy='check the inputs and the learning rate, or set on_nonfinite="zero"',
            )
        self._nonfinite += keep_figures(self._record, total, self._methods.views)
        self._noise_and_divide(total)
        self._methods.remember()
        self._methods.inform(self.optimizer, self._keys.step, self._keys.method_seed())
        self._stepping = True
        try:
            self.optimizer.step()
        finally:
            self._stepping = False
        if self._scheduler is not None:
            self._scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._methods.end(self._keys.step)
        self._move_clip(total)
        if self._keys.advance():
            self._rekey()
        if self._checkpoint is not None and (self.steps_done % self._every == 0 or self.steps_done == self.plan.steps):
            self._save()
        if self._progress is not None and self._ranks.first:
            self._progress(self.steps_done, self.plan.steps)

    def _engine_for(self, model: nn.Module, options: EngineOptions | None) -> ClippingEngine:
        return ClippingEngine(model, options)

    def _settle(self) -> None:
        """Once model and loss are rehearsed, before anything is written or drawn."""

    @property
    def _streamed(self) -> bool:
        """True where the noise is one stream on the device, of which every process can draw its own part."""
        return self._noise == "device" and self.plan.correlation is None

    def _total(self, share: Share) -> ClippedSum:
        streamed = self._streamed
        part = self.engine.take(native=self._ranks.world == 1 or streamed)
        return self._ranks.total(part, share, self._device, gradients=not streamed)

    def _noise_and_divide(self, total: ClippedSum) -> None:
        if self._streamed or self._ranks.first:  # a source on the host serves one process for all
            self._set_gradients(total)
        if not self._streamed:
            self._ranks.spread_gradients(self.engine.parameters)

    def _set_gradients(self, total: ClippedSum) -> None:
        parameters, key, methods = self.engine.parameters, self._keys.noise_key(), self._methods
        if self._streamed:
            from_stream(parameters, total.gradients, self._ranks, key, methods.scale, methods.divisor)
        else:
            source = self._source(key, self._keys.step)
            from_host(parameters, total.gradients, lambda flat: methods.noisy(flat, source))

    def _move_clip(self, total: ClippedSum) -> None:
        """Let the clipping norm follow its quantile, by a noisy count that the plan pays for."""
        norm, draw = self._methods.norm, self._drawn
        if not norm.follows or draw is None:
            return
        source, key = self._noise, self._keys.noise_key()
        if isinstance(source, str):
            source = noise_for_step(key, self._keys.step, secure=source == "secure", stream="count")
        chosen = source  # the count is noised where the sum is: in one place
        norm.value = self._ranks.from_first(lambda: self._clips.following(total, draw.contributors, chosen))
        self._clips.place()

    def _seed_layers(self) -> None:
        """Give dropout and other random layers of this step numbers of their own, the same after a resume."""
        seed = self._keys.model_seed() ^ self._ranks.rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call for every absent device
        if self._device.type == "cuda":
            torch.cuda.manual_seed_all(seed)

    def _source(self, key: bytes, step: int) -> NoiseSource:
        return keyed_noise(self._noise, key, step) if isinstance(self._noise, str) else self._noise

    def result(self) -> TrainingResult:
        """Return the trained model and the internal figures.

        Raises
        ------
        InputError
            If steps of the plan are still to be made: the loop was left early.
        """
        if self.steps_done != self.plan.steps:
            raise InputError(
                f"{self.steps_done} of {self.plan.steps} steps were made",
                where="run.result",
                expected="all steps of the plan (stopping early by looking at private figures is not covered)",
                remedy="let the loop run to its end",
            )
        snapshots = self._methods.finish()
        state = {name: value.detach().cpu().clone() for name, value in self._states()[0].items()}
        internal: dict[str, Any] = {**self._record, "nonfinite": self._nonfinite}
        internal["engine"] = self._taking.described(self.engine)
        if self._methods.norm.follows:
            internal["clip_norm"] = self._methods.norm.course
        return TrainingResult(state, self.steps_done, self.testing_only, internal, snapshots, self.arithmetic())

    def arithmetic(self) -> str:
        """Return in words for the certificate: precision, what clips gave up for it, and where noise came from."""
        return "; resumed with: ".join(self._all_stated())

    # -- parts -----------------------------------------------------------------------------------------------------

    def _guard(self, *_: Any) -> None:
        if not self._stepping:
            raise moved_by_hand()

    def _rekey(self) -> None:
        self._sampler.rekey(self._keys.coins)
