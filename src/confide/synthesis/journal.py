"""Released answers on disk, so that a run that was killed goes on without asking, and paying, twice.

Every answer is written and flushed before it is used. A resumed run of the same study on the same data reads them in
order and draws noise only for what comes after. Answers are released figures, yet the file also holds the key of the
run's secret coins: it is private (mode 0600), stands beside the internal figures and is deleted with them at commit.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from confide._files import fsync_folder
from confide.errors import InputError, RunError
from confide.synthesis.contributions import Patients
from confide.synthesis.domain import BLOCK_PATIENTS


def fingerprint(key: bytes, text: str, panel: Patients) -> str:
    """Return a keyed fingerprint of a study and its data: it tells a changed data set to whoever has the key."""
    digest = hmac.new(key, text.encode(), hashlib.sha256)
    for _, block in panel.blocks(BLOCK_PATIENTS):
        for part in (block.static, block.visit, block.counts, block.keys):
            digest.update(str(part.shape).encode())
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


class FileJournal:
    """A `confide.synthesis.meter.Journal` in a file.

    Parameters
    ----------
    path : Path
        Made if it is not there; otherwise gone on with.
    text : str
        The study.
    panel : Panel or StreamedPanel
        Private.

    Raises
    ------
    InputError
        The study or the data are not those of the run that began.
    RunError
        The file is damaged, or the disk refuses.
    """

    def __init__(self, path: Path, *, text: str, panel: Patients) -> None:
        self.path = path
        self._found: list[tuple[str, Any]] = []
        try:
            self._open(text, panel)
        except OSError as error:
            raise RunError(f"cannot keep the journal: {error.strerror or error}", where=str(path)) from error

    def _open(self, text: str, panel: Patients) -> None:
        kept = self._read()
        if kept is None:
            self.key = secrets.token_bytes(32)
            self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            self._append({"key": self.key.hex(), "of": fingerprint(self.key, text, panel)})
            fsync_folder(self.path.parent)
            return
        head, self._found, whole = kept
        self.key = bytes.fromhex(head["key"])
        if not hmac.compare_digest(head["of"], fingerprint(self.key, text, panel)):
            raise InputError(
                "the study or the data changed since this run began",
                where=str(self.path),
                expected="the same study file and the same tables",
                remedy="put them back, or start a new run without --resume (what was reserved stays reserved)",
            )
        self._file = os.open(self.path, os.O_WRONLY)
        os.ftruncate(self._file, whole)  # half an answer was never used
        os.lseek(self._file, 0, os.SEEK_END)

    def _read(self) -> tuple[dict[str, Any], list[tuple[str, Any]], int] | None:
        if not self.path.exists():
            return None
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in data[:whole].splitlines()]
            answers = [(line["name"], _value(line)) for line in lines[1:]]
            return {"key": lines[0]["key"], "of": lines[0]["of"]}, answers, whole
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RunError(
                "the journal of an unfinished run is damaged",
                where=str(self.path),
                remedy="its reservation stays counted; start a new run without --resume",
            ) from error

    def _append(self, record: dict[str, Any]) -> None:
        left = memoryview(json.dumps(record).encode() + b"\n")
        while left:
            left = left[os.write(self._file, left) :]
        os.fsync(self._file)

    def next(self, name: str) -> Any | None:
        """Return the next answer of the earlier run, or None if it had come no further."""
        if not self._found:
            return None
        asked, value = self._found.pop(0)
        if asked != name:
            raise RunError(
                f"the journal answers {asked!r} where {name!r} is asked",
                where=str(self.path),
                expected="the same version of confide as the run began with",
                remedy="resume with that version, or start a new run without --resume",
            )
        return value

    def write(self, name: str, released: Any) -> None:
        """Keep an answer for good; returns when it is on disk."""
        try:
            if isinstance(released, int):
                self._append({"name": name, "number": released})
                return
            array = np.asarray(released, dtype="<f8")
            self._append(
                {"name": name, "shape": list(array.shape), "array": base64.b64encode(array.tobytes()).decode()}
            )
        except OSError as error:
            raise RunError(
                f"cannot keep an answer that was paid for: {error.strerror or error}",
                where=str(self.path),
                remedy="free some space, then go on with --resume",
            ) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _value(line: dict[str, Any]) -> Any:
    if "number" in line:
        return int(line["number"])
    flat = np.frombuffer(base64.b64decode(line["array"]), dtype="<f8")
    return flat.reshape(line["shape"]).astype(np.float64)
