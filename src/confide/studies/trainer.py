"""`Trainer`: model, loss, optimiser and plan in, a certified release out.

>>> trainer = confide.Trainer(model, loss, optimizer, plan, ledger="sqlite:///ledger.sqlite")     # doctest: +SKIP
>>> release = trainer.fit(confide.ContributorDataset(data, contributors=patient_ids))            # doctest: +SKIP
>>> release.certificate.worst.epsilon                                                            # doctest: +SKIP
3.98
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.contributors import BY_PSEUDONYM, Linkage
from confide.ledger import Ledger
from confide.planning import Plan
from confide.release import AssumedPublic, FlowFacts, LedgerReference, Release, certify, outside_releases, write_release
from confide.report import (
    BatchSizes,
    Curve,
    Event,
    InternalFigures,
    guarantee_sentence,
    internal_report,
    release_report,
)
from confide.studies.follow import Lead, message
from confide.studies.measure import train_through
from confide.studies.models import require_torch
from confide.studies.people import classes_for
from confide.studies.write import snapshots_of, weights_of

if TYPE_CHECKING:
    from confide.training import ContributorDataset, Ranks


class Trainer:
    """Train a model under a plan and write a release.

    Parameters
    ----------
    model : torch.nn.Module
    loss : function
        (outputs, targets) to one loss per entry (``reduction="none"``).
    optimizer : torch.optim.Optimizer
        Over the model's parameters; sees the noisy gradient only.
    plan : Plan
        From `confide.plan`.
    ledger : Ledger, str or None
        Where the spend is remembered: an open ledger or its URL. None: the certificate then says "not recorded".
    name : str
        Of the study, for the folder and the certificate.
    output : path
        Folder of releases; ``internal/`` is made beside it.
    assumed_public : mapping, optional
        What you used as public knowledge (normalisation constants, categories, initial weights): name to value. It
        stands in the certificate.
    data_set : str
        Name of the data for the ledger's history.
    exhausted : {"drop", "refuse"}
        What happens when contributors have no balance left.
    recipient, purpose, sender, attributes : str, str, str, sequence of str
        Who receives the release, what for, from whom, and what it was computed from: for the ledger's register of
        flows, its allowances and consent levels, and the certificate.
    linkage : Linkage
        How the entries of one person came to carry one contributor id, for the certificate.
    **settings
        Passed to `confide.PrivateRun`: ``options``, ``noise``, ``seed``, ``scheduler``, ``example``, ``on_nonfinite``,
        ``progress``, ``methods`` (snapshots and members of an ensemble then leave as ``snapshots.safetensors``, named
        ``<number>/<parameter>``).
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        optimizer: Any,
        plan: Plan,
        *,
        ledger: Ledger | str | None = None,
        name: str = "model",
        output: str | Path = "releases",
        assumed_public: Mapping[str, Any] | None = None,
        data_set: str = "data",
        exhausted: str = "drop",
        recipient: str = "",
        purpose: str = "",
        sender: str = "",
        attributes: Sequence[str] = (),
        linkage: Linkage = BY_PSEUDONYM,
        **settings: Any,
    ) -> None:
        require_torch()
        outside_releases(output)
        self.model, self.loss, self.optimizer, self.plan = model, loss, optimizer, plan
        self.name, self.output, self.data_set, self.exhausted = name, Path(output), data_set, exhausted
        self.assumed_public = dict(assumed_public or {})
        self._ledger, self._settings = ledger, settings
        self.linkage = linkage
        self.flow: dict[str, Any] = {"sender": sender, "recipient": recipient, "purpose": purpose}
        self.flow["attributes"] = tuple(attributes)

    def fit(self, data: ContributorDataset) -> Release:
        """Reserve, train, write the release and commit.

        Parameters
        ----------
        data : ContributorDataset

        Returns
        -------
        Release

        Raises
        ------
        InputError
            A model, loss, data set or plan that cannot be private together; nothing was spent.
        BudgetError
            The ledger admits nobody; nothing was spent.
        """
        from confide.training import PrivateRun, Ranks

        self._check_ledger()
        # refuse what cannot be private before anything is spent
        alone = {**self._checkable(), "ranks": Ranks()}
        PrivateRun(self.model, self.loss, self.optimizer, self.plan, data, **alone).rehearse()
        ranks = self._join()
        if not ranks.first:
            return self._follow(data, ranks)
        return Lead(ranks).release(lambda lead: self._fit(data, lead))

    def _check_ledger(self) -> None:
        """Find a wrong ledger or recipient before anything slow happens; of several processes the first knows it."""
        if self._ledger is None or os.environ.get("RANK", "0") != "0":
            return
        ledger = Ledger.open(self._ledger) if isinstance(self._ledger, str) else self._ledger
        try:
            ledger.check_recipient(str(self.flow["recipient"]))
        finally:
            if isinstance(self._ledger, str):
                ledger.close()

    def _join(self) -> Ranks:
        from confide.training import EngineOptions, join

        given: Ranks | None = self._settings.get("ranks")
        return join((self._settings.get("options") or EngineOptions()).device) if given is None else given

    def _follow(self, data: ContributorDataset, ranks: Ranks) -> Release:
        """Help the first process; what it told last is the place of the release."""
        from confide.training import PrivateRun

        told = ranks.from_first(message)
        settings = {**self._settings, "resume": told["resume"], "ranks": ranks}
        run = PrivateRun(self.model, self.loss, self.optimizer, self.plan, data, admitted=told["admitted"], **settings)
        train_through(run, self.model)
        self.model.eval()
        return Release.load(Path(ranks.from_first(message)["release"]))

    def _fit(self, data: ContributorDataset, lead: Lead) -> Release:
        from confide.training import PrivateRun

        opened = isinstance(self._ledger, str)
        ledger = Ledger.open(self._ledger) if isinstance(self._ledger, str) else self._ledger
        try:
            admitted, reservation = None, None
            on_start = None
            if ledger is not None:
                classes, class_of = classes_for(self.plan, data.index, data.budgets)
                held = ledger.reserve(
                    release=self.name,
                    contributors=data.index.ids.tolist(),
                    class_of=class_of,
                    classes=classes,
                    data_set=self.data_set,
                    exhausted=self.exhausted,
                    **self.flow,
                )
                admitted, reservation = held.admitted, held.id
                on_start = _starter(ledger, held.id)
            resume = bool(self._settings.get("resume", False))
            lead.train(self.plan, admitted, resume=resume, checkpoint=Path())
            run = PrivateRun(
                self.model,
                self.loss,
                self.optimizer,
                self.plan,
                data,
                admitted=admitted,
                on_start=on_start,
                **{**self._settings, "ranks": lead.ranks},
            )
            result = train_through(run, self.model)
            lead.trained()
            self.model.eval()
            receipt = (
                None
                if ledger is None or reservation is None
                else LedgerReference(ledger=ledger.id, reservation=reservation)
            )
            release = self._write(result, receipt, dropped=0 if admitted is None else int((~admitted).sum()))
            if ledger is not None and reservation is not None:
                ledger.commit(reservation, release_hash=release.digest)
            return release
        finally:
            if opened and ledger is not None:
                ledger.close()

    def _checkable(self) -> dict[str, Any]:
        return {
            k: v for k, v in self._settings.items() if k not in ("progress", "checkpoint", "checkpoint_every", "resume")
        }

    def _write(self, result: Any, receipt: LedgerReference | None, *, dropped: int) -> Release:
        facts = [
            AssumedPublic(what=what, value=value, source="declared by the caller of confide.Trainer")
            for what, value in self.assumed_public.items()
        ]
        facts.append(
            AssumedPublic(
                what="divisor of every noisy sum",
                value=self.plan.denominator,
                source="fixed by the plan before data were read",
            )
        )
        certificate = certify(
            self.plan,
            name=self.name,
            assumed_public=facts,
            testing_only=result.testing_only,
            precision=result.arithmetic,
            ledger=receipt,
            flow=FlowFacts(**self.flow) if any(self.flow.values()) else None,
            linkage=self.linkage,
        )
        internal = result.internal
        figures = InternalFigures(
            name=self.name,
            guarantee=guarantee_sentence(certificate),
            learning=[
                Curve(
                    label="training loss of the drawn entries",
                    x=list(range(1, len(internal["loss"]) + 1)),
                    y=internal["loss"],
                )
            ],
            batches=[
                BatchSizes(
                    unit="contributors" if self.plan.clip_unit == "contributor" else "entries",
                    expected=self.plan.denominator,
                    realised=[int(n) for n in internal["units"]],
                )
            ],
            events=[
                Event(
                    what="contributions that were not finite",
                    count=int(internal["nonfinite"]),
                    meaning="counted as zero",
                ),
                Event(
                    what="contributors without balance",
                    count=dropped,
                    meaning="took no part; divisors stayed as planned",
                ),
            ],
        )
        folder = write_release(
            self.output,
            self.name,
            certificate,
            {
                "model.safetensors": weights_of(self.model),
                **({"snapshots.safetensors": snapshots_of(result.snapshots)} if result.snapshots else {}),
                "report.html": lambda complete: release_report(complete),
            },
            {"figures.json": figures.to_json(), "report.html": internal_report(figures)},
        )
        return Release.load(folder)


def _starter(ledger: Ledger, reservation: str) -> Any:
    return lambda: ledger.start(reservation)
