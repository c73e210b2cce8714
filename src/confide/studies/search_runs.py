"""The runs of a private search inside a study: every run that was drawn, the best kept, the others forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.planning import Plan
from confide.studies import search as searching
from confide.studies import state as states
from confide.studies.file import Study
from confide.studies.models import probabilities
from confide.studies.paid_figures import PaidFigures

if TYPE_CHECKING:
    from confide.training import TrainingResult


class SearchRuns(PaidFigures):
    """The part of a run that searches; training itself belongs to the run."""

    internal: Path

    if TYPE_CHECKING:

        @property
        def _checkpoint(self) -> Path: ...

        def model(self, study: Study) -> Any:
            """Make the model of a study."""

        def _train(
            self, plan: Plan, study: Study, admitted: npt.NDArray[np.bool_], *, resume: bool, run: int | None = None
        ) -> tuple[Any, TrainingResult]: ...

    def _search(self, plan: Plan, admitted: npt.NDArray[np.bool_]) -> tuple[Any, TrainingResult, dict[str, Any]]:
        """Make every run that was drawn, keep the best by its noisy score, forget the others."""
        from confide.training import TrainingResult
        from confide.training.checkpoint import delete_checkpoint, read_checkpoint, write_checkpoint

        assert self.study.search is not None
        progress = self._progress()
        folder = states.run_folder(self.internal, self.state.name)
        while progress.done < len(progress.picks):
            run = progress.done
            study = searching.candidate_study(self.study, progress.picks[run])
            model, result = self._train(plan, study, admitted, resume=True, run=run)
            progress, before = self._progress(), self._progress().best
            if progress.finish(run, self._score(model, admitted, run)):
                kept = {"state": result.state_dict, "internal": result.internal, "testing": result.testing_only}
                write_checkpoint(folder / f"best-{run}.pt", kept)
            checkpoint = self._checkpoint
            self._keep(progress)
            delete_checkpoint(checkpoint)
            if before not in (-1, progress.best):
                delete_checkpoint(folder / f"best-{before}.pt")
        winner = searching.winner_file(self.study, progress)
        if progress.best < 0:
            nothing: dict[str, Any] = {"loss": [], "entries": [], "units": [], "nonfinite": 0}
            model = self.model(searching.candidate_study(self.study, 0))
            testing = self.study.privacy.seed is not None
            return model, TrainingResult(dict(model.state_dict()), 0, testing, nothing), winner
        found = read_checkpoint(folder / f"best-{progress.best}.pt")
        model = self.model(searching.candidate_study(self.study, progress.picks[progress.best]))
        model.load_state_dict(found["state"])
        return model, TrainingResult(found["state"], plan.steps, bool(found["testing"]), found["internal"]), winner

    def _score(self, model: Any, admitted: npt.NDArray[np.bool_], run: int) -> float:
        """One noisy score of a finished run on the people it was trained on; a resumed run repeats its noise."""
        assert self.study.search is not None
        rows = self.prepared.train
        return searching.noisy_score(
            probabilities(model, self.prepared.inputs[rows], outputs=self.outputs),
            self._labels()[rows],
            self.prepared.train_index.of_entry,
            admitted,
            score=self.study.search.score,
            noise_multiplier=self.study.search.score_noise_multiplier,
            noise=self._noise(f"score of run {run}"),
        )

    def variants(self) -> list[Study]:
        """The study itself, or with each candidate's settings in place."""
        if self.study.search is None:
            return [self.study]
        return [searching.candidate_study(self.study, i) for i in range(len(self.study.search.candidates))]

    def _progress(self) -> searching.Progress:
        return searching.Progress.from_dict(self.state.extra["search"])

    def _keep(self, progress: searching.Progress, *, write: bool = True) -> None:
        self.state.extra["search"] = progress.to_dict()
        if write:
            states.save(self.internal, self.state)

    def _lost(self) -> bool:
        """Tell whether the run had begun to read data and what it needs to go on is gone."""
        if self.study.search is None:
            return not self._checkpoint.exists()
        progress = self._progress()
        if progress.begun == progress.done and not self._checkpoint.exists():
            return True
        best = states.run_folder(self.internal, self.state.name) / f"best-{progress.best}.pt"
        return progress.best >= 0 and not best.exists()
