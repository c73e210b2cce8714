"""``[training]``: what a step does besides the plain one, each in one line; and the recipe of De et al. as a preset.

>>> TrainingSection(recipe="de-2022").averaged
Average(decay=0.999, warmup=True)
>>> TrainingSection(recipe="de-2022", averaging=0.99).averaged.decay
0.99
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from confide.errors import InputError
from confide.planning import Plan, QuantileClipping
from confide.studies.section import Section

if TYPE_CHECKING:
    from confide.studies.file import Study
    from confide.training import Methods
    from confide.training.methods import NeuralDP

RECIPES = ("de-2022",)


class Quantile(Section):
    """``clip_quantile = 0.5``: the clipping norm follows a quantile, paid for out of the plan's noise."""

    quantile: float = Field(default=0.5, gt=0, lt=1)
    share: float = Field(default=0.01, gt=0, lt=1)
    rate: float = Field(default=0.2, gt=0, lt=10)


class Views(Section):
    """``augmentation = 16``: views of every entry, averaged before the clip."""

    views: int = Field(default=16, ge=1)
    shift: int = Field(default=4, ge=0)
    flip: bool = True
    transform: str | None = None
    numbers: int = Field(default=5, ge=1)


class Average(Section):
    """``averaging = 0.999``: the average of the weights is what leaves."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    warmup: bool = True


class Clip(Section):
    """``clipping = "automatic"`` or ``"normalised"``."""

    rule: Literal["flat", "automatic"] = "flat"
    gamma: float = Field(default=0.01, gt=0)
    normalise: bool = False


class Sharpness(Section):
    """``sharpness = "bias-aware"`` or ``"previous"``."""

    rule: Literal["bias-aware", "previous"]
    strength: float = Field(default=0.1, ge=0)
    radius: float = Field(default=0.05, gt=0)


class Kept(Section):
    """``snapshots = 20``: weights at several steps, whose predictions are averaged."""

    keep: int = Field(default=20, ge=1)
    burn_in: float = Field(default=0.6, ge=0, lt=1)


class Members(Section):
    """``ensemble = 5``: models of one run, which share its steps and price; an answer where enough of them agree."""

    members: int = Field(default=5, ge=2)
    agree: float = Field(default=1.0, gt=0.5, le=1)


class Temperature(Section):
    """``temperature = {epsilon = 0.5}``: one temperature, fitted privately on contributors of their own."""

    epsilon: float = Field(gt=0)
    share: float = Field(default=0.15, gt=0, lt=1)


class Activations(Section):
    """``neuraldp = "one-shot"``: noised activations of a fixed first part instead of noised gradients."""

    variant: Literal["one-shot", "fresh", "trained", "reused"] = "one-shot"
    width: int = Field(default=16, ge=1)
    label_epsilon: float | Literal["public"] = 1.0
    epochs: int = Field(default=200, ge=1)
    projection: int = Field(default=0, ge=0)


class Loss(Section):
    """``loss = "dice"``: the loss of one entry; weights of the classes are declared, never counted in the data."""

    rule: Literal["cross-entropy", "dice", "squared", "absolute"]
    weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] | None = None


class TrainingSection(Section):
    """``[training]``: methods of a run; left out, a run makes plain steps."""

    recipe: Literal["de-2022"] | None = None
    augmentation: Annotated[int, Field(ge=1)] | Views | None = None
    averaging: Annotated[float, Field(ge=0, lt=1)] | Average | None = None
    clipping: Literal["flat", "automatic", "normalised"] | Clip | None = None
    sharpness: Literal["bias-aware", "previous"] | Sharpness | None = None
    snapshots: Annotated[int, Field(ge=1)] | Kept | None = None
    ensemble: Annotated[int, Field(ge=2)] | Members | None = None
    temperature: Temperature | None = None
    neuraldp: Literal["one-shot", "fresh", "trained", "reused"] | Activations | None = None
    loss: Literal["cross-entropy", "dice", "squared", "absolute"] | Loss | None = None

    @model_validator(mode="after")
    def _one_way(self) -> TrainingSection:
        others = [
            name
            for name in ("recipe", "augmentation", "averaging", "clipping", "sharpness", "snapshots", "ensemble")
            if getattr(self, name) is not None
        ]
        if self.neuraldp is not None and others:
            raise ValueError(f"neuraldp noises activations, not gradients: {', '.join(others)} has nothing to act on")
        return self

    @property
    def entry_loss(self) -> Loss | None:
        """The loss of one entry, where the study names one."""
        return Loss(rule=self.loss) if isinstance(self.loss, str) else self.loss

    @property
    def activations(self) -> Activations | None:
        """Noised activations instead of noised gradients."""
        return Activations(variant=self.neuraldp) if isinstance(self.neuraldp, str) else self.neuraldp

    @property
    def views(self) -> Views | None:
        """Views of every entry, the recipe's unless others are named."""
        if isinstance(self.augmentation, int):
            return Views(views=self.augmentation)
        return self.augmentation or (Views() if self.recipe else None)

    @property
    def averaged(self) -> Average | None:
        """The average of the weights."""
        if isinstance(self.averaging, float | int):
            return Average(decay=self.averaging)
        return self.averaging or (Average() if self.recipe else None)

    @property
    def clip(self) -> Clip:
        """How a unit's gradient is clipped."""
        if isinstance(self.clipping, Clip):
            return self.clipping
        name = self.clipping or ("normalised" if self.recipe else "flat")
        return Clip(normalise=True) if name == "normalised" else Clip(rule=name)

    @property
    def sharp(self) -> Sharpness | None:
        """Bias-aware gradients or their free neighbour."""
        return Sharpness(rule=self.sharpness) if isinstance(self.sharpness, str) else self.sharpness

    @property
    def kept(self) -> Kept | None:
        """Snapshots."""
        return Kept(keep=self.snapshots) if isinstance(self.snapshots, int) else self.snapshots

    @property
    def voters(self) -> Members | None:
        """Members of an ensemble."""
        return Members(members=self.ensemble) if isinstance(self.ensemble, int) else self.ensemble


