"""Histograms, quantiles and choices: sensitivity by record and replay, cost by formula, privacy by attack."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.accounting import Gaussian, Laplace
from confide.errors import InputError
from confide.mechanisms import (
    SecureNoise,
    SeededNoise,
    noisy_auroc,
    noisy_histogram,
    nonnegative,
    partition_threshold,
    private_selection,
    quantile,
    release_entry_counts,
    select_partitions,
)


class Recorder(SeededNoise):
    """Noise of zero that writes down what was asked for: what comes back is the sum before noise."""

    def __init__(self):
        super().__init__(0)
        self.calls = []

    def normal(self, size, *, scale):
        self.calls.append(("normal", size, scale))
        return np.zeros(size)

    def laplace(self, size, *, scale):
        self.calls.append(("laplace", size, scale))
        return np.zeros(size)


class Halved(SeededNoise):
    """A broken source: half the noise."""

    def normal(self, size, *, scale):
        return super().normal(size, scale=scale / 2)

    def laplace(self, size, *, scale):
        return super().laplace(size, scale=scale / 2)


ENTRIES = st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 4)), min_size=1, max_size=30)


@pytest.mark.parametrize("mechanism", [Gaussian(3.0), Laplace(3.0)])
@settings(max_examples=60, deadline=None)
@given(entries=ENTRIES, victim=st.integers(0, 5))
def test_a_contributor_moves_a_histogram_by_at_most_one(mechanism, entries, victim):
    runs = []
    for rows in (entries, [e for e in entries if e[0] != victim]):
        noise = Recorder()
        bins, owners = [b for _, b in rows], [o for o, _ in rows]
        runs.append((noisy_histogram(bins, owners, 4, mechanism, noise=noise).value, noise.calls))
    assert np.abs(runs[0][0] - runs[1][0]).sum() <= 1 + 1e-12
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("mechanism", [Gaussian(3.0), Laplace(3.0)])
def test_a_histogram_on_the_lattice_moves_by_at_most_one(mechanism):
    rng = np.random.default_rng(0)
    owners, bins = rng.integers(0, 9, 60), rng.integers(0, 40, 60)
    for victim in range(9):
        kept = owners != victim
        values = [
            noisy_histogram(bins[m], owners[m], 40, mechanism, noise=SecureNoise(bytes(32))).value
            for m in (np.ones(60, bool), kept)
        ]
        norm = 1 if isinstance(mechanism, Laplace) else 2
        assert np.linalg.norm(values[0] - values[1], norm) <= 1 + 1e-9


def test_a_histogram_is_unbiased_and_has_the_stated_error():
    bins, owners = [0, 0, 1, 3], ["a", "b", "b", "c"]
    for mechanism in (Gaussian(2.0), Laplace(2.0)):
        noise = SeededNoise(1)
        runs = [noisy_histogram(bins, owners, 4, mechanism, noise=noise) for _ in range(4000)]
        values = np.stack([r.value for r in runs])
        error = runs[0].standard_error
        assert np.abs(values.mean(0) - [1.5, 0.5, 0, 1]).max() < 5 * error / math.sqrt(4000)
        assert np.abs(values.std(0) / error - 1).max() < 0.1
        assert runs[0].mechanism == mechanism


def _laplace_delta(shift, epsilon):
    return max(0.0, -math.expm1((epsilon - shift) / 2))


@pytest.mark.parametrize("parts", [(0.5, 0.5), (0.1, 0.9), (0.4, 0.3, 0.3), (0.25,) * 4])
@pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
def test_laplace_noise_on_a_split_weight_is_dominated_by_the_whole_in_one_bin(parts, shift):
    step = shift / 4000
    masses = np.ones(1)
    for part in parts:
        s = part * shift
        # exact distribution of the loss of one coordinate, on a grid: atoms at +-s, density e^((l - s)/2) / 4 between
        count = round(s / step)
        grid = np.arange(-count, count + 1) * step
        inner = np.concatenate([[0.0], np.diff(np.exp((grid - s) / 2) / 2)])
        inner[0], inner[-1] = np.exp(-s) / 2, inner[-1] + 0.5
        masses = np.convolve(masses, inner / inner.sum())
    grid = (np.arange(len(masses)) - len(masses) // 2) * step
    for epsilon in np.linspace(0, shift, 7)[:-1]:
        split = (np.maximum(-np.expm1(epsilon - grid), 0) * masses).sum()
        assert split <= _laplace_delta(shift, epsilon) + 2 * len(parts) * step


@pytest.mark.parametrize("size", [0.2, 1.0, 3.0])
def test_the_cost_of_a_choice_dominates_every_bounded_range_mechanism(size):
    for epsilon in np.linspace(-size, size, 41)[:-1]:
        t = np.linspace(max(0.0, -1e-9), size, 2001)
        q = np.expm1(size - t) / np.expm1(size)  # probability of the loss t; otherwise the loss is t - size
        exact = np.max(
            q * np.maximum(-np.expm1(epsilon - t), 0) + (1 - q) * np.maximum(-np.expm1(epsilon - t + size), 0)
        )
        bound = (
            _laplace_delta(size, epsilon)
            if epsilon >= 0
            else -math.expm1(epsilon) + math.exp(epsilon) * _laplace_delta(size, -epsilon)
        )
        assert exact <= bound + 1e-9


def _contradicts(run, claim, repetitions=4_000):
    """Does the best threshold test between neighbours beat the claimed trade-off curve, at error 1e-4?"""
    without, with_person = (np.array([run(present) for _ in range(repetitions)]) for present in (False, True))
    half = repetitions // 2
    candidates = np.unique(np.quantile(without[:half], np.linspace(0.02, 0.98, 25)))
    gains = [
        (with_person[:half] > t).mean() - 1 + float(claim.tradeoff(np.array([(without[:half] > t).mean()]))[0])
        for t in candidates
    ]
    t = candidates[int(np.argmax(gains))]
    fp, tp = (without[half:] > t).sum(), (with_person[half:] > t).sum()
    n = repetitions - half
    fpr_high = stats.beta.ppf(1 - 5e-5, fp + 1, n - fp)
    tpr_low = stats.beta.ppf(5e-5, tp, n - tp + 1)
    return bool(1 - tpr_low < float(claim.tradeoff(np.array([fpr_high]))[0]) - 1e-9)


def _histogram_attack(noise, mechanism):
    def run(present):
        owners = ["a", "b", "victim", "victim"] if present else ["a", "b"]
        return noisy_histogram([0, 1, 2, 2][: len(owners)], owners, 3, mechanism, noise=noise).value[2]

    return run


@pytest.mark.parametrize("mechanism", [Gaussian(1.0), Laplace(1.0)])
def test_attacks_on_histograms(mechanism):
    claim = mechanism.guarantee()
    assert not _contradicts(_histogram_attack(SeededNoise(1), mechanism), claim)
    assert _contradicts(_histogram_attack(Halved(1), mechanism), claim)


def _choice_attack(noise, epsilon):
    def run(present):
        scores = [5.0, 5.0 + present, 4.0 + present]
        return float(private_selection([scores[0] - present + 1, *scores[1:]], epsilon=epsilon, noise=noise).value > 0)

    return run


def test_attacks_on_choices():
    claim = private_selection([0.0, 1.0], epsilon=2.0, noise=SeededNoise(0)).mechanism.guarantee()
    assert not _contradicts(_choice_attack(SeededNoise(1), 2.0), claim)
    assert _contradicts(_choice_attack(SeededNoise(1), 4.0), claim)


def test_a_choice_follows_the_exponential_mechanism():
    scores, epsilon = np.array([0.0, 1.0, 2.5]), 1.3
    noise = SeededNoise(2)
    for monotone, sharp in ((False, 0.5), (True, 1.0)):
        chosen = [private_selection(scores, epsilon=epsilon, noise=noise, monotone=monotone).value for _ in range(6000)]
        expected = np.exp(sharp * epsilon * scores)
        assert stats.chisquare(np.bincount(chosen, minlength=3), expected / expected.sum() * 6000).pvalue > 1e-4


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 11)), min_size=1, max_size=25),
    victim=st.integers(0, 5),
    q=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
)
def test_a_contributor_moves_quantile_scores_by_at_most_the_sensitivity(entries, victim, q):
    grid = np.linspace(0, 10, 21)

    def scores(rows):
        if not rows:
            return np.zeros(21)
        owners, values = np.array([o for o, _ in rows]), np.clip([v for _, v in rows], 0, 10)
        weights = 1 / np.array([np.sum(owners == o) for o in owners])
        below = np.array([weights[values <= x].sum() for x in grid])
        return -np.abs(below - q * weights.sum())

    moved = np.abs(scores(entries) - scores([e for e in entries if e[0] != victim]))
    assert moved.max() <= max(q, 1 - q) + 1e-9
    # and the library scores the same way: with a huge epsilon it picks a best candidate
    best = quantile(
        [v for _, v in entries],
        [o for o, _ in entries],
        q,
        low=0,
        high=10,
        epsilon=1e6,
        noise=SeededNoise(0),
        candidates=21,
    )
    assert scores(entries)[np.argmin(np.abs(grid - best.value))] >= scores(entries).max() - 1e-4


def test_quantiles_are_near_and_cost_what_they_say():
    rng = np.random.default_rng(0)
    values = rng.normal(50, 10, 3000)
    released = quantile(values, np.arange(3000), 0.9, low=0, high=200, epsilon=0.5, noise=SeededNoise(1))
    assert abs(released.value - np.quantile(values, 0.9)) < 2
    assert released.mechanism == Laplace(2.0)
    assert released.mechanism.guarantee().epsilon(delta=1e-9) <= 0.5 + 1e-3


def test_heavy_contributors_do_not_rule_a_quantile():
    values = np.concatenate([np.full(5000, 90.0), np.linspace(0, 20, 400)])
    owners = np.concatenate([np.zeros(5000), np.arange(1, 401)])
    assert quantile(values, owners, 0.5, low=0, high=100, epsilon=2.0, noise=SeededNoise(1)).value < 20


def test_the_entry_count_histogram_is_near_nonnegative_and_paid():
    class Index:
        counts = np.concatenate([np.full(5000, 1), np.full(800, 2), np.full(50, 7), np.full(3, 90)])

    released = release_entry_counts(Index(), 16, 0.5, noise=SeededNoise(3))
    assert list(released.value) == list(range(1, 17)) and min(released.value.values()) >= 0
    assert abs(released.value[1] - 5000) < 30 and abs(sum(released.value.values()) - 5853) < 60
    assert released.mechanism == Laplace(2.0)
    assert released.mechanism.guarantee().epsilon(delta=1e-9) <= 0.5 + 1e-3
    for bad in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="epsilon"):
            release_entry_counts(Index(), 16, bad, noise=SeededNoise(3))
    with pytest.raises(InputError, match="max_entries"):
        release_entry_counts(Index(), 0, 1.0, noise=SeededNoise(3))


@given(st.lists(st.floats(-50, 100), min_size=1, max_size=20))
def test_nonnegative_keeps_the_total(noisy):
    noisy = np.array(noisy)
    result = nonnegative(noisy)
    assert (result >= 0).all() and result.sum() == pytest.approx(max(noisy.sum(), 0), abs=1e-9)


def test_partitions_of_few_people_are_not_named():
    common = [("flu", i) for i in range(400)]
    rare = [("rare disease", 999)]
    rows = common + rare
    named = select_partitions(
        [p for p, _ in rows], [o for _, o in rows], Gaussian(2.0), delta=1e-6, max_partitions=3, noise=SeededNoise(1)
    )
    assert set(named.value) == {"flu"} and abs(named.value["flu"] - 400) < 12 and named.delta == 1e-6


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_chance_that_a_lonely_partition_is_named_stays_below_delta(k):
    sigma, delta = 1.5, 0.02
    threshold = partition_threshold(sigma, delta, 5)
    assert 1 - stats.norm.cdf((threshold - 1 / math.sqrt(k)) / sigma) ** k <= delta + 1e-12
    noise = SeededNoise(k)
    hits = sum(
        bool(
            select_partitions(
                [f"p{i}" for i in range(k)], ["v"] * k, Gaussian(sigma), delta=delta, max_partitions=5, noise=noise
            ).value
        )
        for _ in range(3000)
    )
    assert stats.binomtest(hits, 3000, delta, alternative="greater").pvalue > 1e-4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=30), st.integers(0, 4))
def test_a_contributor_moves_partition_counts_by_at_most_one(entries, victim):
    # a Gaussian so small that nothing is hidden, with its noise replaced by zero: the counts before noise
    def counts(rows):
        got = select_partitions(
            [str(p) for _, p in rows],
            [o for o, _ in rows],
            Gaussian(1e-9),
            delta=0.5,
            max_partitions=3,
            noise=Recorder(),
        )
        return got.value

    import confide.mechanisms.selection as selection

    original = selection.partition_threshold
    selection.partition_threshold = lambda *a: -1.0
    try:
        one, two = counts(entries), counts([e for e in entries if e[0] != victim])
    finally:
        selection.partition_threshold = original
    keys = set(one) | set(two)
    assert sum((one.get(key, 0.0) - two.get(key, 0.0)) ** 2 for key in keys) <= 1 + 1e-9


def _scores(n, seed, shift=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return 1 / (1 + np.exp(-rng.normal(shift * labels - shift / 2))), labels


def test_the_noisy_auroc_covers_the_truth_and_costs_what_it_says():
    truth = stats.norm.cdf(1.5 / math.sqrt(2))
    hits = 0
    for seed in range(60):
        scores, labels = _scores(600, seed)
        released = noisy_auroc(scores, labels, np.arange(600), epsilon=1.0, noise=SeededNoise(seed), simulations=300)
        hits += released.value.low <= truth <= released.value.high
        assert released.value.high - released.value.low < 0.3
    assert hits >= 51
    assert released.mechanism == Laplace(1.0)


def test_too_few_people_give_no_auroc():
    scores, labels = _scores(20, 0)
    released = noisy_auroc(scores, labels, np.arange(20), epsilon=0.1, noise=SeededNoise(0))
    assert released.value.auroc is None and (released.value.low, released.value.high) == (0.0, 1.0)


def test_a_contributor_moves_the_auroc_histogram_by_at_most_one(monkeypatch):
    from confide.mechanisms import auroc

    seen = []
    real = auroc.noisy_histogram

    def spy(*args, **kwargs):
        released = real(*args[:4], noise=Recorder())
        seen.append(released.value)
        return released

    monkeypatch.setattr(auroc, "noisy_histogram", spy)
    scores, labels = _scores(60, 0)
    owners = np.random.default_rng(0).integers(0, 12, 60)
    for victim in range(12):
        for kept in (np.ones(60, bool), owners != victim):
            noisy_auroc(scores[kept], labels[kept], owners[kept], epsilon=1.0, noise=SeededNoise(0), simulations=5)
        assert np.abs(seen[-1] - seen[-2]).sum() <= 1 + 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda n: noisy_histogram([0, 1], ["a"], 2, Gaussian(1.0), noise=n),
        lambda n: private_selection([], epsilon=1.0, noise=n),
        lambda n: private_selection([math.nan], epsilon=1.0, noise=n),
        lambda n: private_selection([1.0], epsilon=0.0, noise=n),
        lambda n: private_selection([1.0], epsilon=1.0, sensitivity=0.0, noise=n),
        lambda n: quantile([1.0], ["a"], 1.5, low=0, high=1, epsilon=1.0, noise=n),
        lambda n: quantile([1.0], ["a"], 0.5, low=1, high=1, epsilon=1.0, noise=n),
        lambda n: select_partitions(["a"], ["x"], Gaussian(1.0), delta=0.0, max_partitions=1, noise=n),
        lambda n: noisy_auroc([0.5], [2], ["a"], epsilon=1.0, noise=n),
        lambda n: noisy_auroc([0.5], [1], ["a"], epsilon=1.0, bins=1, noise=n),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(InputError):
        call(SeededNoise(0))
