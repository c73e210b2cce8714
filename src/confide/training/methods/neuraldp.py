"""NeuralDP: activations of a fixed first part are clipped and noised for every person; what learns from them is free.

>>> first = FixedProjection(inputs=5, width=4)
>>> first(torch.ones(2, 5)).shape, sum(p.numel() for p in first.parameters())
(torch.Size([2, 4]), 0)

Each contributor gives one entry (a fixed, secret choice) as z = clip(f1(x), C) + N(0, (s C)^2 I), and its label by
randomised response. The second part f2 learns from the z without any further cost. This is *local*: every person's
vector is noised by itself, so the noise is far larger, compared with what is left of the signal, than in private
training; keep the width small. Who takes part is public (zero-out): a person without balance gives noise and a random
label.

==========  ================================================================  =====================================
variant     what is released                                                  cost of the activations
==========  ================================================================  =====================================
one-shot    z once, kept; f2 learns for as long as one likes                  mu = 1 / s (exchange: 2 / s)
fresh       z anew in each of T steps                                         mu = sqrt(T) / s
trained     refused: gradients of f1 use the raw entries, so f1 is not        -
            post-processing; it would need private training of its own
reused      refused: the same noise on activations that change can be         -
            taken out by differences
==========  ================================================================  =====================================

No amplification by sampling is claimed: each person's own vector is what is protected.

References
----------
Knolle et al.: NeuralDP: differentially private neural networks by design. arXiv 2107.14582 (the accounting is ours).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from confide.accounting import RandomisedResponse
from confide.accounting.gaussian import mu_for
from confide.contributors import derive, new_key, secret_subset
from confide.errors import InputError
from confide.mechanisms import NoiseSource, noise_for_step
from confide.planning import Plan
from confide.training.checkpoint import read_checkpoint, write_checkpoint
from confide.training.dataset import ContributorDataset
from confide.training.keys import key_from_seed
from confide.training.result import TrainingResult, empty_figures

REFUSED = {
    "trained": "gradients of the first part use the raw entries, so a trained first part is not post-processing: "
    "releasing it would break the guarantee",
    "reused": "the same noise on activations that change from step to step is taken out by differences",
}


@dataclass(frozen=True)
class NeuralDP:
    """How activations are released.

    Parameters
    ----------
    variant : str
        "one-shot" or "fresh"; "trained" and "reused" are refused with the reason.
    width : int
        Activations of each person; keep it small.
    label_epsilon : float or None
        Randomised response on the label; None declares the labels public.
    epochs : int
        Passes over the released activations (one-shot).
    projection : int
        Public number that the fixed first part is drawn from.

    Raises
    ------
    InputError
        An unsound or unknown variant, numbers out of range.
    """

    variant: str = "one-shot"
    width: int = 16
    label_epsilon: float | None = 1.0
    epochs: int = 200
    projection: int = 0

    def __post_init__(self) -> None:
        if self.variant in REFUSED:
            raise InputError(
                f"NeuralDP with variant {self.variant!r} is not sound: {REFUSED[self.variant]}",
                where="neuraldp variant",
                expected='"one-shot" or "fresh", both with a fixed first part',
            )
        if self.variant not in ("one-shot", "fresh"):
            raise InputError(
                f"unknown variant {self.variant!r}", where="neuraldp variant", expected='"one-shot" or "fresh"'
            )
        if min(self.width, self.epochs) < 1:
            raise InputError("width and epochs must be at least 1", where="neuraldp")
        if self.label_epsilon is not None and not 0 < self.label_epsilon < 50:
            raise InputError(
                f"label_epsilon is {self.label_epsilon!r}", where="neuraldp", expected="a number in (0, 50)"
            )

    def label_mechanism(self) -> RandomisedResponse | None:
        """Return what the labels cost; None where they are public."""
        return None if self.label_epsilon is None else RandomisedResponse(self.label_epsilon, relation="zero-out")

    def check(self, plan: Plan) -> None:
        """Refuse a plan that does not describe this release.

        Raises
        ------
        InputError
        """
        if not plan.strategy.startswith("contributor") or plan.correlation is not None or plan.clipping is not None:
            raise InputError(
                "NeuralDP releases one vector of every contributor",
                where="strategy",
                expected='strategy "contributor" without correlated noise or a clipping norm after a quantile',
            )
        if plan.relation != "zero-out":
            raise InputError("NeuralDP shows who takes part", where="relation", expected='relation "zero-out"')
        if self.variant == "one-shot" and plan.steps != 1:
            raise InputError(f"{plan.steps} steps for one release", where="steps", expected="steps = 1")
        low = [c for c in plan.classes if c.rate != 1]
        if low:
            budget = min(c.budget for c in low)
            needed = math.sqrt(plan.steps) / mu_for(budget, plan.delta)
            raise InputError(
                "this noise would need secret sampling to meet the budget, which NeuralDP cannot claim",
                where="noise_multiplier",
                expected=f"at least {needed * 1.001:.4g} for epsilon {budget:g} at delta {plan.delta:g}",
            )


class FixedProjection(nn.Module):
    """A first part that no data touched: random directions, tanh, normalised to unit length.

    Parameters
    ----------
    inputs : int
        Values of an entry.
    width : int
    seed : int
        Public.
    """

    directions: Tensor

    def __init__(self, inputs: int, width: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("directions", torch.randn(inputs, width, generator=generator) / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of norm 1, shape (entries, width)."""
        return F.normalize(torch.tanh(x.flatten(1) @ self.directions), dim=1)


