"""From a trained model to a release folder: certificate, weights, study, report; internal figures beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confide.accounting import Guarantee
from confide.planning import Plan
from confide.release import AssumedPublic, LedgerReference, PaidMetric, Release, Spent, certify, write_release
from confide.report import InternalFigures, guarantee_sentence, internal_report, release_report
from confide.studies import search
from confide.studies.file import BudgetColumn, Study
from confide.studies.opening import linkage_of, stated_flow
from confide.studies.search import WINNER_FILE
from confide.studies.targets import rule_of, schema_of


def assemble(
    study: Study,
    text: str,
    *,
    plan: Plan,
    model: Any,
    testing_only: bool,
    charged: Sequence[tuple[Spent, Guarantee]],
    metrics: Iterable[PaidMetric],
    receipt: LedgerReference | None,
    figures: InternalFigures,
    releases: Path,
    final_name: str,
    feature_names: Sequence[str],
    winner: dict[str, Any] | None = None,
    arithmetic: str | None = None,
) -> Release:
    """Write the release folder and the internal folder beside it, each in one atomic step."""
    weights = weights_of(model)
    certificate = certify(
        plan,
        name=study.name,
        charged=charged,
        unit="entry" if study.unit == "entry" else "contributor",
        assumed_public=assumed_public(study, plan, feature_names),
        evaluation=metrics,
        not_covered=not_covered(study),
        testing_only=testing_only,
        precision=arithmetic or str(next(model.parameters()).dtype).removeprefix("torch."),
        ledger=receipt,
        flow=stated_flow(study),
        linkage=linkage_of(study),
        # the end of a search minus its beginning, which the folder is named for, would tell the number of runs
        created=None if study.search is None else begun_at(final_name),
    )
    figures = figures.model_copy(update={"guarantee": guarantee_sentence(certificate)})
    folder = write_release(
        releases,
        study.name,
        certificate,
        {
            "model.safetensors": weights,
            "study.toml": public_text(text),
            **({} if winner is None else {WINNER_FILE: json.dumps(winner, indent=1) + "\n"}),
            "report.html": lambda complete: release_report(complete, public_text(text)),
        },
        {
            "study.toml": text,
            "figures.json": figures.to_json(),
            "report.html": internal_report(figures),
        },
        final_name=final_name,
    )
    return Release.load(folder)


def public_text(text: str) -> str:
    """Return a study file as it may leave: without file hashes and without a seed.

    A hash is an exact function of everybody's data, so whoever knows all but one person could test for that person; a
    seed gives the noise away. The full text stays with the internal figures.
    """
    kept = []
    for line in text.splitlines(keepends=True):
        if re.match(r"\s*(sha256|seed)\s*=", line):
            continue
        kept.append(re.sub(r",?\s*\b(sha256\s*=\s*\"[0-9a-fA-F]*\"|seed\s*=\s*[0-9_]+)", "", line))
    return "".join(kept)


def not_covered(study: Any) -> list[str]:
    """Limits that this study's own choices add to the standing list."""
    limits = []
    if any(source.contributor == "row" and getattr(source, "images", None) for source in getattr(study, "data", ())):
        limits.append(
            "patients with several images: these data carry no patient ids, so every guarantee here is per image, not "
            "per patient"
        )
    if study.ledger.exhausted == "refuse":
        limits.append(
            "that this run took place: the study is set to be refused when anybody's balance is used up, so a release "
            "says that everybody had balance"
        )
    if getattr(study.privacy, "on_nonfinite", "zero") == "stop":
        limits.append(
            "that this run ended: the study is set to stop at a contribution that is not finite, so a release says "
            "that there was none"
        )
    if getattr(getattr(study, "training", None), "temperature", None) is not None:
        limits.append(
            "the contributors kept for the temperature of the logits: their guarantee is the one stated with it, under "
            "the paid figures, not that of their class"
        )
    if getattr(study, "search", None) is not None:
        limits.append(
            "how long the search took: the number of runs is secret, and whoever saw the machine at work, the times of "
            "its files or the ledger's can count them (the certificate bears the time at which the search began)"
        )
    return limits


def begun_at(final_name: str | None) -> datetime | None:
    """Return the time in the name of a run's folder, ``<study>-<UTC>-<6 hex>``."""
    if final_name is None:
        return None
    return datetime.strptime(final_name.split("-")[-2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


def weights_of(model: Any) -> bytes:
    """The model's weights as safetensors."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    return bytes(save(state))


def snapshots_of(snapshots: Sequence[Any]) -> bytes:
    """Snapshots of a run as safetensors, named ``<number>/<parameter>``."""
    from safetensors.torch import save

    named = {f"{i}/{name}": value.contiguous() for i, kept in enumerate(snapshots) for name, value in kept.items()}
    return bytes(save(named))


def assumed_public(study: Study, plan: Plan, feature_names: Sequence[str] = ()) -> list[AssumedPublic]:
    """Everything that the study declares to be public knowledge, for the certificate."""
    here = "declared in the study file"
    facts = [AssumedPublic(**fact) for fact in schema_of(study).assumed_public(here)]

    def add(what: str, value: Any, source: str = here) -> None:
        facts.append(AssumedPublic(what=what, value=value, source=source))

    for number, source in enumerate(study.data, 1):
        if source.images is not None:
            images = source.images
            place = "" if len(study.data) == 1 else f" of source {number}"
            value: dict[str, Any] = {"mode": images.mode, "size": list(images.size)}
            if images.bounds is not None:
                value["bounds"] = list(images.bounds)
            what = "meshes" if images.mode == "mesh" else "points" if images.mode == "points" else "pictures"
            add(f"size and scale of the {what}{place}", value)
    add("largest number of entries of a contributor that is used", plan.max_entries)
    if study.public.max_contributors is not None:
        add("upper bound on the number of contributors", study.public.max_contributors)
    if plan.histogram == "public":
        add("entry-count histogram", "in the plan: classes and their contributors")
    if isinstance(study.privacy.budget, BudgetColumn):
        add("budget levels", dict(study.privacy.budget.levels))
    add("divisor of every noisy sum", plan.denominator, "fixed by the plan before data were read")
    add("model and its initial weights", {"name": study.model.name, "options": study.model.options})
    add("optimizer", {"name": study.optimizer.name, "lr": study.optimizer.lr, "options": study.optimizer.options})
    facts += search.facts(study)
    activations = study.training.activations
    if activations is not None:
        add("who takes part", "every contributor whose id is in the data: each gives one noised vector")
        if activations.label_epsilon == "public":
            add("labels", "of the entries that were chosen")
    chosen = study.training.model_dump(exclude_none=True)
    if chosen:
        add("methods of training", chosen)
    rule, weights = rule_of(study)
    if schema_of(study).target != "classes":
        add("loss of one entry, by itself", rule if weights is None else {"rule": rule, "weights": list(weights)})
    add("share of contributors held out, by a keyed hash of the id", study.evaluation.holdout)
    return facts
