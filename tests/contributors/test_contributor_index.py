"""Entries find their contributor, and bad ids are refused with their row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.contributors import ContributorIndex, holdout_mask
from confide.errors import InputError

LABELS = st.lists(st.sampled_from([f"p{i}" for i in range(8)]), min_size=1, max_size=40)


@given(LABELS)
def test_every_entry_is_found_under_its_contributor_once(labels):
    index = ContributorIndex.from_labels(labels)
    assert [index.ids[i] for i in index.of_entry] == labels
    found = np.concatenate([index.entries_of(i) for i in range(index.n_contributors)])
    assert sorted(found.tolist()) == list(range(len(labels)))
    for i in range(index.n_contributors):
        assert len(index.entries_of(i)) == index.counts[i]
        assert index.ordinals[index.entries_of(i)].tolist() == list(range(index.counts[i]))
    assert sum(k * n for k, n in index.histogram().items()) == len(labels)


@given(LABELS, st.integers(0, 2**8 - 1))
def test_a_subset_keeps_whole_contributors_and_their_ordinals(labels, bits):
    index = ContributorIndex.from_labels(labels)
    keep = np.array([bool(bits >> i & 1) for i in range(index.n_contributors)])
    part, entries = index.subset(keep)
    assert part.ids.tolist() == index.ids[keep].tolist()
    assert part.ids[part.of_entry].tolist() == [labels[e] for e in entries]
    assert part.ordinals.tolist() == index.ordinals[entries].tolist()
    assert part.counts.tolist() == index.counts[keep].tolist()


def test_ids_stay_verbatim_text():
    index = ContributorIndex.from_labels(["1", "01", "1.0", "1"])
    assert index.ids.tolist() == ["01", "1", "1.0"]
    assert ContributorIndex.from_labels(np.array([7, 8, 7])).ids.tolist() == ["7", "8"]


def test_ordinals_follow_the_entry_key_not_the_row():
    one = ContributorIndex.from_labels(["a", "a", "b"], entries=["v2", "v1", "v1"])
    assert one.ordinals.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None], "missing"),
        (["a", "  "], "missing"),
        (["a", float("nan")], "missing"),
        ([1.0, 2.0], "not text"),
        ([b"a"], "not text"),
        (["a\x00", "a"], "NUL"),
        ([], "no entries"),
    ],
)
def test_bad_ids_are_refused(labels, message):
    with pytest.raises(InputError, match=message):
        ContributorIndex.from_labels(labels)


def test_a_missing_id_names_its_entry():
    with pytest.raises(InputError, match="entry 2"):
        ContributorIndex.from_labels(["a", "b", None])


def test_a_repeated_pair_is_refused_with_both_rows():
    with pytest.raises(InputError, match="entries 0 and 2"):
        ContributorIndex.from_labels(["a", "b", "a"], entries=["x", "x", "x"])


def test_entry_keys_must_match_in_number():
    with pytest.raises(InputError, match="differ in number"):
        ContributorIndex.from_labels(["a", "b"], entries=["x"])


def test_a_wrong_mask_is_refused():
    index = ContributorIndex.from_labels(["a", "b"])
    with pytest.raises(InputError, match="mask"):
        index.subset(np.array([1, 0]))


def test_the_index_prints_nothing_private():
    assert "ada" not in repr(ContributorIndex.from_labels(["ada", "ben"]))


def test_holdout_is_a_function_of_the_own_id():
    index = ContributorIndex.from_labels([f"p{i}" for i in range(4000)])
    mask = holdout_mask(index, 0.25, "salt")
    assert abs(mask.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    part, _ = index.subset(np.arange(4000) % 3 == 0)
    assert np.array_equal(holdout_mask(part, 0.25, "salt"), mask[np.arange(4000) % 3 == 0])
    assert not np.array_equal(holdout_mask(index, 0.25, b"another"), mask)
    assert holdout_mask(index, 1.0, "salt").all() and not holdout_mask(index, 0.0, "salt").any()
    with pytest.raises(InputError, match="share"):
        holdout_mask(index, 1.5, "salt")
