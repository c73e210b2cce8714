"""SipHash-2-4 on arrays: a keyed pseudo-random function that turns (who, which entry, which step) into 64 secret bits.

>>> import numpy as np
>>> state = absorb(start(bytes(16)), np.arange(3, dtype=np.uint64))       # three one-word messages at once
>>> finish(state, words=1).dtype
dtype('uint64')

The hash is split into `start`, `absorb` and `finish`, so that the part of a message that never changes (contributor and
entry) is absorbed once and every step only adds its own number. Checked against the vectors published with the paper.

References
----------
Aumasson, Bernstein: SipHash, a fast short-input PRF. INDOCRYPT 2012.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError

U64 = npt.NDArray[np.uint64]
State = tuple[U64, U64, U64, U64]
# Small enough that a chunk's state stays in the processor's second cache: about three times faster than one long pass.
CHUNK = 16384


def start(key: bytes) -> State:
    """Return the initial state (four arrays of one word) under a key of 16 bytes."""
    if len(key) != 16:
        raise InputError("a SipHash key has the wrong length", expected="16 bytes")
    k0, k1 = (int.from_bytes(key[i : i + 8], "little") for i in (0, 8))
    constants = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v = [np.array([c ^ k], dtype=np.uint64) for c, k in zip(constants, (k0, k1, k0, k1), strict=True)]
    return v[0], v[1], v[2], v[3]


def _rotate(v: U64, bits: int, scratch: U64) -> None:
    np.right_shift(v, np.uint64(64 - bits), out=scratch)
    np.left_shift(v, np.uint64(bits), out=v)
    np.bitwise_or(v, scratch, out=v)


def _rounds(state: State, count: int, scratch: U64) -> None:
    v0, v1, v2, v3 = state
    for _ in range(count):
        np.add(v0, v1, out=v0)
        np.add(v2, v3, out=v2)
        _rotate(v1, 13, scratch)
        _rotate(v3, 16, scratch)
        np.bitwise_xor(v1, v0, out=v1)
        np.bitwise_xor(v3, v2, out=v3)
        _rotate(v0, 32, scratch)
        np.add(v2, v1, out=v2)
        np.add(v0, v3, out=v0)
        _rotate(v1, 17, scratch)
        _rotate(v3, 21, scratch)
        np.bitwise_xor(v1, v2, out=v1)
        np.bitwise_xor(v3, v0, out=v3)
        _rotate(v2, 32, scratch)


def _copy(state: State, size: int) -> State:
    v = [np.array(np.broadcast_to(part, (size,))) for part in state]
    return v[0], v[1], v[2], v[3]


def _mix(state: State, word: U64 | np.uint64, scratch: U64) -> None:
    np.bitwise_xor(state[3], word, out=state[3])
    _rounds(state, 2, scratch)
    np.bitwise_xor(state[0], word, out=state[0])


def absorb(state: State, word: U64) -> State:
    """Return the states after one more 64-bit word of each message; the given state is left as it was.

    Parameters
    ----------
    state : tuple of four uint64 arrays, each of shape (1,) or (n,)
    word : uint64 array of shape (n,)
    """
    word = np.asarray(word, dtype=np.uint64)
    size = len(word)
    out = _copy(state, size)
    for low in range(0, size, CHUNK):
        part = slice(low, min(low + CHUNK, size))
        view = (out[0][part], out[1][part], out[2][part], out[3][part])
        _mix(view, word[part], np.empty_like(view[0]))
    return out


def finish(state: State, words: int, last: Iterable[int] = ()) -> U64:
    """Absorb the words of `last` (the same for every message) and return the hash of each message.

    Parameters
    ----------
    state : tuple of four uint64 arrays of shape (n,)
    words : int
        Number of 64-bit words that `state` has absorbed already.
    last : iterable of int
        Further words, common to all messages, for example the number of the step.

    Returns
    -------
    uint64 array of shape (n,)
    """
    tail = [np.uint64(word) for word in last]
    # The final block of SipHash carries the length of the message in its highest byte (whole words: nothing else).
    length = np.uint64(((8 * (words + len(tail))) & 0xFF) << 56)
    size = len(state[0])
    out = np.empty(size, dtype=np.uint64)
    for low in range(0, size, CHUNK):
        part = slice(low, min(low + CHUNK, size))
        view = (state[0][part].copy(), state[1][part].copy(), state[2][part].copy(), state[3][part].copy())
        scratch = np.empty_like(view[0])
        for word in (*tail, length):
            _mix(view, word, scratch)
        np.bitwise_xor(view[2], np.uint64(0xFF), out=view[2])
        _rounds(view, 4, scratch)
        np.bitwise_xor(view[0], view[1], out=view[0])
        np.bitwise_xor(view[2], view[3], out=view[2])
        np.bitwise_xor(view[0], view[2], out=out[part])
    return out


def words_of(texts: Iterable[Any]) -> U64:
    """Return a public 128-bit name of each text (BLAKE2b without a key) as two words, shape (n, 2)."""
    digests = b"".join(hashlib.blake2b(str(text).encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, 2)
