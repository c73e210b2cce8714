"""The processes of a study beside the first: they read the same data and help to train, and do nothing else.

The first process plans, holds the ledger, asks, writes and commits. A follower never opens the ledger and never writes
a file. What the two sides say to each other comes in this order; when one side fails, the other hears of it instead of
waiting:

1. the first tells the key of the data fingerprint; every process reads the data, and all must have read the same;
2. after the reservation the first tells plan and admitted contributors; all train; a search does this for every run;
3. the first tells where the committed release is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.planning import Plan
from confide.release import Release

if TYPE_CHECKING:
    from confide.studies.run import _Run
    from confide.training import Ranks


class Lead:
    """The first process's side; with one process alone it says nothing."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks
        self._heard = True  # whether the others wait for a message (and not for tensors)

    @property
    def several(self) -> bool:
        """True when there is anybody to talk to."""
        return self.ranks is not None and self.ranks.world > 1

    def ready(self, key: str, digest: Callable[[], str]) -> None:
        """Wait until every process has read the same data; nothing has been spent when this fails."""
        if self.ranks is None or not self.several:
            return
        self.ranks.from_first(lambda: {"key": key})
        self._heard = False
        self.ranks.together(lambda: None)
        self.ranks.same(digest(), "the data")
        self._heard = True

    def train(
        self, plan: Plan, admitted: Any, *, resume: bool, checkpoint: Path, pick: tuple[int, int] | None = None
    ) -> None:
        """Call the others to training, in a search with the run and its candidate; once for every run."""
        if self.ranks is None or not self.several:
            return
        told = {"plan": plan.to_dict(), "admitted": admitted, "resume": resume, "checkpoint": str(checkpoint)}
        told["pick"] = pick
        self.ranks.from_first(lambda: told)
        self._heard = False

    def trained(self) -> None:
        """Note that the others wait for a message again."""
        self._heard = True

    def release(self, act: Callable[[Lead], Release]) -> Release:
        """Do the first process's work, and tell the others how it ended."""
        ranks = self.ranks
        if ranks is None or not self.several:
            return act(self)
        try:
            release = act(self)
        except BaseException as error:
            if self._heard:
                with contextlib.suppress(BaseException):  # the error itself, or that nobody is left to hear it
                    ranks.from_first(partial(_fail, error))
            raise
        ranks.from_first(lambda: {"release": str(release.path)})
        return release


def message() -> dict[str, Any]:
    """Stand for what the first process says, where it is heard."""
    return {}


def _fail(error: BaseException) -> None:
    raise error


def follow(run: _Run, ranks: Ranks) -> Release:
    """Help the first process to train a study, and return the release that it made.

    Parameters
    ----------
    run : _Run
        The same study, not begun.
    ranks : Ranks

    Raises
    ------
    ConfideError
        What went wrong here or in the first process.
    """
    from confide.studies.measure import train_through
    from confide.studies.search import candidate_study

    told = ranks.from_first(message)
    if "key" in told:
        ranks.together(run.read)
        ranks.same(run.prepared.table.fingerprint(bytes.fromhex(told["key"])), "the data")
        told = ranks.from_first(message)
    while "plan" in told:
        number, study = None, run.study
        if told["pick"] is not None:
            number, candidate = told["pick"]
            study = candidate_study(run.study, candidate)
        model = run.model(study)
        trainer = run.trainer(
            model,
            Plan.from_dict(told["plan"]),
            study,
            admitted=told["admitted"],
            resume=told["resume"],
            checkpoint=Path(told["checkpoint"]),
            on_start=None,
            run=number,
        )
        train_through(trainer, model)
        told = ranks.from_first(message)
    return Release.load(Path(told["release"]))