class NeuralDPModel(nn.Module):
    """The fixed first part and the head that learns."""

    def __init__(self, first: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.first, self.head = first, head

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's outputs."""
        return torch.as_tensor(self.head(self.first(x)))


def release_activations(
    values: npt.NDArray[np.float64], clip_norm: float, noise_multiplier: float, noise: NoiseSource
) -> npt.NDArray[np.float64]:
    """Clip every row to `clip_norm` and noise it.

    Parameters
    ----------
    values : float64 array, shape (people, width)
        Rows that are not finite count as zero.
    clip_norm, noise_multiplier : float
    noise : NoiseSource
    """
    rows = np.where(np.isfinite(values).all(axis=1, keepdims=True), np.nan_to_num(values), 0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scale = noise_multiplier * clip_norm
    room = clip_norm - noise.margin(values.shape[1], scale=scale)
    clipped = rows * np.minimum(1.0, room * (1 - 1e-12) / np.maximum(norms, 1e-300))
    return np.asarray(noise.add_normal(clipped, scale=scale))


def randomise_labels(
    labels: npt.NDArray[np.int64], classes: int, epsilon: float, noise: NoiseSource
) -> npt.NDArray[np.int64]:
    """Tell each label with odds exp(epsilon) to 1 against any other one; labels below 0 become uniform."""
    other = np.minimum((noise.uniform(len(labels)) * classes).astype(np.int64), classes - 1)
    keep = noise.uniform(len(labels)) < (math.exp(epsilon) - 1) / (math.exp(epsilon) + classes - 1)
    return np.where(keep & (labels >= 0), labels, other)


def noisy_label_loss(outputs: Tensor, told: Tensor, classes: int, epsilon: float | None) -> Tensor:
    """Return the log-loss of the told labels under the known chance of a false answer (forward correction)."""
    logits = outputs if outputs.shape[-1] > 1 else torch.cat([torch.zeros_like(outputs), outputs], dim=1)
    found = torch.log_softmax(logits, dim=1).gather(1, told[:, None]).squeeze(1)
    if epsilon is None:
        return -found.mean()
    truth = (math.exp(epsilon) - 1) / (math.exp(epsilon) + classes - 1)
    return -(truth * found.exp() + (1 - truth) / classes).log().mean()


class NeuralDPRun:
    """A run with the interface of `PrivateRun` as far as a study needs it: rehearse, go through it, take the result.

    Parameters
    ----------
    model : NeuralDPModel
    optimizer : torch.optim.Optimizer
        Over the head.
    plan : Plan
    dataset : ContributorDataset
    settings : NeuralDP
    classes : int
        Of the label.
    admitted, checkpoint, resume, on_start, progress, seed, noise
        As for `PrivateRun`. A resumed run draws the same noise again; nothing left before.
    """

    def __init__(
        self,
        model: NeuralDPModel,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        dataset: ContributorDataset,
        settings: NeuralDP,
        *,
        classes: int,
        admitted: npt.NDArray[np.bool_] | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
        on_start: Callable[[], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
        seed: int | None = None,
        noise: str = "default",
    ) -> None:
        self.model, self.optimizer, self.plan, self.settings = model, optimizer, plan, settings
        self._data, self._classes, self._checkpoint = dataset, classes, checkpoint
        self._admitted = np.ones(dataset.index.n_contributors, dtype=bool) if admitted is None else admitted
        self._on_start, self._progress, self._secure = on_start, progress, noise == "secure"
        self.testing_only = seed is not None
        self._key = new_key() if seed is None else key_from_seed(seed)
        if resume and checkpoint is not None:
            kept = read_checkpoint(checkpoint)
            self._key = bytes.fromhex(str(kept["key"]))
            if kept.get("of") != self._identity():
                raise InputError(
                    "plan, data or people changed since this run began: the same noise would stand on other values",
                    where=str(checkpoint),
                    expected="what the run began with",
                    remedy="put it back, or start a new run",
                )
        self._done = False

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Not called: the run gives no batches."""
        return noisy_label_loss(outputs, targets, self._classes, self.settings.label_epsilon)

    def _identity(self) -> str:
        """Return a keyed fingerprint of plan, data, people and settings, for going on."""
        digest = hashlib.sha256(self._key + self.plan.fingerprint().encode())
        digest.update(str(self._data.fingerprint(self._key)).encode())
        digest.update(self._admitted.tobytes() + repr(self.settings).encode())
        return digest.hexdigest()

    def rehearse(self) -> None:
        """Refuse a plan, data or a first part that do not fit, before anything is spent."""
        self.settings.check(self.plan)
        if any(value.requires_grad for value in self.model.first.parameters()):
            raise InputError("the first part has trainable parameters", where="neuraldp", expected=REFUSED["trained"])

    def __iter__(self) -> Iterator[Any]:
        self.rehearse()
        if self._checkpoint is not None:
            write_checkpoint(self._checkpoint, {"key": self._key.hex(), "of": self._identity()})
        if self._on_start is not None:
            self._on_start()
        values, labels = self._people()
        label_noise = noise_for_step(self._key, 0, secure=self._secure, stream="labels")
        epsilon = self.settings.label_epsilon
        if epsilon is not None:
            labels = randomise_labels(labels, self._classes, epsilon, label_noise)
        told = torch.from_numpy(np.maximum(labels, 0))
        once = self.settings.variant == "one-shot"
        z = self._noisy(values, 0)
        for step in range(self.settings.epochs if once else self.plan.steps):
            if not once and step:
                z = self._noisy(values, step)
            self.optimizer.zero_grad()
            total = noisy_label_loss(self.model.head(z), told, self._classes, epsilon)
            total.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if self._progress is not None and not once:
                self._progress(step + 1, self.plan.steps)
        if self._progress is not None and once:
            self._progress(1, 1)
        self._done = True
        yield from ()

    def step(self, losses: Tensor) -> None:
        """There are no batches to take losses for."""

    def result(self) -> TrainingResult:
        """Return the trained model."""
        if not self._done:
            raise InputError("the run was not made", where="NeuralDPRun.result")
        state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        return TrainingResult(state, self.plan.steps, self.testing_only, {**empty_figures(), "nonfinite": 0})

    def _people(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Activations and label of one entry of every contributor; nothing of those without balance."""
        index = self._data.index
        kept = np.flatnonzero(secret_subset(derive(self._key, "entries"), index, 1))
        rows = np.empty(index.n_contributors, dtype=np.int64)
        rows[index.of_entry[kept]] = kept
        inputs, targets = self._data.batch(rows)
        with torch.no_grad():
            values = self.model.first(inputs).double().numpy()
        labels = targets.numpy().astype(np.int64)
        values[~self._admitted] = 0.0
        labels[~self._admitted] = -1
        return values, labels

    def _noisy(self, values: npt.NDArray[np.float64], step: int) -> Tensor:
        noise = noise_for_step(self._key, step, secure=self._secure, stream="activations")
        z = release_activations(values, self.plan.clip_norm, self.plan.noise_multiplier, noise)
        return torch.from_numpy(z).to(next(self.model.head.parameters()).dtype)
