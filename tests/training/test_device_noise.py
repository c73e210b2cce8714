"""Noise of the device: the key stream of RFC 8439, normal numbers of the right size, no two streams alike."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from scipy import stats

from confide.errors import InputError
from confide.training.device_noise import add_noise, chacha20, normals

KEY = bytes(range(32))


def test_the_key_stream_is_the_one_of_the_standard():
    nonce = struct.unpack("<3I", bytes.fromhex("000000090000004a00000000"))
    words = chacha20(KEY, torch.tensor([1]), nonce)[0].tolist()
    assert words == [
        0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3, 0xC7F4D1C7, 0x0368C033, 0x9AAA2204, 0x4E6CD4C3,
        0x466482D2, 0x09AA9F07, 0x05D7C214, 0xA2028BD9, 0xD19C12B5, 0xB94E16DE, 0xE883D0CB, 0x4E3C50A2,
    ]  # fmt: skip


def test_the_key_stream_equals_another_library():
    ciphers = pytest.importorskip("cryptography.hazmat.primitives.ciphers")
    cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(KEY, struct.pack("<4I", 0, 7, 0, 0)), mode=None)
    text = cipher.encryptor().update(bytes(64 * 5))
    assert chacha20(KEY, torch.arange(5), (7, 0, 0)).numpy().astype("<u4").tobytes() == text


def test_the_numbers_are_normal():
    values = normals(KEY, 200_000, torch.device("cpu")).double().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert abs(values.mean()) < 0.01 and abs(values.var() - 1) < 0.015 and abs(stats.kurtosis(values)) < 0.05
    assert np.abs(np.corrcoef(values[0::2], values[1::2])[0, 1]) < 0.01
    assert 4.0 < np.abs(values).max() < 9.5


def test_keys_and_positions_differ_and_repeat():
    cpu = torch.device("cpu")
    first = normals(KEY, 3000, cpu)
    assert torch.equal(first, normals(KEY, 3000, cpu)) and torch.equal(first[:70], normals(KEY, 70, cpu))
    for begin in (1, 70, 2047, 2048, 2500):
        assert torch.equal(first[begin:], normals(KEY, 3000 - begin, cpu, begin))
    for other in (normals(KEY, 3000, cpu, 1), normals(KEY, 3000, cpu, 1 << 33), normals(bytes(32), 3000, cpu)):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.08
    assert len(first.unique()) > 2990


def test_a_stream_is_not_used_beyond_its_end():
    with pytest.raises(InputError, match="more than"):
        add_noise([torch.zeros(3)], KEY, scale=1.0, denominator=1.0, begin=(10 << 32) - 2)


def test_sums_get_the_noise_once_and_are_divided():
    values = [torch.full((40, 50), 7.0), torch.full((3,), 1.0, dtype=torch.float64)]
    add_noise(values, KEY, scale=2.0, denominator=4.0)
    assert float(values[0].mean()) == pytest.approx(7 / 4, abs=0.05)
    assert float(values[0].std()) == pytest.approx(0.5, rel=0.05)
    want = (1.0 + 2.0 * normals(KEY, 3, torch.device("cpu"), 2000, torch.float64)) / 4.0
    torch.testing.assert_close(values[1], want)


def test_noise_of_a_float64_sum_hides_its_last_bits():
    """Noise on the grid of float32 would leave them as they are: whoever guesses the sum could check the guess."""
    sums = torch.randn(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noisy = sums.clone()
    add_noise([noisy], KEY, scale=1.0, denominator=1.0)
    noise = noisy - sums
    torch.testing.assert_close(noise.float(), normals(KEY, 2000, torch.device("cpu")))
    off_grid = ((noise - noise.float().double()) / noise).abs()
    assert float((off_grid > 1e-12).double().mean()) > 0.99
