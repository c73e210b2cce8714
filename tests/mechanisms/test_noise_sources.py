"""Noise has the distribution it claims, repeats only where it should, and the lattice noise is exact."""

import builtins

import numpy as np
import pytest
from scipy import stats

from confide.errors import InputError, MissingExtraError
from confide.mechanisms import KeyedNoise, OSNoise, SecureNoise, SeededNoise, complex_normal, noise_for_step
from confide.mechanisms.secure import LATTICE_BITS, KeyStream, discrete_gaussian, discrete_laplace

KEY = bytes(range(32))
SOURCES = [SeededNoise(3), KeyedNoise(KEY), SecureNoise(KEY)]


@pytest.mark.parametrize("noise", SOURCES, ids=lambda n: type(n).__name__)
def test_distributions(noise):
    assert stats.kstest(noise.normal(20_000, scale=2.5) / 2.5, "norm").pvalue > 1e-4
    assert stats.kstest(noise.laplace(20_000, scale=0.3) / 0.3, "laplace").pvalue > 1e-4
    assert stats.kstest(noise.uniform(20_000), "uniform").pvalue > 1e-4
    assert noise.normal((2, 3), scale=1.0).shape == (2, 3) and noise.laplace((2, 3), scale=1.0).shape == (2, 3)
    added = noise.add_normal(np.full(20_000, 7.0), scale=2.0)
    assert stats.kstest((added - 7) / 2, "norm").pvalue > 1e-4
    assert stats.kstest(noise.add_laplace(np.full(20_000, 7.0), scale=2.0) / 2 - 3.5, "laplace").pvalue > 1e-4


def test_the_complex_noise_is_circular_with_the_scale_per_component():
    z = complex_normal(SeededNoise(1), (200, 200), scale=1.7)
    assert abs(z.real.std() - 1.7) < 0.03 and abs(z.imag.std() - 1.7) < 0.03
    assert abs((z**2).mean()) < 0.06 and z.shape == (200, 200)
    assert complex_normal(SeededNoise(1), 3, scale=1.0).shape == (3,)


def test_only_a_set_seed_is_marked_for_testing():
    assert SeededNoise(1).testing_only
    assert not any(noise.testing_only for noise in (OSNoise(), KeyedNoise(KEY), SecureNoise()))


def test_what_repeats_and_what_does_not():
    def numbers(noise):
        return noise.normal(8, scale=1.0).tolist()

    assert numbers(SeededNoise(5)) == numbers(SeededNoise(5)) != numbers(SeededNoise(6))
    assert numbers(OSNoise()) != numbers(OSNoise())
    assert numbers(SecureNoise()) != numbers(SecureNoise())
    for secure in (False, True):
        first = numbers(noise_for_step(KEY, 3, secure=secure))
        assert first == numbers(noise_for_step(KEY, 3, secure=secure))
        assert first != numbers(noise_for_step(KEY, 4, secure=secure))
        assert first != numbers(noise_for_step(KEY[::-1], 3, secure=secure))
        assert first != numbers(noise_for_step(KEY, 3, secure=secure, stream="other"))


def test_steps_are_independent():
    steps = np.stack([noise_for_step(KEY, step).normal(2000, scale=1.0) for step in range(30)])
    correlation = np.corrcoef(steps)
    assert np.abs(correlation[~np.eye(30, dtype=bool)]).max() < 5 / np.sqrt(2000)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("noise", SOURCES, ids=lambda n: type(n).__name__)
def test_no_noise_is_refused(noise, scale):
    with pytest.raises(InputError, match="noise scale"):
        noise.normal(3, scale=scale)


@pytest.mark.parametrize("key", [b"", b"x" * 31, "x" * 32, None])
def test_a_wrong_key_is_refused(key):
    with pytest.raises(InputError, match="32 secret bytes"):
        noise_for_step(key, 0)


