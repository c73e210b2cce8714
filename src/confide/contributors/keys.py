"""Secret keys of a run: made by the operating system, split into sub-keys, moved forward one way.

>>> root = new_key()
>>> coins, noise = derive(root, "coins"), derive(root, "noise")
>>> coins != noise and len(coins) == 32
True
>>> ratchet(root) != root                  # a checkpoint keeps only the ratcheted key: earlier draws stay secret
True

Whoever knows the key of a run knows who was drawn, and a guarantee that counts on secret sampling is void for them.
Keys are therefore private data: never in a release, never in a log.

References
----------
Krawczyk, Bellare, Canetti: HMAC, RFC 2104. Krawczyk, Eronen: HKDF (expand step), RFC 5869.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from confide.errors import InputError

KEY_BYTES = 32
_CONTEXT = b"confide/keys/1\x00"


def new_key() -> bytes:
    """Return 32 bytes from the operating system's generator."""
    return os.urandom(KEY_BYTES)


def check_key(key: bytes) -> bytes:
    """Return `key` as bytes, or refuse one that is not 32 bytes long.

    Raises
    ------
    InputError
        If `key` is not exactly 32 bytes.
    """
    if not isinstance(key, bytes | bytearray | memoryview) or len(bytes(key)) != KEY_BYTES:
        raise InputError(
            "a run key has the wrong shape",
            expected=f"{KEY_BYTES} bytes, for example from confide.contributors.new_key()",
            remedy="make the key with new_key(); do not use a password or a number",
        )
    return bytes(key)


def derive(key: bytes, label: str, size: int = KEY_BYTES) -> bytes:
    """Derive an independent sub-key for one purpose (HKDF-expand with HMAC-SHA256).

    Parameters
    ----------
    key : bytes
        32 secret bytes.
    label : str
        The purpose, for example ``"coins"``; different labels give independent sub-keys.
    size : int
        Number of bytes wanted.
    """
    key, output, block, counter = check_key(key), b"", b"", 1
    info = _CONTEXT + label.encode()
    while len(output) < size:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        output += block
        counter += 1
    return output[:size]


def ratchet(key: bytes) -> bytes:
    """Move a key one step forward; nobody can go back from the result to `key`."""
    return derive(key, "ratchet")
