"""The secret of a ledger: keyed hashes of contributors, and the seal under the journal.

The key lives in its own file (mode 0600), never in the database: who copies the database alone learns nobody's id.
After a rotation the file lists all keys, oldest first; a token is the chain of all of them over the id.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from confide._files import write_atomic
from confide.errors import InputError, RunError

TOKEN_BYTES = 16
_PIECE = 1 << 18  # ids hashed at a time
Tokens = npt.NDArray[np.uint64]  # shape (n, 2): the 128 bits of a token, high half first

_CONTRIBUTOR = b"confide contributor\0"
_SEAL = b"confide journal\0"
_CHECK = b"confide key\0"


@dataclass(frozen=True, repr=False)
class Keys:
    """The keys of a ledger, oldest first."""

    keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Keys({len(self.keys)})"

    @classmethod
    def new(cls) -> Keys:
        """Draw a fresh 256-bit key from the operating system."""
        return cls((secrets.token_bytes(32),))

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a key file.

        Raises
        ------
        InputError
            If it is missing, readable by others, or not a key file.
        """
        try:
            mode = path.stat().st_mode & 0o777
            text = path.read_text()
        except OSError as error:
            raise InputError(
                f"the ledger's key file cannot be read: {error.strerror}",
                where=str(path),
                remedy="give the key file that was written when the ledger was created",
            ) from error
        except UnicodeDecodeError as error:
            raise _not_a_key_file(path) from error
        if mode & 0o077:
            raise InputError(
                f"the ledger's key file can be read by others (mode {mode:o})",
                where=str(path),
                expected="mode 600",
                remedy=f"chmod 600 {path}",
            )
        try:
            values = json.loads(text)
            keys = tuple(bytes.fromhex(key) for key in values["keys"])
        except (ValueError, TypeError, KeyError) as error:
            raise _not_a_key_file(path) from error
        if not keys or any(len(key) != 32 for key in keys):
            raise _not_a_key_file(path)
        return cls(keys)

    def write(self, path: Path) -> None:
        """Write the key file, mode 0600, whole or not at all."""
        write_atomic(path, json.dumps({"confide": "ledger key", "keys": [key.hex() for key in self.keys]}), mode=0o600)

    def create(self, path: Path) -> None:
        """Write a new key file, refusing to replace one: the old one may be somebody's only key.

        Raises
        ------
        InputError
            If the file exists.
        """
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise InputError(
                "there is a key file already", where=str(path), remedy="choose another path or move the old file away"
            ) from error
        except OSError as error:
            raise RunError(f"the key file cannot be written: {error.strerror}", where=str(path)) from error
        os.close(handle)
        self.write(path)

    def check(self) -> str:
        """Return a fingerprint that tells a right key from a wrong one and nothing else."""
        return hmac.digest(self.keys[-1], _CHECK, "sha256").hex()

    def seal(self, digest: str) -> str:
        """Return the seal under a journal hash. The oldest key seals, so that a rotation leaves old seals valid."""
        return hmac.digest(self.keys[0], _SEAL + digest.encode(), "sha256").hex()

    def tokens(self, labels: Sequence[str] | npt.NDArray[np.str_]) -> Tokens:
        """Return the keyed hash of every contributor id, shape (n, 2).

        Raises
        ------
        InputError
            If an id is missing, empty or not text. The message names the position, never the id.
        """
        if isinstance(labels, str):
            raise InputError("one contributor id was given where a list is expected", expected="a sequence of texts")
        values = labels.tolist() if isinstance(labels, np.ndarray) else labels
        digest = _chain(self.keys[0])
        out = bytearray()
        for position, label in enumerate(values):
            if not isinstance(label, str) or not label:
                raise InputError(
                    "a contributor id is missing or is not text",
                    where=f"position {position}",
                    expected="a non-empty text (ids are read as text, never as numbers)",
                )
            try:
                message = label.encode()
            except UnicodeEncodeError:
                raise InputError(
                    "a contributor id is not valid Unicode text",
                    where=f"position {position}",
                    expected="text without lone surrogates",
                ) from None
            out += digest(message)
        tokens = np.frombuffer(bytes(out), dtype=">u8").astype(np.uint64).reshape(-1, 2)
        for key in self.keys[1:]:
            tokens = rehash(tokens, key)
        return tokens


def tokens_of_parquet(keys: Keys, file: Path, column: str) -> Tokens:
    """Return the keyed hash of every id in a column of a Parquet file, reading one piece at a time."""
    import polars as pl

    if not file.is_file():
        raise InputError("there is no such file", where=str(file), expected="a Parquet file of contributor ids")
    try:
        scan = pl.scan_parquet(file)
        columns = scan.collect_schema()
        if column not in columns or columns[column] != pl.String:
            raise InputError(
                f"the file has no text column {column!r}",
                where=str(file),
                expected=f"one of {', '.join(columns)}, as text (ids are never read as numbers)",
            )
        total = int(scan.select(pl.len()).collect().item())
        out = np.empty((total, 2), dtype=np.uint64)
        for start in range(0, total, _PIECE):
            piece = scan.select(column).slice(start, _PIECE).collect().to_series().to_list()
            out[start : start + len(piece)] = keys.tokens(piece)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError("the file cannot be read as Parquet", where=str(file)) from error
    return out


def whole_numbers_of_parquet(file: Path, column: str) -> npt.NDArray[np.integer[Any]]:
    """Return a column of whole numbers of a Parquet file, in the narrowest type that holds it."""
    import polars as pl

    try:
        scan = pl.scan_parquet(file)
        columns = scan.collect_schema()
        if column not in columns or not columns[column].is_integer():
            raise InputError(f"the file has no column of whole numbers {column!r}", where=str(file))
        values = scan.select(column).collect().to_series()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError("the file cannot be read as Parquet", where=str(file)) from error
    if values.null_count():
        raise InputError("a number of entries is missing", where=f"{file}, column {column}")
    found = values.to_numpy()
    return found.astype(np.min_scalar_type(int(found.max())) if len(found) and found.min() >= 0 else np.int64)


def _chain(key: bytes):  # type: ignore[no-untyped-def]  # a closure: this is the hot loop of large imports
    """Return label -> HMAC-SHA256(key, domain + label), first 16 bytes; both pads are hashed once."""
    block = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + _CONTRIBUTOR)
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def digest(message: bytes) -> bytes:
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return second.digest()[:TOKEN_BYTES]

    return digest


def rehash(tokens: Tokens, key: bytes) -> Tokens:
    """Return HMAC(key, token) for every token: the step of a key rotation."""
    digest = _chain(key)
    raw = tokens.astype(">u8").tobytes()
    out = b"".join([digest(raw[i : i + TOKEN_BYTES]) for i in range(0, len(raw), TOKEN_BYTES)])
    return np.frombuffer(out, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def _not_a_key_file(path: Path) -> InputError:
    return InputError(
        "this is not a key file of a ledger",
        where=str(path),
        expected="the file that was written when the ledger was created",
        remedy="give the right key file",
    )


def next_key(key_file: Path) -> Path:
    """Return where a rotation keeps the new key file until the database has switched."""
    return key_file.with_name(key_file.name + ".next")
