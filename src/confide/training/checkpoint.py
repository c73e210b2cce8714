"""Checkpoints: written whole or not at all, readable by the owner only, bound to plan and data.

A checkpoint holds private data (un-noised figures of the run and the keys of the steps to come): it is no release, and
it is deleted when the release is committed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from confide._files import write_atomic
from confide.errors import InputError, RunError
from confide.training.distributed import Ranks

MAGIC = b"confide checkpoint 1\n"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` in one atomic step, mode 0600.

    Raises
    ------
    RunError
        If the disk refuses; the checkpoint before it is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(Path(path), MAGIC + hashlib.sha256(payload).digest() + payload, mode=0o600)


def read_checkpoint(path: Path, ranks: Ranks | None = None) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Parameters
    ----------
    path : Path
    ranks : Ranks, optional
        Processes that share a run: the first reads, all get the content, whatever number of them wrote it.

    Raises
    ------
    InputError
        There is none.
    RunError
        It is damaged.
    """
    content = _content(path) if ranks is None else ranks.from_first(lambda: _content(path))
    digest, payload = content[len(MAGIC) : len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if not content.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        raise _damaged(path)
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    if not isinstance(state, dict):
        raise _damaged(path)
    return state


def _content(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(
            "there is no checkpoint to resume from",
            where=str(path),
            expected="the checkpoint of an interrupted run",
            remedy="start the run without resume",
        ) from None
    except OSError as error:
        raise RunError(f"the checkpoint cannot be read: {error.strerror or error}", where=str(path)) from error


def delete_checkpoint(path: Path) -> None:
    """Delete a checkpoint, and what a kill in the middle of writing it left: once the release is committed."""
    path = Path(path)
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        for left in [other for other in path.parent.iterdir() if other.name.startswith(f".{path.name}.")]:
            left.unlink(missing_ok=True)


def _damaged(path: Path) -> RunError:
    return RunError(
        "the checkpoint is damaged",
        where=str(path),
        expected="a file that confide wrote, unchanged",
        remedy="restore it from a backup, or delete it and start again (what was reserved stays reserved)",
    )


_NAMES = {
    "plan": "the plan",
    "data": "the data",
    "admitted": "the set of admitted contributors",
    "model": "the model",
    "optimizer": "the optimizer",
    "noise": "the kind of noise",
    "methods": "the methods",
}


def compare(kept: dict[str, Any], now: dict[str, Any], path: Path | None) -> None:
    """Refuse to go on with anything else than what the checkpoint was written for.

    Raises
    ------
    InputError
    """
    for name, value in ({"methods": None} | now).items():
        if kept.get(name) != value:
            raise InputError(
                f"{_NAMES[name]} changed since the checkpoint was written",
                where=str(path),
                expected="the same plan, data, model and optimizer as when the run began",
                remedy="restore what was changed, or start a new run (what was reserved stays reserved)",
            )
