"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from confide.errors import InputError, RunError


def fsync_folder(folder: Path) -> None:
    """Flush a folder's own entries to disk, so that a rename in it survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o644) -> None:
    """Write `content` under a temporary name, flush it, then rename it to `path`.

    Raises
    ------
    RunError
        If the disk refuses (full, read-only); whatever stood at `path` is untouched.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        fsync_folder(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def new_file(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Give a temporary path beside `path`; what was written there becomes `path` at the end, whole or not at all.

    Raises
    ------
    InputError
        `path` exists, before or after: nothing is overwritten.
    RunError
        The disk refuses.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        if path.exists() or path.is_symlink():
            raise FileExistsError
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.fchmod(handle, mode)
        os.close(handle)
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, this never replaces a file
        fsync_folder(path.parent)
    except FileExistsError:
        raise InputError("there is a file already", where=str(path), remedy="choose another name") from None
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _refused(path: Path, error: OSError) -> RunError:
    return RunError(
        f"could not write {path.name}: {error.strerror or error}",
        where=str(path.parent),
        expected="a folder that can be written and has room",
        remedy="free some space or choose another folder; nothing half-written was left behind",
    )


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