def methods_of(study: Study, base: Path) -> Methods:
    """Return the methods of a study's run.

    Parameters
    ----------
    study : Study
    base : Path
        Folder in which ``transform = "module:function"`` is looked up before the installed packages.

    Raises
    ------
    InputError
        A transformation that cannot be imported.
    """
    from confide.training import (
        Augmentation,
        Averaging,
        BiasAware,
        Clipping,
        Ensemble,
        Methods,
        PreviousDirection,
        ShiftFlip,
        Snapshots,
    )

    chosen = study.training
    views, averaged, sharp, kept = chosen.views, chosen.averaged, chosen.sharp, chosen.kept
    augmentation = None
    if views is not None:
        change: Any = ShiftFlip(views.shift, views.flip)
        if views.transform is not None:
            change = _imported(views.transform, base)
        augmentation = Augmentation(views.views, change, views.numbers)
    sharpness: Any = None
    if sharp is not None:
        aware = sharp.rule == "bias-aware"
        sharpness = BiasAware(sharp.strength, sharp.radius) if aware else PreviousDirection(sharp.radius)
    return Methods(
        clipping=Clipping(**chosen.clip.model_dump()),
        augmentation=augmentation,
        averaging=None if averaged is None else Averaging(averaged.decay, averaged.warmup),
        sharpness=sharpness,
        snapshots=None if kept is None else Snapshots(kept.keep, kept.burn_in),
        ensemble=None if chosen.voters is None else Ensemble(chosen.voters.members),
    )


def neuraldp_of(study: Study) -> NeuralDP | None:
    """Return how a study noises activations, or None; an unsound variant is refused here."""
    section = study.training.activations
    if section is None:
        return None
    from confide.training.methods import NeuralDP

    values = section.model_dump()
    values["label_epsilon"] = None if section.label_epsilon == "public" else section.label_epsilon
    return NeuralDP(**values)


def optimizer_of(study: Study, parameters: Any, plan: Plan) -> Any:
    """Return the study's optimiser; Langevin steps get the public number of records unless the study names one.

    Raises
    ------
    InputError
        No public number of records for Langevin steps; a recipe that needs plain gradient descent.
    """
    from confide.training import make_optimizer

    section, options = study.optimizer, dict(study.optimizer.options)
    if study.training.recipe == "de-2022" and (section.name != "sgd" or options.get("momentum")):
        raise InputError(
            "the recipe de-2022 is plain gradient descent without momentum",
            where="[training] recipe",
            expected='[optimizer] name = "sgd" and no momentum',
            remedy="or leave the recipe out and name its parts: augmentation, averaging, clipping",
        )
    if section.name == "sgld" and "records" not in options:
        if plan.clip_unit != "contributor" or study.public.max_contributors is None:
            raise InputError(
                "Langevin steps need a public number of records",
                where="[optimizer.options] records",
                expected="how many entries (strategy contributor: contributors) the mean loss is a mean of",
            )
        options["records"] = study.public.max_contributors * (1 - study.evaluation.holdout)
    return make_optimizer(section.name, parameters, lr=section.lr, **options)


def plan_options(study: Study) -> dict[str, Any]:
    """Return what a study adds to the arguments of `confide.plan`; empty where it adds nothing."""
    out: dict[str, Any] = {}
    rule = study.privacy.clip_quantile
    if rule is not None:
        found = Quantile(quantile=rule) if isinstance(rule, float | int) else rule
        out["clipping"] = QuantileClipping(found.quantile, found.share, found.rate)
    if study.privacy.correlation is not None:
        out["correlation"] = study.privacy.correlation
    if study.training.neuraldp is not None:
        out["relation"] = "zero-out"  # who takes part is shown
    return out


def _imported(name: str, base: Path) -> Any:
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(base))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"cannot import the transformation {name!r}: {error}",
            where="[training] augmentation",
            expected="'module:function' with the module beside the study file or installed",
        ) from error
    finally:
        sys.path.remove(str(base))
