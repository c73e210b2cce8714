"""A run may only go on with what it began with: the same study file, data and plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import InputError, RunError
from confide.ledger import Ledger
from confide.planning import Plan
from confide.release import Release
from confide.studies import state as states

if TYPE_CHECKING:
    from confide.studies.run import _Run


def same_study(run: _Run) -> None:
    """Refuse to go on with another study file."""
    if run.state.study_sha256 != run.sha():
        raise InputError(
            "the study file changed since the run began",
            where=str(states.run_folder(run.internal, run.state.name)),
            expected="the study file as it was",
            remedy="restore it, or start a new run without --resume (what was reserved stays reserved)",
        )


def same_data(run: _Run, resume: bool) -> None:
    """Refuse to go on with other data."""
    if not resume or run.state.data_fingerprint is None:
        return
    if run.prepared.table.fingerprint(bytes.fromhex(run.state.key)) != run.state.data_fingerprint:
        raise InputError(
            "the data changed since the run began",
            where=", ".join(spec.label for spec in run.study.data),
            expected="the same rows as when the run began",
            remedy="restore them, or start a new run without --resume (what was reserved stays reserved)",
        )


def same_plan(run: _Run, plan: Plan, resume: bool) -> None:
    """Refuse to go on under another plan."""
    if resume and run.state.plan_fingerprint not in (None, plan.fingerprint()):
        raise InputError(
            "the plan changed since the run began (another version of confide?)",
            where=str(states.run_folder(run.internal, run.state.name)),
            remedy="resume with the version that began the run, or start a new run without --resume",
        )


def already_written(releases: Path, study_name: str, reservation: str | None, ledger: Ledger) -> Release | None:
    """Return the release that a run wrote before it was killed: only the ledger's commit, or less, is left to do.

    Raises
    ------
    RunError
        The ledger committed another release under this reservation.
    """
    if reservation is None:
        return None
    for folder in sorted(releases.glob(f"{study_name.rstrip('-._')}-*")):
        if not (folder / "certificate.json").is_file():
            continue
        release = Release.load(folder)
        receipt = release.certificate.ledger
        if receipt is not None and receipt.reservation == reservation:
            record = ledger.reservation(reservation)
            if record.state == "committed" and record.release_hash != release.digest:
                raise RunError("the release folder is not the one that was committed", where=str(folder))
            return release
    return None
