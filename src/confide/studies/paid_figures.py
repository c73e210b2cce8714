"""What a study pays for besides the training: labels, a temperature, metrics on held-out people, entry counts."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee, Laplace
from confide.contributors import ContributorIndex
from confide.errors import BudgetError
from confide.ledger import Ledger
from confide.planning import Plan
from confide.release import Spent
from confide.studies import state as states
from confide.studies.evaluation_section import Paid
from confide.studies.file import Study
from confide.studies.measure import paid_auroc
from confide.studies.opening import flow_of
from confide.studies.predict import paid_temperature, predictor_of
from confide.studies.prepare import Prepared
from confide.studies.training_section import neuraldp_of
from confide.studies.watch import Watcher

if TYPE_CHECKING:
    from confide.training import TrainingResult


class PaidFigures:
    """The part of a run that buys figures; what it stands on belongs to the run."""

    study: Study
    state: states.RunState
    prepared: Prepared
    ledger: Ledger
    internal: Path
    watcher: Watcher
    outputs: int
    further: list[str]

    def _paid_counts(self) -> dict[int, float]:
        """Buy the entry-count histogram: reserved, noised and committed before the plan is made from it."""
        if self.state.paid_histogram is not None:
            return {int(k): n for k, n in self.state.paid_histogram.items()}
        from confide.mechanisms import release_entry_counts

        paid = self.study.public.entry_counts
        assert isinstance(paid, Paid)
        assert self.study.public.max_entries is not None
        index = self.prepared.table.index
        cost = Laplace(1.0 / paid.epsilon)
        self.watcher.say(f"A noisy histogram of entry counts costs every contributor epsilon {paid.epsilon:g} first.")
        reservation = self.ledger.reserve(
            release=f"{self.state.name} entry counts",
            contributors=index.ids.tolist(),
            class_of=np.zeros(index.n_contributors, dtype=np.int64),
            classes=[cost.guarantee()],
            data_set=self.data_set(),
            exhausted="drop",
            **flow_of(self.study),
            idempotency_key=f"{self.state.name}/entry-counts",
        )
        self.state.histogram_reservation = reservation.id
        states.save(self.internal, self.state)
        self.ledger.start(reservation.id)
        kept, _ = index.subset(reservation.admitted)
        noisy = release_entry_counts(
            kept, self.study.public.max_entries, paid.epsilon, noise=self._noise("entry counts")
        )
        self.state.paid_histogram = {str(k): float(n) for k, n in noisy.value.items()}
        states.save(self.internal, self.state)
        digest = hashlib.sha256(repr(sorted(self.state.paid_histogram.items())).encode()).hexdigest()
        self.ledger.commit(reservation.id, release_hash=digest)
        return {int(k): n for k, n in self.state.paid_histogram.items()}

    def _labels(self) -> npt.NDArray[np.int64]:
        labels = self.prepared.table.labels
        assert labels is not None
        return labels

    def data_set(self) -> str:
        """Return the names of the study's data sets, one after the other."""
        return ", ".join(dict.fromkeys(spec.label for spec in self.study.data))

    def labels_spent(self) -> tuple[Spent, Guarantee] | None:
        """What randomised response on the labels costs, where a study releases activations."""
        noised = neuraldp_of(self.study)
        cost = None if noised is None else noised.label_mechanism()
        if cost is None:
            return None
        spent = Spent(
            what="label of one entry, by randomised response", mechanism=cost.to_dict(), who="every contributor"
        )
        return spent, cost.guarantee()

    def _predictor(self, plan: Plan, model: Any, result: TrainingResult) -> tuple[Any, list[Any]]:
        """The model that leaves: with its snapshots, and a temperature that validation contributors paid for."""
        wanted = self.study.training.temperature
        if not result.snapshots and wanted is None:
            return model, []
        predictor = predictor_of(model, result.snapshots, outputs=self.outputs)
        if wanted is None:
            return predictor, []
        also = [] if self.state.paid_histogram is None else [self._histogram_spent()[1]]
        return predictor, paid_temperature(
            predictor,
            self.prepared,
            epsilon=wanted.epsilon,
            delta=plan.delta,
            outputs=self.outputs,
            noise=self._noise("temperature"),
            also=also,
            reserve=partial(self._reserve_metrics, "temperature"),
        )

    def _paid_metrics(self, plan: Plan, scores: npt.NDArray[np.float64]) -> list[Any]:
        wanted = self.study.evaluation.metrics
        if not isinstance(wanted, Paid):
            return []
        also = [] if self.state.paid_histogram is None else [self._histogram_spent()[1]]
        return paid_auroc(
            unit=self.study.evaluation.unit,
            labels=self._labels()[self.prepared.held_out],
            scores=scores,
            index=self.prepared.held_out_index,
            epsilon=wanted.epsilon,
            delta=plan.delta,
            noise=self._noise("metrics"),
            also=also,
            reserve=partial(self._reserve_metrics, "metrics"),
        )

    def _noise(self, stream: str) -> Any:
        """Noise of a paid figure, of the kind the study names; a resumed run draws the same noise again."""
        from confide.mechanisms import noise_for_step

        return noise_for_step(
            bytes.fromhex(self.state.key), 0, secure=self.study.privacy.noise == "secure", stream=stream
        )

    def _reserve_metrics(self, what: str, index: ContributorIndex, guarantee: Guarantee) -> npt.NDArray[np.bool_]:
        """Charge contributors who were not trained on; where nobody has balance the figures are noise alone."""
        try:
            reservation = self.ledger.reserve(
                release=f"{self.state.name} {what}",
                contributors=index.ids.tolist(),
                class_of=np.zeros(index.n_contributors, dtype=np.int64),
                classes=[guarantee],
                data_set=self.data_set(),
                exhausted="drop",
                **flow_of(self.study),
                idempotency_key=f"{self.state.name}/{what}",
            )
        except BudgetError:
            return np.zeros(index.n_contributors, dtype=np.bool_)
        self.ledger.start(reservation.id)
        self.further.append(reservation.id)
        return reservation.admitted

    def _histogram_spent(self) -> tuple[Spent, Guarantee]:
        paid = self.study.public.entry_counts
        assert isinstance(paid, Paid)
        cost = Laplace(1.0 / paid.epsilon)
        return (
            Spent(what="noisy histogram of entry counts", mechanism=cost.to_dict(), who="every contributor"),
            cost.guarantee(),
        )
