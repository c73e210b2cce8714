"""The pseudo-random function is the published one, and keys go one way."""

import numpy as np
import pytest

from confide.contributors import derive, new_key, ratchet, siphash
from confide.errors import InputError

KEY = bytes(range(16))
# vectors_sip64 of the reference implementation: message 00 01 02 ..., by length in bytes.
PUBLISHED = {
    0: 0x726FDB47DD0E0E31,
    8: 0x93F5F5799A932462,
    16: 0x3F2ACC7F57C29BDB,
    24: 0xB8AD50C6F649AF94,
}


def _words(length):
    message = bytes(range(length))
    return [int.from_bytes(message[i : i + 8], "little") for i in range(0, length, 8)]


@pytest.mark.parametrize("length", sorted(PUBLISHED))
def test_published_vectors(length):
    state = siphash.start(KEY)
    for word in _words(length):
        state = siphash.absorb(state, np.array([word], dtype=np.uint64))
    assert int(siphash.finish(state, words=length // 8)[0]) == PUBLISHED[length]


def test_last_words_are_the_same_as_absorbed_words():
    first, second, third = (np.array([word], dtype=np.uint64) for word in _words(24))
    state = siphash.absorb(siphash.start(KEY), first)
    assert int(siphash.finish(state, 1, last=[int(second[0]), int(third[0])])[0]) == PUBLISHED[24]


def test_many_messages_across_chunks_equal_one_at_a_time():
    words = np.arange(2 * siphash.CHUNK + 5, dtype=np.uint64)
    together = siphash.finish(siphash.absorb(siphash.start(KEY), words), 1, last=[7])
    for position in (0, siphash.CHUNK - 1, siphash.CHUNK, len(words) - 1):
        alone = siphash.finish(siphash.absorb(siphash.start(KEY), words[position : position + 1]), 1, last=[7])
        assert alone[0] == together[position]


def test_the_given_state_is_left_alone():
    state = siphash.absorb(siphash.start(KEY), np.arange(4, dtype=np.uint64))
    before = [part.copy() for part in state]
    siphash.finish(state, 1, last=[1])
    siphash.absorb(state, np.arange(4, dtype=np.uint64))
    assert all(np.array_equal(a, b) for a, b in zip(before, state, strict=True))


def test_keys_are_long_distinct_and_go_one_way():
    key = new_key()
    assert len(key) == 32 and key != new_key()
    assert derive(key, "a") != derive(key, "b") and derive(key, "a") == derive(key, "a")
    assert derive(key, "a", 80)[:32] == derive(key, "a", 32) and len(derive(key, "a", 80)) == 80
    assert ratchet(key) == ratchet(key) != key


@pytest.mark.parametrize("bad", [b"short", "x" * 32, b"x" * 33, None, 5])
def test_a_wrong_key_is_refused(bad):
    with pytest.raises(InputError, match="32 bytes"):
        derive(bad, "a")


def test_a_wrong_siphash_key_is_refused():
    with pytest.raises(InputError, match="16 bytes"):
        siphash.start(b"x" * 15)
