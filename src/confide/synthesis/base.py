"""One interface for every method: fit under a budget once, sample as often as wanted.

A `NoisyModel` holds nothing but released figures and what was computed from them. Sampling from it, once or a hundred
times, costs no further budget.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee, Mechanism, compose
from confide.errors import InputError
from confide.synthesis.contributions import Var
from confide.synthesis.domain import Domain, Floats, Ints, Panel
from confide.synthesis.meter import Meter

RowWeight = Callable[[Ints], Floats]


@dataclass(frozen=True, eq=False)
class RowRule:
    """A plausibility rule between two variables: which cells of `child` may stand beside each value of `parent`.

    Attributes
    ----------
    parent, child : Var
        The parent is known when the child is drawn: a static column, the previous visit's value, an earlier column.
    allowed : bool array, shape (cells of parent, cells of child)
    text : str
        The rule in words.
    """

    parent: Var
    child: Var
    allowed: npt.NDArray[np.bool_]
    text: str

    def __post_init__(self) -> None:
        if not self.allowed.any(axis=1).all():
            raise InputError(
                f"the rule {self.text!r} can never hold",
                expected="at least one allowed value beside every value of the other column",
                remedy="correct the rule",
            )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One released table with its error bar.

    Attributes
    ----------
    columns : tuple of str
    level : "patient" or "visit"
    noisy : float array
        Shares as measured, noise included (may be negative).
    deviation : float
        Standard deviation of the privacy noise in every cell.
    estimate : float array
        What the model uses.
    """

    columns: tuple[str, ...]
    level: str
    noisy: Floats
    deviation: float
    estimate: Floats


class Generator(Protocol):
    """Draws patients from a fitted model."""

    def simulate(self, patients: int, rng: np.random.Generator, rules: Sequence[RowRule] = ()) -> Panel:
        """Draw patients with their visits."""
        ...


@dataclass(frozen=True, eq=False)
class NoisyModel:
    """What a method learnt through noise; safe to keep, print and sample from.

    Attributes
    ----------
    patients : float
        Released (noisy) number of patients.
    parts : tuple of Mechanism
        Every noisy look, for the guarantee.
    """

    method: str
    domain: Domain
    patients: float
    generator: Generator
    measurements: tuple[Measurement, ...]
    parts: tuple[Mechanism, ...]
    rules: tuple[RowRule, ...] = field(default=())

    def guarantee(self) -> Guarantee:
        """Return the composed guarantee of one patient with all visits."""
        return compose([part.guarantee() for part in self.parts])

    def sample(self, patients: int | None = None, *, rng: np.random.Generator | None = None) -> Panel:
        """Draw a synthetic panel.

        Parameters
        ----------
        patients : int, optional
            Default: the released number of patients.
        rng : numpy.random.Generator, optional
            Not a source of privacy: everything here is computed from released figures.
        """
        number = max(1, round(self.patients)) if patients is None else patients
        return self.generator.simulate(number, rng or np.random.default_rng(), self.rules)


class Synthesizer(ABC):
    """A method that turns private tables into a noisy model."""

    name: str

    @abstractmethod
    def fit(
        self, panel: Panel, meter: Meter, *, scale: Floats | None = None, rules: Sequence[RowRule] = ()
    ) -> NoisyModel:
        """Learn from `panel` through `meter` only.

        Parameters
        ----------
        panel : Panel
            Private.
        meter : Meter
            Holds the budget of one patient.
        scale : float array, shape (patients,), optional
            Individual budgets: part of the full Gaussian budget each patient agreed to, in (0, 1]. Whoever asked for
            less contributes less to every table.
        rules : sequence of RowRule
            Plausibility rules that hold in everything sampled.
        """
