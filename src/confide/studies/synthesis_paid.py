"""How useful a synthetic table is, as a figure that may leave: paid for by the patients who were set aside.

A model is trained on the synthetic table, which costs nothing, and predicts for every patient set aside. AUROC,
accuracy and prevalence are read from one histogram of (score, outcome) in which each patient has the weight 1 in all,
released with Gaussian noise (`confide.evaluation.paid`). These patients took no part in the synthesis, so that nobody
pays both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from confide.accounting import Guarantee
from confide.contributors import ContributorIndex
from confide.errors import BudgetError
from confide.evaluation.tables import CodedTable
from confide.ledger import Ledger
from confide.mechanisms import NoiseSource, SeededNoise, noise_for_step
from confide.release import PaidMetric
from confide.studies import state
from confide.studies.measure import paid_auroc
from confide.studies.opening import flow_of
from confide.studies.tables_models import positive_cells
from confide.studies.tables_read import visit_table
from confide.synthesis.coding import Coded
from confide.synthesis.domain import Floats, Panel
from confide.synthesis.sections import PaidFigure
from confide.synthesis.study import SynthesisStudy

BINS = 20
PENALTY = 1.0
STEPS = 200
_METRICS_STREAM = 10**6


@dataclass(frozen=True, eq=False)
class Logistic:
    """Logistic regression on one column for every value of every predictor; made from a synthetic table alone."""

    names: tuple[str, ...]
    cells: tuple[int, ...]
    weights: Floats

    @classmethod
    def fit(cls, table: CodedTable, names: tuple[str, ...], y: npt.NDArray[np.bool_]) -> Logistic:
        """Fit with a fixed ridge penalty."""
        cells = tuple(table.cells[name] for name in names)
        places, size = _places(table, names, cells), sum(cells) + 1
        target = y.astype(np.float64)

        def loss(weights: Floats) -> tuple[float, Floats]:
            logit = weights[places].sum(axis=1)
            gap = special.expit(logit) - target
            value = float(np.logaddexp(0.0, logit).sum() - logit @ target + PENALTY * (weights @ weights) / 2)
            slope = np.bincount(places.ravel(), np.repeat(gap, places.shape[1]), size)
            return value, slope + PENALTY * weights

        found = optimize.minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
        return cls(names, cells, np.asarray(found.x, dtype=np.float64))

    def scores(self, table: CodedTable) -> Floats:
        """Return the probability of the outcome for every row."""
        return np.asarray(special.expit(self.weights[_places(table, self.names, self.cells)].sum(axis=1)))


def _places(table: CodedTable, names: tuple[str, ...], cells: tuple[int, ...]) -> npt.NDArray[np.int64]:
    starts = np.concatenate([[0], np.cumsum(cells)]).astype(np.int64)
    columns = [table.columns[name] + start for name, start in zip(names, starts, strict=False)]
    return np.column_stack([*columns, np.full(len(table.patient), starts[-1])]).astype(np.int64)


@dataclass(frozen=True, repr=False, eq=False)
class Buyer:
    """What a paid figure stands on: the patients set aside (private), the ledger, and the run that remembers it."""

    study: SynthesisStudy
    held_out: Coded | None
    ledger: Ledger
    run: state.RunState
    save: Any

    def figures(self, synthetic: Panel) -> list[PaidMetric]:
        """Buy the figures of a drawn table once; a resumed run has those that were bought."""
        wanted = self.study.evaluation.metrics
        if not isinstance(wanted, PaidFigure) or self.held_out is None:
            return []
        if (bought := self.run.extra.get("metrics")) is not None:
            return [PaidMetric.model_validate(one) for one in bought]
        made = self._buy(wanted.epsilon, synthetic, self.held_out)
        self.run.extra["metrics"] = [one.model_dump(mode="json") for one in made]
        self.save()
        return made

    def _buy(self, epsilon: float, synthetic: Panel, held_out: Coded) -> list[PaidMetric]:
        study = self.study
        outcome = study.evaluation.outcome or study.method.target
        assert outcome is not None
        made, real = visit_table(Coded(synthetic, np.zeros(0, dtype=np.str_), None)), visit_table(held_out)
        positive, words = positive_cells(study, outcome)
        survival = study.evaluation.survival
        hidden = {outcome} | ({survival.time} if survival is not None else set())
        seen = study.evaluation.predictors
        names = tuple(name for name in made.columns if name not in hidden and (seen is None or name in seen))
        model = Logistic.fit(made, names, np.isin(made.columns[outcome], positive))
        # borders from the synthetic table, so that scores are spread over the bins: public like the table
        inner = np.unique(np.quantile(model.scores(made), np.linspace(0, 1, BINS + 1)[1:-1]).round(6))
        # and 0.5, at which accuracy is asked for: at the nearest border it would be another figure
        edges = np.unique([0.0, *inner[(inner > 0) & (inner < 1)], 0.5, 1.0])
        owners = held_out.ids[real.patient]
        unit: Literal["contributor", "entry"] = "contributor" if outcome in study.features(study.patients) else "entry"
        figures = paid_auroc(
            unit=unit,
            labels=np.isin(real.columns[outcome], positive).astype(np.int64),
            scores=model.scores(real),
            index=ContributorIndex.from_labels(owners.tolist()) if len(owners) else None,
            epsilon=epsilon,
            delta=study.delta,
            noise=self._noise(),
            also=[],
            reserve=self._reserve,
            edges=edges,
        )
        what = (
            f"what a logistic regression that was trained on the synthetic table says of {outcome} = {', '.join(words)}"
        )
        return [one.model_copy(update={"note": f"{what}; {one.note}"}) for one in figures]

    def _noise(self) -> NoiseSource:
        if self.study.privacy.seed is not None:
            return SeededNoise(self.study.privacy.seed + _METRICS_STREAM)
        secure = self.study.privacy.noise == "secure"
        return noise_for_step(bytes.fromhex(self.run.key), 0, secure=secure, stream="metrics")

    def _reserve(self, index: ContributorIndex, guarantee: Guarantee) -> npt.NDArray[np.bool_]:
        """Charge the patients set aside; where nobody has balance the figures are noise alone."""
        from confide.studies.synthesis_run import data_set_of

        try:
            reservation = self.ledger.reserve(
                release=f"{self.study.name} metrics",
                contributors=index.ids.tolist(),
                class_of=np.zeros(index.n_contributors, dtype=np.int64),
                classes=[guarantee],
                data_set=data_set_of(self.study),
                exhausted="drop",
                **flow_of(self.study),
                idempotency_key=f"{self.run.name}/metrics",
            )
        except BudgetError:
            return np.zeros(index.n_contributors, dtype=np.bool_)
        self.run.extra["further"] = reservation.id
        self.save()
        self.ledger.start(reservation.id)
        return np.asarray(reservation.admitted, dtype=np.bool_)
