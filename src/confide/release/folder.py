"""The release folder: written in one atomic step, read back as a `Release`.

A release is staged in a hidden sibling folder, every file is flushed to disk, and one rename gives it its final name.
A run killed at any moment leaves either the whole release or nothing under that name; what it had staged is removed by
the next writer in the same place. The internal folder is staged in the same way and renamed first, so that a release
never stands without its internal figures because of a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from confide._files import fsync_folder, sha256_of
from confide.errors import InputError, RunError, VerificationError
from confide.release.certificate import Certificate

CERTIFICATE_FILE = "certificate.json"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PARTIAL = ".partial"

Content = bytes | str | Path | Callable[[Certificate], bytes | str]


def outside_releases(output: str | Path) -> None:
    """Refuse an output that would lie inside a release folder, which leaves as it was certified and nothing else.

    Parameters
    ----------
    output : path
        A file or folder to write, which need not be there.

    Raises
    ------
    InputError
        It or a folder above it holds a certificate.
    """
    place = Path(output).resolve()
    for folder in (place, *place.parents):
        if (folder / CERTIFICATE_FILE).is_file():
            raise InputError(
                f"{output} lies inside the release {folder.name}",
                where=str(folder),
                expected=f"an output outside every folder that holds {CERTIFICATE_FILE}: what is written into a "
                "release would leave with it, and `confide verify` would fail",
                remedy="choose another place",
            )


@dataclass(frozen=True)
class Release:
    """A release folder that was read back.

    Attributes
    ----------
    path : Path
        The folder.
    certificate : Certificate
        Its statement. Loading checks its form; `verify` recomputes what it claims.
    digest : str
        SHA-256 of `certificate.json`, which pins every other file: what the ledger writes down.
    """

    path: Path
    certificate: Certificate
    digest: str

    @classmethod
    def load(cls, path: str | Path) -> Release:
        """Read a release folder.

        Raises
        ------
        InputError
            If there is no such folder, or it holds no certificate.
        VerificationError
            If the certificate does not have the published form.
        """
        folder = Path(path)
        file = folder / CERTIFICATE_FILE
        if not folder.is_dir() or not file.is_file():
            raise InputError(
                "this is not a release folder",
                where=str(folder),
                expected=f"a folder that holds {CERTIFICATE_FILE}",
                remedy="give the path that `confide train` printed, or one of the folders under releases/",
            )
        try:
            certificate = Certificate.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise VerificationError(
                f"the certificate does not have the published form: {_first(error)}",
                where=str(file),
                expected="the form of certificate.schema.json, unchanged since it was written",
                remedy="fetch the release again from whoever published it",
            ) from error
        return cls(folder, certificate, sha256_of(file))

    def file(self, name: str) -> Path:
        """Return the path of one artefact.

        Raises
        ------
        InputError
            If the certificate names no such artefact.
        """
        if name not in self.certificate.artefacts:
            raise InputError(
                f"this release has no file {name!r}",
                where=str(self.path),
                expected="one of " + ", ".join(sorted(self.certificate.artefacts)),
            )
        return self.path / name

    @property
    def internal(self) -> Path:
        """Folder with the unprotected figures of the same run (it may have been kept elsewhere, or deleted)."""
        return self.path.parent.parent / "internal" / self.path.name


def write_release(
    folder: str | Path,
    name: str,
    certificate: Certificate,
    artefacts: Mapping[str, Content],
    internal: Mapping[str, Content] | None = None,
    *,
    internal_folder: str | Path | None = None,
    final_name: str | None = None,
) -> Path:
    """Write `folder/<name>-<UTC>-<6 hex>/` and, beside `folder`, `internal/<same name>/`, each in one atomic step.

    Parameters
    ----------
    folder : path
        Where releases go (the study's `[output] dir`); made if it is missing.
    name : str
        Name of the study; characters outside A-Z, a-z, 0-9, '.', '_' and '-' become '-'.
    certificate : Certificate
        Its `artefacts` are filled in here.
    artefacts : mapping
        File name to content: bytes, text, the path of a file to copy, or a function of the certificate (for the report;
        it is called when the hashes of all other artefacts are known).
    internal : mapping, optional
        The same for what must not leave; written with mode 0600.
    internal_folder : path, optional
        Instead of `internal` beside `folder`.
    final_name : str, optional
        Name of both folders, for a run that was announced under it; default ``<name>-<UTC>-<6 hex>``.

    Returns
    -------
    Path
        The release folder.

    Raises
    ------
    InputError
        If a file name is not a plain one.
    RunError
        If the disk refuses. Nothing is left under a final name.
    """
    for file_name in (*artefacts, *(internal or {})):
        if not _FILE_NAME.fullmatch(file_name) or file_name == CERTIFICATE_FILE:
            raise InputError(
                f"{file_name!r} cannot be the name of a file in a release",
                expected=f"letters, digits, '.', '_' and '-', not {CERTIFICATE_FILE}, which is written by itself",
            )
    releases = Path(folder)
    unprotected = Path(internal_folder) if internal_folder is not None else releases.absolute().parent / "internal"
    final = final_name or f"{_slug(name)}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    if (releases / final).exists():
        raise RunError(
            f"there is a release named {final} already",
            where=str(releases),
            remedy="a release never changes; move it away first",
        )
    try:
        releases.mkdir(parents=True, exist_ok=True)
        _sweep(releases)
        with contextlib.ExitStack() as stack:
            if internal:
                unprotected.mkdir(parents=True, exist_ok=True, mode=0o700)
                _sweep(unprotected)
                beside = stack.enter_context(_staged(unprotected, final, mode=0o700))
                _fill(beside, internal, certificate, mode=0o600)
            stage = stack.enter_context(_staged(releases, final, mode=0o755))
            hashes = _fill(stage, artefacts, certificate, mode=0o644)
            complete = certificate.model_copy(update={"artefacts": hashes})
            _write(stage / CERTIFICATE_FILE, complete.to_json().encode(), mode=0o644)
            fsync_folder(stage)
            if internal:
                fsync_folder(beside)
                # left by a run that died between the two renames: internal figures may be made anew, a release may not
                shutil.rmtree(unprotected / final, ignore_errors=True)
                _rename(beside, unprotected / final)
            try:
                _rename(stage, releases / final)
            except OSError:
                shutil.rmtree(unprotected / final, ignore_errors=True)
                raise
    except OSError as error:
        raise RunError(
            f"could not write the release: {error.strerror or error}",
            where=str(error.filename or releases),
            expected="a folder that can be written and has room",
            remedy="free some space or choose another folder; no half-written release was left behind",
        ) from error
    return releases / final


def _fill(stage: Path, contents: Mapping[str, Content], certificate: Certificate, *, mode: int) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for name, content in contents.items():
        if isinstance(content, Path):
            _copy(content, stage / name, mode=mode)
        elif not callable(content):
            _write(stage / name, content.encode() if isinstance(content, str) else content, mode=mode)
        else:
            continue
        hashes[name] = sha256_of(stage / name)
    so_far = certificate.model_copy(update={"artefacts": dict(hashes)})
    for name, content in contents.items():
        if callable(content):
            made = content(so_far)
            _write(stage / name, made.encode() if isinstance(made, str) else made, mode=mode)
            hashes[name] = sha256_of(stage / name)
    return hashes


@contextlib.contextmanager
def _staged(parent: Path, final: str, *, mode: int) -> Iterator[Path]:
    """Give a hidden, locked sibling folder; remove it when it was not renamed away."""
    stage = parent / f".{final}{_PARTIAL}"
    handle = _made_and_locked(stage, mode)
    try:
        yield stage
    finally:
        os.close(handle)
        if stage.exists():
            shutil.rmtree(stage, ignore_errors=True)


def _made_and_locked(stage: Path, mode: int) -> int:
    """Make the folder and take its lock, again if a sweeper took the folder for a dead one in between."""
    while True:
        stage.mkdir(mode=mode, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(stage, os.O_RDONLY)
            # The lock ends with the process, however it ends: so a sweeper knows that nobody writes here any more.
            with contextlib.suppress(OSError):  # some network file systems have no locks; nothing is swept there
                fcntl.flock(handle, fcntl.LOCK_SH)
            if os.fstat(handle).st_nlink > 0 and stage.exists():
                return handle
            os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed writers had staged in `parent`."""
    for stage in parent.glob(f".*{_PARTIAL}"):
        try:
            handle = os.open(stage, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(stage, ignore_errors=True)
        except OSError:  # somebody is writing here, or the file system has no locks
            continue
        finally:
            os.close(handle)


def _write(path: Path, content: bytes, *, mode: int) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, path: Path, *, mode: int) -> None:
    with source.open("rb") as reader, path.open("xb") as file:
        os.fchmod(file.fileno(), mode)
        shutil.copyfileobj(reader, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _rename(stage: Path, final: Path) -> None:
    if final.exists():
        raise FileExistsError(17, "a release of this name exists", str(final))
    os.rename(stage, final)
    fsync_folder(final.parent)


def _slug(name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")
    return slug[:80] or "release"


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
