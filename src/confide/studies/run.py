"""Running a study: plan, reserve, train, certify, report, commit; and going on after a crash.

The order is the promise. Everything that can be wrong is found first; then the price is shown and accepted; then the
ledger charges everybody; only then is the first private batch drawn. The release folder appears in one step, and the
ledger's commit binds its hash. A run that is killed anywhere stays reserved, and ``resume`` goes on from where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee, compose
from confide.data import Table
from confide.errors import BudgetError, InputError, RunError
from confide.planning import Plan
from confide.release import LedgerReference, Release, Spent, outside_releases
from confide.report import InternalFigures
from confide.studies import search as searching
from confide.studies import state as states
from confide.studies.evaluation_section import Paid
from confide.studies.file import Study, load_study
from confide.studies.follow import Lead, follow
from confide.studies.measure import measure, train_through
from confide.studies.models import build_model, fixed_features, require_torch
from confide.studies.opening import check_ledger, flow_of, noted, open_ledger, refuse_unconfirmed
from confide.studies.people import classes_for, dataset_of
from confide.studies.prepare import declared_counts, histogram_source, holdout_key, make_plan, prepare
from confide.studies.price import price_lines
from confide.studies.resuming import already_written, same_data, same_plan, same_study
from confide.studies.search_runs import SearchRuns
from confide.studies.targets import answers_of, loss_of, schema_of
from confide.studies.training_section import methods_of, neuraldp_of, optimizer_of
from confide.studies.watch import Outcome, Price, Quiet, Watcher, outcome_of, spent_note
from confide.studies.write import assemble

if TYPE_CHECKING:
    from confide.training import TrainingResult
    from confide.training.methods import NeuralDP


def run_study(
    path: str | Path,
    *,
    watcher: Watcher | None = None,
    resume: bool = False,
    ledger_url: str | None = None,
    device: str | None = None,
    output: str | Path | None = None,
    _replace: tuple[Study, str, Path, Path] | None = None,
) -> Outcome:
    """Run a study file from data to a committed release.

    Parameters
    ----------
    path : path
        The study file.
    watcher : Watcher, optional
        Sees the price and the progress; default: accepts and says nothing.
    resume : bool
        Go on with the latest unfinished run of this study.
    ledger_url, device, output : optional
        Instead of what the study says.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        Something is wrong with study, data, model or loss; nothing was spent.
    BudgetError
        The ledger admits nobody (or not everybody, with ``exhausted = "refuse"``); nothing was spent.
    RunError
        Interrupted or failed after the reservation: it stays counted.
    """
    path = Path(path)
    where: Path | None = None
    if _replace is not None:  # a rehearsal brings its own data
        study, text, base, where = _replace
    else:
        study, text, base = load_study(path), path.read_text(encoding="utf-8"), path.parent
        refuse_unconfirmed(text, where=str(path))
        if os.environ.get("RANK", "0") == "0":  # of several processes only the first knows the ledger
            check_ledger(study, base, ledger_url, resume=resume)
    require_torch()
    from confide.training import Ranks, join

    run = _Run(study, text, base, watcher or Quiet(), ledger_url, device, Path(output) if output else None)
    run.declared = where or base
    ranks = Ranks() if _replace is not None else join(run.device)
    run.lead = Lead(ranks)
    if not ranks.first:
        return outcome_of(follow(run, ranks))
    return outcome_of(run.lead.release(lambda _: run.go(resume=resume).release))


class _Run(SearchRuns):
    """One run of a study; its steps in order."""

    def __init__(
        self,
        study: Study,
        text: str,
        base: Path,
        watcher: Watcher,
        ledger_url: str | None,
        device: str | None,
        output: Path | None,
    ) -> None:
        self.study, self.text, self.base, self.watcher = study, text, base, watcher
        self.declared = (
            base  # where declared files (entry counts, a model's module) lie; a rehearsal keeps the real one
        )
        self.device = device or study.engine.device
        self.releases = (output or base / study.output.dir).absolute()
        outside_releases(self.releases)
        self.internal = self.releases.parent / "internal"
        self.ledger_url = ledger_url
        self.further: list[str] = []  # reservations of figures about people who were not trained on
        self.lead = Lead()

    def go(self, *, resume: bool) -> Outcome:
        self.ledger = open_ledger(self.study, self.base, self.ledger_url)
        try:
            if resume:
                self.state = states.pick(self.internal, self.study.name)
                with states.alone(self.internal, self.state):
                    same_study(self)
                    finished = self._already_written()
                    return finished if finished is not None else self._run(resume=True)
            self.state = states.RunState(states.new_name(self.study.name), self.sha(), secrets.token_hex(32))
            if self.study.search is not None:
                # before anything is read; a resumed run finds it in its state and never draws again
                self._keep(searching.begin(self.study.search, self.study.privacy.seed), write=False)
            with states.alone(self.internal, self.state):
                return self._run(resume=False)
        finally:
            self.ledger.close()

    # -- before anything is spent -------------------------------------------------------------------------------------

    def _run(self, *, resume: bool) -> Outcome:
        table = self.read()
        same_data(self, resume)
        self.lead.ready(self.state.key, lambda: table.fingerprint(bytes.fromhex(self.state.key)))
        plan = self._plan()
        same_plan(self, plan, resume)
        for study in self.variants():
            model = self.model(study)
            trainer = self.trainer(
                model, plan, study, admitted=None, resume=False, checkpoint=None, on_start=None, alone=True
            )
            trainer.rehearse()  # model and loss are refused here, before anything is spent
        classes, class_of = classes_for(plan, self.prepared.train_index, self.prepared.budgets)
        if (labels := self.labels_spent()) is not None:
            classes = [compose([one, labels[1]]) for one in classes]
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        reservation = self._reserve(plan, classes, class_of, resume=resume, parameters=parameters)
        return self._train_and_release(plan, reservation.admitted, resume=resume)

    def read(self) -> Table:
        """Read and check the data; every process of a run does this."""
        self.prepared = prepare(self.study, base=self.base, holdout_key=holdout_key(self.study, None))
        table = self.prepared.table
        bound = self.study.public.max_contributors
        if bound is not None and table.index.n_contributors > bound:
            raise InputError(
                "there are more contributors than the declared upper bound",
                where="[public] max_contributors",
                expected="a public upper bound that holds: delta and the divisor rest on it",
                remedy="declare a bound that is known to hold without counting these data",
            )
        if table.labels is None:
            raise InputError(
                "no column has the role label",
                where="[columns]",
                expected='one column with role = "label" and its classes',
            )
        self.outputs = schema_of(self.study).n_outputs
        if isinstance(self.study.evaluation.metrics, Paid) and self.outputs != 1:
            raise InputError(
                "paid metrics are made for a yes/no label",
                where="[evaluation] metrics",
                expected="a label with `positive` classes",
                remedy='declare which classes count as positive, or set metrics = "internal"',
            )
        self.prepared.features = fixed_features(self.study, table.features, outputs=self.outputs, base=self.declared)
        self.dataset = dataset_of(self.prepared)
        return table

    def _plan(self) -> Plan:
        """The plan from declared, paid, previewed or no entry counts."""
        source = histogram_source(self.study)
        counts: dict[int, float] | None = None
        if source == "public":
            counts = declared_counts(self.study, self.declared)
        elif source == "paid":
            counts = self._paid_counts()
        elif source == "preview":
            ks, ns = np.unique(self.prepared.table.index.counts, return_counts=True)
            counts = {int(k): float(n) for k, n in zip(ks, ns, strict=True)}
        return make_plan(self.study, counts, source)

    def _reserve(
        self,
        plan: Plan,
        classes: Sequence[Guarantee],
        class_of: npt.NDArray[np.int64],
        *,
        resume: bool,
        parameters: int,
    ) -> Any:
        people = self.prepared.train_index.ids.tolist()
        if resume and self.state.reservation is not None:
            kept = self.ledger.resume(self.state.reservation, people)
            if kept.state == "started" and self._lost():
                raise RunError(
                    "the checkpoint of this run is gone, and the run had begun to read data",
                    where=str(self._checkpoint),
                    expected="the checkpoint, so that the run goes on with the noise it began with",
                    remedy="put it back; without it only a new run can be made (this reservation stays counted), as a "
                    "second model under one charge would not be covered",
                )
            return kept
        if not self.watcher.price(Price(plan, price_lines(self, plan, parameters))):
            raise InputError("the price was not accepted: nothing was reserved", where="the question above")
        self.state.plan_fingerprint = plan.fingerprint()
        self.state.data_fingerprint = self.prepared.table.fingerprint(bytes.fromhex(self.state.key))
        states.save(self.internal, self.state)
        try:
            reservation = self.ledger.reserve(
                release=self.state.name,
                contributors=people,
                class_of=class_of,
                classes=classes,
                data_set=self.data_set(),
                exhausted=self.study.ledger.exhausted,
                **flow_of(self.study),
                idempotency_key=self.state.name,
            )
        except (BudgetError, InputError):
            # an earlier attempt may have been charged under this key: the run stays the way back to that charge
            if self.state.paid_histogram is None and not resume:
                states.forget(self.internal, self.state)
            raise
        self.state.reservation, self.state.stage = reservation.id, "reserved"
        states.save(self.internal, self.state)
        if reservation.dropped:
            self.watcher.say(
                f"[internal] {reservation.dropped} contributors have no balance left and take no part; "
                "all divisors stay as planned."
            )
        return reservation

    # -- after the reservation ----------------------------------------------------------------------------------------

    def _train_and_release(self, plan: Plan, admitted: npt.NDArray[np.bool_], *, resume: bool) -> Outcome:
        assert self.state.reservation is not None
        reservation = self.state.reservation
        table = self.prepared.table
        began = time.monotonic()
        winner: dict[str, Any] | None = None
        if self.study.search is None:
            model, result = self._train(plan, self.study, admitted, resume=resume)
        else:
            model, result, winner = self._search(plan, admitted)
        seconds = time.monotonic() - began
        # a run whose every step was done before a crash does not start the ledger again; the charge must stand anyway
        self.ledger.start(reservation)
        model.eval()
        spent: list[tuple[Spent, Guarantee]] = []
        if self.state.paid_histogram is not None:
            spent.append(self._histogram_spent())
        if (labels := self.labels_spent()) is not None:
            spent.append(labels)
        self.watcher.say("evaluating on held-out contributors")
        model, temperature = self._predictor(plan, model, result)
        scores = answers_of(self.study, model, self.prepared.inputs[self.prepared.held_out])
        metrics = [*temperature, *self._paid_metrics(plan, scores)]
        try:
            figures = measure(
                self.study,
                self.prepared,
                plan=plan,
                result=result,
                scores=scores,
                outputs=self.outputs,
                base=self.declared,
                admitted=admitted,
                seconds=seconds,
                watcher=self.watcher,
                device=self.device,
            )
        except Exception as error:  # exact figures about held-out people must never decide whether a release is made
            figures = InternalFigures(name=self.study.name, notes=[f"the internal figures failed: {error!r}"])
        # where `confide evaluate` finds data and ledger again; internal, like all of these figures
        found_again = {"base": str(self.base.absolute()), **noted(self.ledger)}
        figures = figures.model_copy(update={"extra": {**figures.extra, **found_again}})
        release = assemble(
            self.study,
            self.text,
            plan=plan,
            model=model,
            testing_only=result.testing_only,
            charged=spent,
            metrics=metrics,
            receipt=LedgerReference(ledger=self.ledger.id, reservation=reservation),
            figures=figures,
            releases=self.releases,
            final_name=self.state.name,
            feature_names=table.feature_names,
            winner=winner,
            arithmetic=result.arithmetic,
        )
        return self._commit(release)

    def _train(
        self, plan: Plan, study: Study, admitted: npt.NDArray[np.bool_], *, resume: bool, run: int | None = None
    ) -> tuple[Any, TrainingResult]:
        """Train one model under the plan, or go on with it."""
        checkpoint, model = self._checkpoint, self.model(study)
        going_on = resume and checkpoint.exists()

        def start() -> None:
            assert self.state.reservation is not None
            self.ledger.start(self.state.reservation)
            if run is not None:
                progress = self._progress()
                progress.begun = run
                self._keep(progress)

        pick = None if run is None else (run, self._progress().picks[run])
        self.lead.train(plan, admitted, resume=going_on, checkpoint=checkpoint, pick=pick)
        trainer = self.trainer(
            model,
            plan,
            study,
            admitted=admitted,
            resume=going_on,
            checkpoint=checkpoint,
            on_start=start,
            run=run,
        )
        self.watcher.begin("training" if run is None else "private search: one of a secret number of runs", plan.steps)
        result = self._loop(trainer, model)
        self.lead.trained()
        self.watcher.end()
        if self.study.engine.shards:  # its weights are on several processes: what follows wants it whole, here
            model = self.model(study)
            model.load_state_dict(result.state_dict)
        return model, result

    def model(self, study: Study) -> Any:
        """Make the model of a study or of one of its candidates."""
        return build_model(study, inputs=self.prepared.table.input_shape, outputs=self.outputs, base=self.declared)

    def _commit(self, release: Release) -> Outcome:
        reservation = release.certificate.ledger.reservation if release.certificate.ledger else self.state.reservation
        assert reservation is not None
        self.ledger.commit(reservation, release_hash=release.digest)
        for other in self.further:
            self.ledger.commit(other, release_hash=release.digest)
        states.forget(self.internal, self.state)
        return outcome_of(release)

    def _loop(self, trainer: Any, model: Any) -> TrainingResult:
        result: TrainingResult = train_through(trainer, model)
        return result

    def trainer(
        self,
        model: Any,
        plan: Plan,
        study: Study,
        *,
        admitted: Any,
        resume: bool,
        checkpoint: Path | None,
        on_start: Any,
        alone: bool = False,
        run: int | None = None,
    ) -> Any:
        """Make the private run, of all processes or of this one `alone`."""
        from confide.training import EngineOptions, PrivateRun, Ranks, ShardedRun

        privacy = study.privacy
        # noise and every class's clip are in units of the clip norm, so a candidate may change it at the same price
        plan = dataclasses.replace(plan, clip_norm=privacy.clip_norm)
        noised = neuraldp_of(study)
        optimizer = optimizer_of(study, (model if noised is None else model.head).parameters(), plan)
        if noised is not None:
            return self._neuraldp(model, optimizer, plan, noised, admitted, checkpoint, resume, on_start)
        engine = self.study.engine
        options: dict[str, Any] = {
            "device": self.device,
            "engine": engine.engine,
            "precision": engine.precision,
            "compile": engine.compile,
        }
        if self.study.engine.physical_batch is not None:
            options["physical_batch"] = self.study.engine.physical_batch
        # Without a seed the run draws its own secret, which lives in memory and, ratcheted, in the checkpoint alone.
        seed = privacy.seed if run is None else searching.seed_of_run(privacy.seed, run)
        randomness: dict[str, Any] = {} if seed is None else {"seed": seed}
        steps = plan.steps
        make = ShardedRun if engine.shards else PrivateRun
        return make(
            model,
            loss_of(study),
            optimizer,
            plan,
            self.dataset,
            admitted=admitted,
            options=EngineOptions(**options),
            noise="secure" if privacy.noise == "secure" else "default",
            checkpoint=checkpoint,
            checkpoint_every=self.study.engine.checkpoint_every,
            resume=resume,
            on_nonfinite=privacy.on_nonfinite,
            on_start=on_start,
            progress=lambda done, _total: self.watcher.step(done, note=spent_note(done, steps) if run is None else ""),
            ranks=Ranks() if alone else self.lead.ranks,
            methods=methods_of(study, self.declared),
            **randomness,
        )

    def _neuraldp(
        self,
        model: Any,
        optimizer: Any,
        plan: Plan,
        settings: NeuralDP,
        admitted: Any,
        checkpoint: Path | None,
        resume: bool,
        on_start: Any,
    ) -> Any:
        """A run that noises activations once for every person instead of gradients in every step."""
        from confide.training.methods import NeuralDPRun

        if self.lead.several:
            raise InputError("NeuralDP trains its head in one process", where="torchrun", expected="one process")
        return NeuralDPRun(
            model,
            optimizer,
            plan,
            self.dataset,
            settings,
            classes=max(self.outputs, 2),
            admitted=admitted,
            checkpoint=checkpoint,
            resume=resume,
            on_start=on_start,
            progress=lambda done, _total: self.watcher.step(done),
            seed=self.study.privacy.seed,
            noise="secure" if self.study.privacy.noise == "secure" else "default",
        )

    # -- resuming -----------------------------------------------------------------------------------------------------

    def sha(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def _already_written(self) -> Outcome | None:
        """A run killed between the folder's rename and the ledger's commit: only the commit is left to do."""
        release = already_written(self.releases, self.study.name, self.state.reservation, self.ledger)
        if release is None:
            return None
        assert self.state.reservation is not None
        if self.ledger.reservation(self.state.reservation).state == "committed":
            states.forget(self.internal, self.state)
            return outcome_of(release)
        return self._commit(release)

    @property
    def _checkpoint(self) -> Path:
        run = "" if self.study.search is None else f"-{self._progress().done}"
        return states.run_folder(self.internal, self.state.name) / f"checkpoint{run}.pt"
