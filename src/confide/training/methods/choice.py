"""Which methods a run uses, and how they take part in its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from confide.contributors import ContributorIndex, Draw
from confide.errors import InputError, RunError
from confide.mechanisms import NoiseSource
from confide.planning import Plan
from confide.training.engine import ClippingEngine
from confide.training.engine.chunks import Chunk
from confide.training.engine.units import Segments
from confide.training.methods.augmentation import Augmentation
from confide.training.methods.averaging import Averaging, Snapshots, Trail
from confide.training.methods.bam import BiasAware, BiasAwareSum, Displacement, PreviousDirection
from confide.training.methods.clipping import ClipNorm, Clipping
from confide.training.methods.ensemble import Ensemble, Restart, without_schedule
from confide.training.methods.identity import in_words
from confide.training.methods.langevin import SGLD
from confide.training.methods.matrix_noise import MatrixNoise


@dataclass(frozen=True)
class Methods:
    """What a run does besides the plain step; the default is the plain step.

    Parameters
    ----------
    clipping : Clipping
    augmentation : Augmentation, optional
    averaging : Averaging, optional
    sharpness : BiasAware or PreviousDirection, optional
    snapshots : Snapshots, optional
    ensemble : Ensemble, optional
        Its members leave as the snapshots of the run.
    """

    clipping: Clipping = field(default_factory=Clipping)
    augmentation: Augmentation | None = None
    averaging: Averaging | None = None
    sharpness: BiasAware | PreviousDirection | None = None
    snapshots: Snapshots | None = None
    ensemble: Ensemble | None = None

    def check(
        self, plan: Plan, optimizer: torch.optim.Optimizer, noise: str | NoiseSource, scheduler: Any = None
    ) -> None:
        """Refuse what does not go together, before anything is spent.

        Raises
        ------
        InputError
        """
        if plan.clipping is not None and self.clipping.rule == "automatic":
            raise InputError(
                "automatic clipping does not depend on a clipping norm, so there is none to follow a quantile",
                where="clipping",
                expected="one of the two",
            )
        if plan.correlation is not None and noise == "secure":
            raise InputError(
                "correlated noise is solved for in floating point, which secure noise exists to avoid",
                where="noise",
                expected='noise = "os" with correlated noise',
                remedy="use independent noise with the secure source",
            )
        if self.ensemble is not None:
            without_schedule(self.ensemble, scheduler)
            self.ensemble.ends(plan.steps)
            if self.snapshots is not None:
                raise InputError(
                    "an ensemble keeps the last weights of each member, snapshots those of one run",
                    where="ensemble",
                    expected="one of the two",
                )
            if plan.correlation is not None:
                raise InputError(
                    "correlated noise is taken back in later steps, and a member that begins anew would never get it",
                    where="ensemble",
                    expected="a plan without correlated noise",
                )
        if not isinstance(optimizer, SGLD):
            return
        if plan.correlation is not None:
            raise InputError(
                "Langevin dynamics needs noise that is independent over steps",
                where="optimizer sgld",
                expected="a plan without correlated noise",
            )
        if plan.clipping is not None and optimizer.temperature is not None:
            raise InputError(
                "a temperature cannot be promised where the noise follows a quantile",
                where="optimizer sgld",
                expected="a clipping norm that stays, or no temperature",
            )

    def cost(self) -> tuple[str, ...]:
        """Return what the chosen methods cost beside a plain step, one line each."""
        lines = []
        if self.augmentation is not None:
            lines.append(
                f"{self.augmentation.views} views of every drawn entry: about as many times the time of a step."
            )
        if isinstance(self.sharpness, BiasAware):
            lines.append(
                "Bias-aware minimisation: two passes with a copy of the weights for every unit, about 2 to 4 times the "
                "time of a step; the privacy is the same."
            )
        if isinstance(self.sharpness, PreviousDirection):
            lines.append("Gradients along the last noisy gradient: no further cost.")
        if self.snapshots is not None:
            lines.append(
                f"{self.snapshots.keep} snapshots: the release is {self.snapshots.keep + 1} times as large; no privacy."
            )
        if self.ensemble is not None:
            m = self.ensemble.members
            lines.append(
                f"{m} members one after another, each from the initial weights with a share of 1 / {m} of the steps: "
                f"this price is that of all of them together. The release is {m} times as large."
            )
        return tuple(lines)


class MethodRun:
    """The methods of one run as it goes.

    Parameters
    ----------
    methods : Methods
    plan : Plan
    engine : ClippingEngine
    loss : function
    """

    def __init__(
        self, methods: Methods, plan: Plan, engine: ClippingEngine, loss: Callable[[Any, Any], Tensor]
    ) -> None:
        self.methods, self._plan, self._engine = methods, plan, engine
        self._identity = None if methods == Methods() else in_words(methods)
        engine.gamma = methods.clipping.gamma if methods.clipping.rule == "automatic" else None
        self.norm = ClipNorm(plan)
        sharpness = methods.sharpness
        self.aware = BiasAwareSum(sharpness, engine, loss) if isinstance(sharpness, BiasAware) else None
        self._moved = Displacement(sharpness, engine.parameters) if isinstance(sharpness, PreviousDirection) else None
        ends = None if methods.ensemble is None else methods.ensemble.ends(plan.steps)
        self._trail = Trail(engine.parameters, methods.averaging, methods.snapshots, plan.steps)
        self._members = None if ends is None else Restart(engine.parameters, ends)
        self._stream = None if plan.correlation is None else MatrixNoise(plan.correlation)
        self._ratios = None if plan.correlation is None else plan.correlation.noise(plan.steps)

    # -- a step ----------------------------------------------------------------------------------------------------

    @property
    def views(self) -> int:
        """Rows of every drawn entry."""
        return 1 if self.methods.augmentation is None else self.methods.augmentation.views

    def begin(self) -> None:
        """Before the first batch of a step: a step that was left in the middle is forgotten."""
        if self._members is not None:
            self._members.begin()
        if self._moved is not None:
            self._moved.out()

    def expand(self, draw: Draw) -> Draw:
        """Return the draw with all views."""
        return draw if self.methods.augmentation is None else self.methods.augmentation.expand(draw)

    def batch_size(self, draw: Draw, size: int) -> int:
        """Return the size of a physical batch: bias-aware gradients need whole units."""
        if self.aware is None or not len(draw.units):
            return size
        return max(size, int(np.bincount(draw.units).max()))

    def view(
        self, inputs: Any, targets: Any, rows: npt.NDArray[np.int64], draw: Draw, index: ContributorIndex, key: bytes
    ) -> tuple[Any, Any]:
        """Return inputs and targets as the model sees them."""
        if self.methods.augmentation is None:
            return inputs, targets
        return self.methods.augmentation.apply(inputs, targets, rows, draw, index, key)

    def add(
        self, losses: Tensor, inputs: Any, targets: Any, chunk: Chunk, weights: Any, clips: npt.NDArray[np.float64]
    ) -> None:
        """Add a physical batch to the clipped sum."""
        if self.aware is None:
            self._engine.add(losses, chunk.units, weights, clips, partial=chunk.partial)
            return
        device = losses.device
        clip = torch.as_tensor(clips, dtype=torch.float64, device=device)
        segments = Segments(torch.as_tensor(chunk.units, device=device), len(clip))
        weight = torch.as_tensor(weights, dtype=torch.float64, device=device).to(losses.dtype)
        self.aware.add(losses, inputs, targets, segments, weight, clip)

    def summed(self) -> None:
        """Once all units are in the sum: the weights go back to where the step began."""
        if self._moved is not None:
            self._moved.back()

    def noisy(self, total: npt.NDArray[np.float64], source: NoiseSource) -> npt.NDArray[np.float64]:
        """Return the noisy sum over the denominator, as the optimiser gets it."""
        scale = self.scale
        if self._stream is None:
            noisy = source.add_normal(total, scale=scale)
        else:
            fresh = source.add_normal(np.zeros_like(total), scale=1.0)
            noisy = total + scale * self._stream.next(np.asarray(fresh, dtype=np.float64))
        return np.asarray(noisy / self.divisor)

    @property
    def divisor(self) -> float:
        """What the noisy sum is divided by."""
        return self._plan.denominator * (self.norm.value if self.methods.clipping.normalise else 1.0)

    @property
    def scale(self) -> float:
        """Standard deviation of the fresh noise of a step's sum."""
        return self._plan.gradient_noise * self.norm.value

    def noise_variance(self, step: int) -> float:
        """Return the variance of the noise in each coordinate of the gradient that the optimiser gets in `step`."""
        ratio = 1.0 if self._ratios is None else float(self._ratios[step])
        return (self.scale * ratio / self.divisor) ** 2

    def inform(self, optimizer: torch.optim.Optimizer, step: int, seed: int) -> None:
        """Tell an optimiser that asks what the noise of this step is."""
        if self._members is not None:
            self._members.meet(optimizer)
        ask = getattr(optimizer, "inform", None)
        if ask is not None:
            ask(noise_variance=self.noise_variance(step), seed=seed)

    def remember(self) -> None:
        """Once the noisy gradient is there."""
        if self._moved is not None:
            self._moved.remember()

    def end(self, step: int) -> None:
        """After the optimiser moved in step number `step`."""
        self._trail.step(step)
        if self._members is None or not self._members.due(step + 1):
            return
        self._trail.keep()
        if self._members.last(step + 1):
            return
        self._members.back()
        self._trail.begin(step + 1)
        if self._moved is not None:
            self._moved.direction = None

    # -- before and after ------------------------------------------------------------------------------------------

    def rehearse(self, inputs: Any, targets: Any, count: int, optimizer: torch.optim.Optimizer) -> None:
        """Check the methods on random entries, and that a chosen temperature can be had."""
        ask = getattr(optimizer, "inform", None)
        if ask is not None:
            ask(noise_variance=self.noise_variance(0), seed=0)
        if isinstance(optimizer, SGLD):
            for group in optimizer.param_groups:
                optimizer.added(group["lr"])
        if self.methods.augmentation is not None:
            self.methods.augmentation.check(inputs)
        if self.aware is not None:
            self.aware.settle(inputs, targets, count)

    def finish(self) -> tuple[dict[str, Tensor], ...]:
        """Put the averaged weights into the model; return the snapshots."""
        self._trail.finish()
        return self._trail.snapshots(self._engine.names)

    def identity(self) -> str | None:
        """What must be the same when a run goes on, and in every process of it; None for the plain step.

        Functions of one's own (a transform of views) are told apart by their code, as far as that can be: see
        `identity.in_words` for what cannot. It is what they were when the run was made; what they remember since does
        not count.
        """
        return self._identity

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "norm": self.norm.value,
            "course": self.norm.course,
            "direction": None if self._moved is None else self._moved.direction,
            "trail": self._trail.state(),
            "stream": None if self._stream is None else self._stream.state(),
            "members": None if self._members is None else self._members.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises
        ------
        RunError
            The checkpoint lacks a part.
        """
        try:
            self.norm.value, self.norm.course = float(state["norm"]), list(state["course"])
            if self._moved is not None and state["direction"] is not None:
                parameters: list[nn.Parameter] = self._engine.parameters
                pairs = zip(state["direction"], parameters, strict=True)
                self._moved.direction = [way.to(value.device) for way, value in pairs]
            self._trail.load(state["trail"])
            if self._stream is not None:
                self._stream.load(state["stream"])
            if self._members is not None:
                self._members.load(state["members"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError("the checkpoint is incomplete", where="methods") from error
