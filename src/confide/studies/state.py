"""What a run must remember to be resumed: private, beside the internal figures, gone once the release is committed.

A run is known by its folder ``internal/<name>-<UTC>-<6 hex>.run`` (mode 0700): ``run.json`` with the reservation, the
plan and how far it came, and the trainer's checkpoint. The checkpoint holds the keys of the steps still to come (never
of past noise), hence mode 0600. The folder appears with its record in it and goes in one step, by a rename from and to
a hidden name, so that a run which was killed at either end has either not begun or is over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confide._files import fsync_folder, write_atomic
from confide.errors import InputError, RunError


@dataclass
class RunState:
    """How far a run came.

    Attributes
    ----------
    name : str
        ``<study>-<UTC>-<6 hex>``: the final name of the release.
    study_sha256 : str
        Of the study file as it was when the run began.
    plan_fingerprint, data_fingerprint : str
        What must not have changed on resume; the data fingerprint is keyed with `key`.
    key : str
        Hexadecimal secret (32 bytes) of the data fingerprint, of the noise of paid figures and, through a hash, of the
        draws of synthetic tables, so that a resumed run repeats them; it has no part in the coins and the noise of
        training.
    reservation, histogram_reservation : str or None
        In the ledger.
    paid_histogram : dict or None
        The noisy entry counts that the plan was made from.
    stage : str
        ``begun`` -> ``reserved`` -> ``written`` (release folder stands, commit outstanding).
    """

    name: str
    study_sha256: str
    key: str
    plan_fingerprint: str | None = None
    data_fingerprint: str | None = None
    reservation: str | None = None
    histogram_reservation: str | None = None
    paid_histogram: dict[str, float] | None = None
    stage: str = "begun"
    extra: dict[str, Any] = field(default_factory=dict)


def new_name(study_name: str) -> str:
    """Return ``<study>-<UTC>-<6 hex>``; time and random letters only, nothing that depends on data."""
    return f"{study_name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def run_folder(internal: Path, name: str) -> Path:
    """Folder of an unfinished run."""
    return internal / f"{name}.run"


def save(internal: Path, state: RunState) -> Path:
    """Write the state durably; returns its folder."""
    folder = run_folder(internal, state.name)
    record = json.dumps(asdict(state), indent=1)
    if folder.is_dir():
        write_atomic(folder / "run.json", record, mode=0o600)
        return folder
    hidden = _hidden(internal, state.name)
    try:
        hidden.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(hidden, 0o700)
        write_atomic(hidden / "run.json", record, mode=0o600)
        os.rename(hidden, folder)
        fsync_folder(internal)
    except OSError as error:
        raise RunError(f"cannot make the run folder: {error.strerror}", where=str(folder)) from error
    return folder


def _hidden(internal: Path, name: str) -> Path:
    """Return where the folder of a run stands while it is made or deleted."""
    return internal / f".{name}.run"


def _lock(internal: Path, name: str) -> Path:
    return internal / f".{name}.lock"


def _sweep(internal: Path) -> None:
    """Delete what killed runs left: folders half made or half deleted, and tables on their way."""
    for folder in (path for ending in ("run", "spool") for path in internal.glob(f".*.{ending}")):
        lock = _lock(internal, folder.stem[1:])
        with contextlib.suppress(OSError):  # somebody else has it, or sweeps it
            handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                if not run_folder(internal, folder.stem[1:]).exists():  # else somebody may be about to go on with it
                    os.unlink(lock)
            finally:
                os.close(handle)


def unfinished(internal: Path, study_name: str) -> list[RunState]:
    """Return the unfinished runs of a study, oldest first."""
    found = []
    for folder in sorted(internal.glob(f"{study_name}-*.run")):
        try:
            raw = json.loads((folder / "run.json").read_text())
            state = RunState(**raw)
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                "the record of an unfinished run is damaged",
                where=str(folder / "run.json"),
                remedy="its reservation stays counted; move the folder away and start anew without --resume",
            ) from error
        if state.name.rsplit("-", 2)[0] == study_name:
            found.append(state)
    return found


def pick(internal: Path, study_name: str) -> RunState:
    """Return the latest unfinished run of a study, for ``--resume``."""
    runs = unfinished(internal, study_name)
    if not runs:
        raise InputError(
            f"there is no unfinished run of {study_name!r} to resume",
            where=str(internal),
            remedy="leave --resume away to start one",
        )
    return runs[-1]


def forget(internal: Path, state: RunState) -> None:
    """Delete the run folder with its keys and checkpoint: called after the ledger committed.

    Raises
    ------
    RunError
        The folder cannot be deleted: its keys would undo the noise, so somebody has to know.
    """
    folder, hidden = run_folder(internal, state.name), _hidden(internal, state.name)
    try:
        if folder.exists():
            os.rename(folder, hidden)
            folder = hidden
            fsync_folder(internal)
            shutil.rmtree(hidden)
    except OSError as error:
        raise RunError(
            f"the release is committed, but the run's keys could not be deleted: {error.strerror}",
            where=str(folder),
            remedy="delete this folder by hand: whoever has it can take the noise away",
        ) from error


@contextlib.contextmanager
def alone(internal: Path, state: RunState) -> Iterator[None]:
    """Hold a run for one process: two that resume it at once could publish two results under one charge.

    Raises
    ------
    InputError
        Another process is running it.
    """
    try:
        internal.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(internal)
        handle = os.open(_lock(internal, state.name), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise RunError(f"cannot write here: {error.strerror}", where=str(internal)) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "another process is running this study",
                where=str(run_folder(internal, state.name)),
                remedy="wait for it",
            ) from None
        yield
    finally:
        if not run_folder(internal, state.name).exists():
            with contextlib.suppress(OSError):
                os.unlink(_lock(internal, state.name))
        os.close(handle)


@contextlib.contextmanager
def spool(internal: Path, state: RunState) -> Iterator[Path]:
    """Give an empty private folder for tables on their way; it is deleted at the end, or by the next run after a kill.

    Raises
    ------
    RunError
        The disk refuses.
    """
    folder = internal / f".{state.name}.spool"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise RunError(f"cannot write here: {error.strerror}", where=str(internal)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
