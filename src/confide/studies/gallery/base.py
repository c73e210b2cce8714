"""What a study of the gallery is, and what it finds.

A study takes one claim of one paper, runs it here, and says whether it holds. The claim, the criterion and the data are
written down before the run; the finding keeps the figures with their intervals, the machine and the versions.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np

from confide.errors import InputError

Size = Literal["small", "cpu", "full"]
Verdict = Literal["holds", "holds in part", "does not hold", "not decided"]


@dataclass(frozen=True)
class Figure:
    """One figure: what the paper says, what was found here, and the interval.

    Attributes
    ----------
    what : str
        With its unit.
    ours : float
    low, high : float, optional
        Interval over the repetitions or over people, as `note` says.
    paper : float or str, optional
        What the paper says; None where it gives no such figure.
    note : str
    """

    what: str
    ours: float
    low: float | None = None
    high: float | None = None
    paper: float | str | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the code of a study returns."""

    verdict: Verdict
    why: str
    figures: tuple[Figure, ...]
    curves: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """How a study is to be run.

    Attributes
    ----------
    size : "small", "cpu" or "full"
        "small" shows that it runs, in a minute on two cores, and never changes a kept verdict; "full" decides; "cpu"
        decides too, at the lesser size that the study names in its `cpu` and the finding repeats.
    data : Path, optional
        The paper's own data in its published format, where the study has a reader for it.
    seed : int
        For splits and initial weights; the noise of private training always comes from the operating system.
    device : str
    cache : Path, optional
        Folder in which a study may keep fixed features that take long to compute; as private as the data.
    say : function
        Takes a line of progress.
    """

    size: Size = "small"
    data: Path | None = None
    seed: int = 0
    device: str = "cpu"
    cache: Path | None = None
    say: Callable[[str], None] = lambda _line: None

    def rng(self, *more: int) -> np.random.Generator:
        """Return a generator of this seed for the given numbers."""
        return np.random.default_rng([self.seed, *more])


@dataclass(frozen=True)
class GalleryStudy:
    """One study of the gallery.

    Attributes
    ----------
    name, title : str
    paper : str
        Authors, title, place and year.
    claim : str
        In one sentence, as the paper has it.
    criterion : str
        When the claim counts as holding here, fixed before the run.
    data : str
        What it runs on.
    simulation : bool
        True where data or grouping are simulated; said wherever a figure is shown.
    own_data : str
        The published format that `--data` reads; empty where there is no reader.
    needs_data : bool
        True where no data come with the package, so that `--data` must be given.
    minutes : float
        About how long "full" takes on two cores.
    cpu : str
        What is less at the size "cpu", written down before the run; empty where there is no such size.
    run : function
        Takes a Context.
    """

    name: str
    title: str
    paper: str
    claim: str
    criterion: str
    data: str
    run: Callable[[Context], Outcome]
    simulation: bool = False
    own_data: str = ""
    needs_data: bool = False
    minutes: float = 5.0
    cpu: str = ""


@dataclass(frozen=True)
class Finding:
    """The outcome of a study with what is needed to judge and repeat it."""

    study: str
    claim: str
    criterion: str
    data: str
    simulation: bool
    size: Size
    verdict: Verdict
    why: str
    figures: tuple[Figure, ...]
    curves: dict[str, Any]
    seconds: float
    date: str
    machine: str
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """Read what `to_dict` wrote."""
        return cls(**{**values, "figures": tuple(Figure(**f) for f in values["figures"])})


def run_study_of_gallery(study: GalleryStudy, context: Context) -> Finding:
    """Run a study and keep what is needed to judge it.

    Raises
    ------
    InputError
        The study has no reader for data of one's own, the data are not there, or it has no such size.
    """
    if context.data is not None and not study.own_data:
        raise InputError(
            f"the study {study.name!r} has no reader for other data",
            where="--data",
            expected=f"nothing: it runs on {study.data}",
        )
    if context.size == "cpu" and not study.cpu:
        raise InputError(
            f"the study {study.name!r} has no size of its own for a CPU",
            where="--size",
            expected="small or full",
            remedy=f"confide studies run {study.name} --size full, about {study.minutes:g} minutes on two cores",
        )
    if study.needs_data and context.data is None:
        raise InputError(
            f"the data of {study.name!r} do not come with the package",
            where="--data",
            expected=study.own_data,
            remedy=f"confide studies run {study.name} --data FILE",
        )
    if context.data is not None and not context.data.exists():
        raise InputError(f"there is nothing at {context.data}", where="--data", expected=study.own_data)
    began = monotonic()
    outcome = study.run(context)
    return Finding(
        study=study.name,
        claim=study.claim,
        criterion=study.criterion,
        data=study.data if context.data is None else f"{context.data.name} ({study.own_data})",
        simulation=study.simulation and context.data is None,
        size=context.size,
        verdict=outcome.verdict,
        why=outcome.why,
        figures=outcome.figures,
        curves=outcome.curves,
        seconds=round(monotonic() - began, 1),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=_machine(context.device),
        versions=_versions(),
    )


def over_repetitions(
    what: str, values: Sequence[float], *, paper: float | str | None = None, share: bool = False
) -> Figure:
    """Return mean and 95% t-interval over repetitions (other noise, initial weights or splits).

    Parameters
    ----------
    what : str
    values : sequence of float
    paper : float or str, optional
    share : bool
        The values are bounded by 0 and 1 (an accuracy, an AUC, a coverage): the interval is then taken on the logit
        scale (delta method), where it cannot leave that range.

    Raises
    ------
    InputError
        Without values.
    """
    from scipy.stats import t

    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise InputError(f"no repetition gave a figure for {what!r}", expected="at least one")
    mean = float(x.mean())
    if x.size == 1:
        return Figure(what, mean, paper=paper, note="one repetition")
    half = float(t.ppf(0.975, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    note = f"mean of {x.size} repetitions, 95% t-interval"
    if not share:
        return Figure(what, mean, mean - half, mean + half, paper, note)
    low, high = within_one(mean, half)
    return Figure(what, mean, low, high, paper, f"{note} on the logit scale")


def within_one(mean: float, half: float) -> tuple[float, float]:
    """Return the interval ``mean +- half`` of a share, taken on the logit scale (delta method) and so within 0 and 1.

    >>> [round(end, 3) for end in within_one(0.9, 0.18)]
    [0.549, 0.985]
    >>> within_one(1.0, 0.0)
    (1.0, 1.0)
    """
    if not 0 < mean < 1:
        return mean, mean
    centre, reach = np.log(mean / (1 - mean)), half / (mean * (1 - mean))
    low, high = 1 / (1 + np.exp(-(centre + np.array([-reach, reach]))))
    return float(low), float(high)


def _machine(device: str) -> str:
    import os

    if device.startswith("cuda"):
        torch = importlib.import_module("torch")
        return str(torch.cuda.get_device_name(0))
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    out = {"python": platform.python_version()}
    for name in ("confide", "torch", "numpy", "scikit-learn"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out
