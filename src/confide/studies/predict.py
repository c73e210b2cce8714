"""What a release predicts with, where that is more than one model: snapshots, an ensemble, a temperature paid for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.accounting import Guarantee, Laplace, compose
from confide.contributors import ContributorIndex
from confide.release import PaidMetric, paid_metric
from confide.studies.file import Study
from confide.studies.models import probabilities, require_torch
from confide.studies.prepare import Prepared

#: What an ensemble says where too few of its members agree: ask a person.
DEFERRED = "deferred"


def predictor_of(model: Any, snapshots: Sequence[Mapping[str, Any]], *, outputs: int) -> Any:
    """Return a `Predictor` of the snapshots of a run, or of its model alone."""
    torch = require_torch()
    from confide.training.methods.predictor import Predictor

    members = []
    for kept in snapshots:
        member = copy.deepcopy(model)
        own = dict(member.named_parameters())
        with torch.no_grad():
            for name, value in kept.items():
                own[name].copy_(value)
        members.append(member)
    return Predictor(members or [model], outputs=outputs).eval()


def empty_predictor(study: Study, make: Callable[[], Any], *, outputs: int) -> Any:
    """Return the module that the weights of a study's release fit: a model, or a `Predictor` of several.

    Parameters
    ----------
    study : Study
    make : function
        Makes one model.
    outputs : int
    """
    kept, voters = study.training.kept, study.training.voters
    if kept is None and voters is None and study.training.temperature is None:
        return make()
    from confide.training import Snapshots
    from confide.training.methods.predictor import Predictor

    count = 1 if voters is None else voters.members
    if kept is not None:
        count = len(Snapshots(kept.keep, kept.burn_in).steps(study.privacy.steps))
    return Predictor([make() for _ in range(count)], outputs=outputs)


def each_member(predictor: Any, features: Any, *, outputs: int) -> npt.NDArray[np.float64]:
    """Return the probabilities of every member by itself, shape (members, entries) or (members, entries, classes)."""
    from confide.training.methods.predictor import Predictor

    found = []
    for member in predictor.members:
        one = Predictor([member], outputs=outputs, temperature=float(predictor.temperature))
        found.append(probabilities(one.to(predictor.temperature.device), features, outputs=outputs))
    return np.asarray(np.stack(found), dtype=np.float64)


def answers(
    members: npt.NDArray[np.float64], classes: Sequence[str], *, agree: float, threshold: float
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return what an ensemble answers and how many members say so; `DEFERRED` where too few of them agree.

    Parameters
    ----------
    members : float64 array, shape (members, entries) or (members, entries, classes)
        Probabilities from `each_member`.
    classes : sequence of str
        Words for the answers; two of them, no and yes, for a yes/no label.
    agree : float
        Share of the members that has to say the same.
    threshold : float
        Where a probability becomes a yes.
    """
    said = (members >= threshold).astype(np.int64) if members.ndim == 2 else members.argmax(2)
    votes = np.stack([(said == c).sum(0) for c in range(len(classes))])
    most = votes.max(0)
    given = most >= np.ceil(agree * len(members) - 1e-9)
    return [classes[c] if ok else DEFERRED for c, ok in zip(votes.argmax(0), given, strict=True)], most


def paid_temperature(
    predictor: Any,
    prepared: Prepared,
    *,
    epsilon: float,
    delta: float,
    outputs: int,
    noise: Any,
    also: list[Guarantee],
    reserve: Callable[[ContributorIndex, Guarantee], npt.NDArray[np.bool_]],
) -> list[PaidMetric]:
    """Fit the temperature on validation contributors, put it into the predictor, and state what they paid.

    Whoever is there: with nobody, or nobody with balance, the choice is uniform over the grid.
    """
    torch = require_torch()
    from confide.training.methods.temperature import GRID, fit_temperature

    guarantee = Laplace(1.0 / epsilon).guarantee()
    rows, owners = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    index, found = prepared.validation_index, prepared.validation
    if index is not None and found is not None:
        keep = reserve(index, guarantee)[index.of_entry]
        rows, owners = found[keep], index.of_entry[keep]
    assert prepared.table.labels is not None
    logits = np.zeros((0,) if outputs == 1 else (0, outputs))
    if len(rows):
        device = next(predictor.parameters()).device
        with torch.no_grad():
            parts = [
                predictor(torch.from_numpy(np.ascontiguousarray(prepared.inputs[part])).to(device)).double().cpu()
                for part in np.array_split(rows, -(-len(rows) // 1024))
            ]
        logits = torch.cat(parts).numpy().reshape(len(rows), *(() if outputs == 1 else (outputs,)))
    labels = prepared.table.labels[rows].astype(np.int64)
    chosen = fit_temperature(logits, labels, owners, epsilon=epsilon, noise=noise)
    predictor.temperature.fill_(chosen.value)
    whole = compose([guarantee, *also]) if also else guarantee
    return [
        paid_metric(
            "temperature of the logits",
            whole,
            delta=delta,
            value=chosen.value,
            low=min(GRID),
            high=max(GRID),
            level=1.0,
            who="validation contributors" + (", with the noisy histogram of entry counts" if also else ""),
            note="chosen by the exponential mechanism from a public grid (low to high); part of the released model",
        )
    ]
