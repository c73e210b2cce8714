"""Draws have the rates the accountant assumes, and one person's coins are nobody else's business."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from confide.contributors import ContributorIndex, ContributorSampler, EntrySampler, ratchet, secret_subset
from confide.errors import InputError

KEY = bytes(range(32))


def _index(counts, *, seed=0):
    labels = np.repeat([f"p{i:04d}" for i in range(len(counts))], counts)
    return ContributorIndex.from_labels(np.random.default_rng(seed).permutation(labels).tolist())


def _draw_of_others(kind, labels, entries, rates, victim, limit, steps=6):
    """Draws of everybody but `victim`, as (contributor, entry key) pairs, with and without the victim in the data."""
    runs = []
    for present in (True, False):
        rows = [i for i, who in enumerate(labels) if present or who != victim]
        index = ContributorIndex.from_labels([labels[i] for i in rows], entries=[entries[i] for i in rows])
        sampler = kind(KEY, index, np.array([rates[who] for who in index.ids]), max_entries=limit)
        run = []
        for step in range(steps):
            draw = sampler.draw(step)
            owners = index.ids[draw.contributors[draw.units]] if len(draw) else []
            run.append(
                {
                    (str(who), entries[rows[e]], float(w))
                    for who, e, w in zip(owners, draw.entries, draw.weights, strict=True)
                    if who != victim
                }
            )
        runs.append(run)
    return runs


@pytest.mark.parametrize("kind", [EntrySampler, ContributorSampler])
@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=8),
    victim=st.integers(0, 7),
    limit=st.sampled_from([None, 1, 2, 3]),
    data=st.data(),
)
def test_removing_a_person_leaves_all_other_draws(kind, counts, victim, limit, data):
    pairs = [(f"p{i}", f"e{j}") for i, k in enumerate(counts) for j in range(k)]
    pairs = data.draw(st.permutations(pairs))
    rates = {f"p{i}": data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])) for i in range(len(counts))}
    with_person, without = _draw_of_others(
        kind, [p for p, _ in pairs], [e for _, e in pairs], rates, f"p{victim % len(counts)}", limit
    )
    assert with_person == without


@pytest.mark.parametrize("kind", [EntrySampler, ContributorSampler])
def test_row_order_changes_nothing_when_entries_have_keys(kind):
    pairs = [(f"p{i}", f"e{j}") for i in range(20) for j in range(1 + i % 4)]
    drawn = []
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(pairs))
        rows = [pairs[i] for i in order]
        index = ContributorIndex.from_labels([r[0] for r in rows], entries=[r[1] for r in rows])
        sampler = kind(KEY, index, np.full(20, 0.4), max_entries=2)
        drawn.append([{rows[e] for e in sampler.draw(step).entries} for step in range(10)])
    assert drawn[0] == drawn[1]


def test_entry_counts_follow_the_binomial():
    counts = np.tile([1, 2, 5, 9], 250)
    index = _index(counts)
    rate = 0.13
    sampler = EntrySampler(KEY, index, np.full(index.n_contributors, rate))
    drawn = np.array([np.bincount(sampler.draw(s).contributors, minlength=len(counts)) for s in range(120)])
    for k in (1, 2, 5, 9):
        observed = np.bincount(drawn[:, counts == k].ravel(), minlength=k + 1)
        expected = stats.binom.pmf(np.arange(k + 1), k, rate) * observed.sum()
        big = expected >= 5
        merged = (np.append(observed[big], observed[~big].sum()), np.append(expected[big], expected[~big].sum()))
        keep = merged[1] > 0
        assert stats.chisquare(merged[0][keep], merged[1][keep]).pvalue > 1e-4


def test_rates_are_individual_and_certain_ones_are_certain():
    index = _index([3] * 400)
    rates = np.tile([0.0, 0.05, 0.5, 1.0], 100)
    sampler = EntrySampler(KEY, index, rates)
    total = sum(np.bincount(sampler.draw(s).contributors, minlength=400) for s in range(50))
    for rate in (0.0, 0.05, 0.5, 1.0):
        n = 100 * 3 * 50
        share = total[rates == rate].sum() / n
        assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / n)


def test_steps_and_entries_are_independent():
    index = _index([4] * 200)
    sampler = EntrySampler(KEY, index, np.full(200, 0.5))
    coins = np.zeros((400, index.n_entries))
    for step in range(400):
        coins[step, sampler.draw(step).entries] = 1
    coins -= coins.mean()
    lag = (coins[1:] * coins[:-1]).sum() / np.sqrt(coins[1:].size) / 0.25
    assert abs(lag) < 5
    siblings = [index.entries_of(i) for i in range(200)]
    pair = sum((coins[:, e[0]] * coins[:, e[1]]).sum() for e in siblings) / np.sqrt(400 * 200) / 0.25
    assert abs(pair) < 5


def test_another_key_draws_something_else_and_the_same_key_repeats():
    index = _index([2] * 300)
    rates = np.full(300, 0.3)
    one, two, other = (
        EntrySampler(KEY, index, rates),
        EntrySampler(KEY, index, rates),
        EntrySampler(ratchet(KEY), index, rates),
    )
    assert np.array_equal(one.draw(3).entries, two.draw(3).entries)
    assert not np.array_equal(one.draw(3).entries, other.draw(3).entries)
    assert not np.array_equal(one.draw(3).entries, one.draw(4).entries)
    one.rekey(ratchet(KEY))
    assert np.array_equal(one.draw(3).entries, other.draw(3).entries)


def test_a_truncating_entry_sampler_uses_one_fixed_uniform_subset():
    index = _index([7] * 600)
    sampler = EntrySampler(KEY, index, np.full(600, 1.0), max_entries=2, subset_key=KEY)
    first = sampler.draw(0).entries
    sampler.rekey(ratchet(KEY))
    assert np.array_equal(first, sampler.draw(5).entries)
    assert np.bincount(index.of_entry[first]).tolist() == [2] * 600
    chosen = np.bincount(index.ordinals[first], minlength=7)
    assert stats.chisquare(chosen).pvalue > 1e-4
    assert np.array_equal(secret_subset(KEY, index, 2), sampler.included)
    assert secret_subset(KEY, index, None).all()


def test_contributor_units_are_contiguous_limited_and_weigh_one():
    counts = np.tile([1, 2, 6], 200)
    index = _index(counts)
    sampler = ContributorSampler(KEY, index, np.full(600, 0.4), max_entries=3)
    often = np.zeros(600)
    ordinals = np.zeros(6)
    for step in range(60):
        draw = sampler.draw(step)
        assert draw.units.tolist() == sorted(draw.units.tolist())
        assert np.array_equal(index.of_entry[draw.entries], draw.contributors[draw.units])
        assert np.allclose(np.bincount(draw.units, draw.weights), 1.0)
        sizes = np.bincount(draw.units, minlength=len(draw.contributors))
        assert np.array_equal(sizes, np.minimum(counts[draw.contributors], 3))
        assert len(set(draw.entries.tolist())) == len(draw.entries)
        often[draw.contributors] += 1
        long = counts[draw.contributors[draw.units]] == 6
        ordinals += np.bincount(index.ordinals[draw.entries[long]], minlength=6)
    assert (
        stats.kstest(stats.binom.cdf(often, 60, 0.4) - 0.5 * stats.binom.pmf(often, 60, 0.4), "uniform").pvalue > 1e-4
    )
    assert stats.chisquare(ordinals).pvalue > 1e-4


def test_contributor_entries_are_chosen_anew_each_step():
    index = _index([30])
    sampler = ContributorSampler(KEY, index, np.ones(1), max_entries=3)
    assert len({tuple(sorted(sampler.draw(s).entries.tolist())) for s in range(12)}) > 6


@pytest.mark.parametrize("kind", [EntrySampler, ContributorSampler])
def test_an_empty_draw_is_a_draw(kind):
    draw = kind(KEY, _index([2, 3]), np.zeros(2), max_entries=1).draw(9)
    assert (draw.step, len(draw), len(draw.units), len(draw.contributors), len(draw.weights)) == (9, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", [EntrySampler, ContributorSampler])
@pytest.mark.parametrize("bad", [[0.5], [0.5, 1.1], [-0.1, 0.5], [np.nan, 0.5]])
def test_bad_rates_are_refused(kind, bad):
    with pytest.raises(InputError, match="rate"):
        kind(KEY, _index([1, 1]), np.array(bad))


@pytest.mark.parametrize("kind", [EntrySampler, ContributorSampler])
def test_a_limit_below_one_is_refused(kind):
    with pytest.raises(InputError, match="max_entries"):
        kind(KEY, _index([1, 1]), np.ones(2), max_entries=0)


def test_tiny_rates_never_round_up():
    index = _index([1] * 10)
    sampler = EntrySampler(KEY, index, np.full(10, 2.0**-70))
    assert all(len(sampler.draw(s)) == 0 for s in range(20))


def test_nothing_private_is_printed():
    index = _index([2, 3])
    sampler = EntrySampler(KEY, index, np.ones(2))
    assert "p0000" not in repr(sampler) + repr(sampler.draw(0))