def _pvalue(samples, weights_at):
    """Chi-square p-value of integer samples against exact weights, tails merged."""
    edge = np.arange(-4000, 4001)
    weights = weights_at(edge)
    expected = weights / weights.sum() * len(samples)
    observed = np.bincount(samples + 4000, minlength=len(edge))
    big = expected > 10
    a, b = np.append(observed[big], observed[~big].sum()), np.append(expected[big], expected[~big].sum())
    return stats.chisquare(a, b).pvalue


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_the_discrete_distributions_are_exact(bits):
    stream, scale = KeyStream(KEY), 2.0**bits
    assert _pvalue(discrete_gaussian(stream, 60_000, bits), lambda x: np.exp(-(x**2) / (2 * scale**2))) > 1e-4
    assert _pvalue(discrete_laplace(stream, 60_000, bits), lambda x: np.exp(-np.abs(x) / scale)) > 1e-4


def test_coins_of_one_in_k_are_exact():
    stream = KeyStream(KEY)
    for k in (2, 3, 7):
        heads = stream.one_in(k, 50_000).sum()
        assert stats.binomtest(int(heads), 50_000, 1 / k).pvalue > 1e-4


def test_the_key_stream_is_chacha20():
    # RFC 8439, A.1, test vector 1: zero key, zero nonce, counter 0.
    block = KeyStream(bytes(32)).words(4).astype("<u8").tobytes()
    assert block.hex() == "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"


def test_what_leaves_lies_on_the_lattice():
    noise = SecureNoise(KEY)
    values = np.random.default_rng(0).normal(size=500)
    for released in (noise.add_normal(values, scale=0.37), noise.add_laplace(values, scale=0.37)):
        steps = released / noise.lattice(scale=0.37)
        assert np.abs(steps - np.rint(steps)).max() < 1e-6
    # and it depends on the lattice point alone, not on the bits below it
    lattice = noise.lattice(scale=0.37)
    same = np.rint(values / lattice) * lattice
    assert np.array_equal(
        SecureNoise(KEY).add_normal(values, scale=0.37), SecureNoise(KEY).add_normal(same, scale=0.37)
    )


def test_rounding_stays_inside_the_accounted_sensitivity():
    rng = np.random.default_rng(1)
    noise, d, z = SecureNoise(KEY), 300, 900.0
    clip = noise.clip_for(1.0, noise_multiplier=z, dimensions=d)
    assert clip < 1.0 and clip == pytest.approx(1.0 - np.sqrt(d) * z * 2.0**-LATTICE_BITS)
    for _ in range(50):
        others, person = rng.normal(size=d), rng.normal(size=d)
        person *= clip / np.linalg.norm(person)
        runs = [SecureNoise(KEY).add_normal(total, scale=z) for total in (others + person, others)]
        assert np.linalg.norm(runs[0] - runs[1]) <= 1.0 + 1e-9


def test_too_many_dimensions_for_the_lattice_are_refused():
    with pytest.raises(InputError, match="cannot serve"):
        SecureNoise(KEY).clip_for(1.0, noise_multiplier=100.0, dimensions=2**30)


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_the_lattice_changes_the_privacy_curve_by_the_square_of_its_step(bits):
    sigma, mu = 2.0**bits, 1.0
    x = np.arange(-40 * 2**bits, 40 * 2**bits + 1)
    p, q = (np.exp(-((x - shift) ** 2) / (2 * sigma**2)) for shift in (mu * sigma, 0.0))
    for epsilon in (0.0, 1.0, 3.0):
        exact = np.maximum(p / p.sum() - np.exp(epsilon) * q / q.sum(), 0).sum()
        smooth = stats.norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        assert abs(exact / smooth - 1) < 2 * 4.0**-bits * (1 + epsilon) ** 2


def test_without_cryptography_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'confide\[secure\]'"):
        SecureNoise(KEY)


def test_a_non_finite_sum_does_not_stop_the_secure_noise():
    assert np.isfinite(SecureNoise(KEY).add_normal([np.nan, np.inf, -np.inf, 0.0], scale=1.0)).all()


def test_repr_holds_no_key():
    assert all(repr(noise).endswith("Noise()") for noise in (*SOURCES, OSNoise()))
