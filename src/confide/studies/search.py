"""A private search inside a study: candidates, the secret number of runs, the noisy score, and only the winner.

The number of runs and the candidate of each run are drawn by the operating system's randomness before data are read,
and kept in the run's private state: a resumed run does not draw again. Of a finished run only the best so far is kept,
in the private run folder; losers are deleted as soon as they have lost. Nothing of this but the winner reaches the
release folder: not the number of runs, not a score, not a loser.

The score of a run is a sum over the training contributors of how well the model does on them, each between -1/2 and
1/2 (all entries of a person together), with Gaussian noise. So one person moves it by at most 1/2.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.mechanisms import NoiseSource, OSNoise, SeededNoise, draw_runs
from confide.release import AssumedPublic
from confide.studies.file import Candidate, SearchSection, Study

__all__ = [
    "SENSITIVITY",
    "WINNER_FILE",
    "Progress",
    "begin",
    "candidate_study",
    "facts",
    "noisy_score",
    "seed_of_run",
    "winner_file",
    "winner_study",
]

F64 = npt.NDArray[np.float64]
#: How much one contributor can move a score before the noise.
SENSITIVITY = 0.5
WINNER_FILE = "winner.json"


@dataclass
class Progress:
    """How far a search came: private, never in a release.

    Attributes
    ----------
    picks : list of int
        Candidate of each run; its length is the secret number of runs.
    done : int
        Runs that are finished and scored.
    begun : int
        The last run that has read data; -1: none.
    best : int
        The run with the best score so far; -1: none.
    score : float
        Its noisy score.
    """

    picks: list[int]
    done: int = 0
    begun: int = -1
    best: int = -1
    score: float = -np.inf

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the private state (a score of minus infinity as null)."""
        return {**asdict(self), "score": self.score if np.isfinite(self.score) else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Read what `to_dict` gave."""
        return cls(**{**values, "score": -np.inf if values["score"] is None else values["score"]})

    def finish(self, run: int, score: float) -> bool:
        """Take the score of a run; True if it is the best so far."""
        self.done = run + 1
        if not score > self.score:
            return False
        self.best, self.score = run, score
        return True


def begin(search: SearchSection, seed: int | None) -> Progress:
    """Draw the number of runs and the candidate of each: once, before anything is read."""
    noise: NoiseSource = OSNoise() if seed is None else SeededNoise(seed)
    return Progress(draw_runs(noise, candidates=len(search.candidates), **search.terms().terms))


def seed_of_run(seed: int | None, run: int) -> int | None:
    """Return a seed of its own for each run of a study with a seed (which is for testing only)."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.blake2b(f"search {seed} {run}".encode(), digest_size=6).digest(), "little")


def candidate_study(study: Study, number: int) -> Study:
    """Return the study with one candidate's settings in place of its own."""
    assert study.search is not None
    chosen: Candidate = study.search.candidates[number]
    changes: dict[str, Any] = {}
    for section, override in (("optimizer", chosen.optimizer), ("model", chosen.model), ("privacy", chosen.privacy)):
        given = {} if override is None else {k: v for k, v in override.model_dump().items() if v is not None}
        if given:
            changes[section] = getattr(study, section).model_copy(update=given)
    return study.model_copy(update=changes)


def noisy_score(
    probabilities: F64,
    labels: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    admitted: npt.NDArray[np.bool_],
    *,
    score: str,
    noise_multiplier: float,
    noise: NoiseSource,
) -> float:
    """Return the noisy score of a model on the training contributors; larger is better.

    Parameters
    ----------
    probabilities : float array, shape (entries,) or (entries, classes)
    labels : int array, shape (entries,)
    owners : int array, shape (entries,)
        Position of each entry's contributor in `admitted`.
    admitted : bool array, shape (contributors,)
        Others add nothing.
    score : str
        "brier": 1 minus the (halved, for several classes) squared error; "accuracy": 1 where the class is right.
    noise_multiplier : float
        Standard deviation of the noise over `SENSITIVITY`.
    noise : NoiseSource
    """
    scale = noise_multiplier * SENSITIVITY
    room = SENSITIVITY - noise.margin(1, scale=scale)
    each = _each(np.asarray(probabilities, dtype=np.float64), labels, score)
    people = len(admitted)
    number = np.bincount(owners, minlength=people)
    mean = np.bincount(owners, weights=each, minlength=people) / np.maximum(number, 1)
    # a value that is not finite counts as neither good nor bad; a person without entries adds nothing
    parts = np.where(admitted & (number > 0), np.clip(np.nan_to_num(mean, nan=0.5) - 0.5, -room, room), 0.0)
    return float(noise.add_normal(np.array([parts.sum()]), scale=scale)[0])


def _each(probabilities: F64, labels: npt.NDArray[np.int64], score: str) -> F64:
    """Return how well every entry is predicted, between 0 and 1."""
    if probabilities.ndim == 1:
        right, error = (probabilities >= 0.5) == (labels == 1), (probabilities - labels) ** 2
    else:
        truth = np.eye(probabilities.shape[1])[labels]
        right, error = probabilities.argmax(axis=1) == labels, ((probabilities - truth) ** 2).sum(axis=1) / 2
    value = right.astype(np.float64) if score == "accuracy" else 1 - error
    return np.asarray(np.clip(np.where(np.isfinite(error), value, 0.5), 0.0, 1.0))


def winner_file(study: Study, progress: Progress) -> dict[str, Any]:
    """Return what the release says of the winner: which candidate, and its settings."""
    assert study.search is not None
    if progress.best < 0:
        return {
            "candidate": None,
            "settings": study.search.candidates[0].model_dump(exclude_none=True, exclude_defaults=True),
            "note": "the law drew no run at all, which says nothing about the data: this is the untrained model of the "
            "first candidate, with its public initial weights",
        }
    number = progress.picks[progress.best]
    chosen = study.search.candidates[number].model_dump(exclude_none=True, exclude_defaults=True)
    return {
        "candidate": number + 1,
        "settings": chosen,
        "note": "the best of a secret number of runs, by a noisy score",
    }


def winner_study(study: Study, path: Path) -> Study:
    """Return the study of a release with its winner's settings in place."""
    if study.search is None:
        return study
    number = json.loads(path.read_text(encoding="utf-8"))["candidate"]
    return candidate_study(study, 0 if number is None else number - 1)


def facts(study: Study) -> list[AssumedPublic]:
    """What a search takes as public knowledge."""
    search = study.search
    if search is None:
        return []
    here = "declared in the study file"
    chosen = [c.model_dump(exclude_none=True, exclude_defaults=True) for c in search.candidates]
    return [
        AssumedPublic(what="candidates of the hyper-parameter search", value=chosen, source=here),
        AssumedPublic(what="law of the number of runs", value=search.terms().to_dict(), source=here),
        AssumedPublic(
            what="score of a run",
            value=f"{search.score}, a sum over training contributors in which each counts between -1/2 and 1/2, with "
            f"Gaussian noise of standard deviation {search.score_noise_multiplier * SENSITIVITY:g}",
            source=here,
        ),
    ]
