"""Linking people, and entries with several owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.contributors import (
    AttributionGraph,
    PrivateRecords,
    by_table,
    owners_of,
    refuse_shared,
)
from confide.errors import InputError

KEY = bytes(range(32))


def test_a_declared_table():
    people, linkage = by_table(["1", "2", "9"], {"1": "A", "2": "B"}, data_set="x-rays")
    lab, _ = by_table(["1", "2"], {"2": "A"}, data_set="laboratory")
    assert people == ["person:A", "person:B", "x-rays:9"] and lab == ["laboratory:1", "person:A"]
    assert "assumption" in linkage.to_dict() and "split" in linkage.assumption
    with pytest.raises(InputError):
        by_table(["1", ""], {}, data_set="d")


PERSONS = [
    {"name": "Anna Katharina Meyer", "street": "Lindenallee 12", "born": "1950"},
    {"name": "Johann Baptist Huber", "street": "Am Steinberg 3", "born": "1961"},
    {"name": "Anna Maria Schmidt", "street": "Hauptstrasse 77", "born": "1950"},
]


def changed(record, **more):
    return {**record, **more}


def test_private_records_link_typing_errors_and_nobody_else():
    pytest.importorskip("fable_core")
    rule = PrivateRecords(fields=("name", "street"), threshold=0.8, block=("born",))
    theirs = [
        changed(PERSONS[0], name="Anna Katarina Meyer"),
        changed(PERSONS[1], street="am  Steinberg 3 "),
        changed(PERSONS[2], born="1951"),
        {"name": "Wholly Other", "street": "Elsewhere 1", "born": "1950"},
    ]
    left, right = rule.encode(KEY, PERSONS), rule.encode(KEY, theirs)
    assert rule.links(left, right) == [(0, 0), (1, 1)]
    # Under another key nothing fits, and no field can be read in what is exchanged.
    assert rule.links(left, rule.encode(bytes(32), PERSONS)) == []
    assert b"meyer" not in b"".join(raw for _, raw in left).lower()
    # A decision about a pair does not change when others come or go.
    assert rule.links(left[:1], right) == [(0, 0)] and rule.links(left, right[:1]) == [(0, 0)]
    assert "at least 0.8" in rule.linkage.rule
    with pytest.raises(InputError, match="record 1") as caught:
        rule.encode(KEY, [PERSONS[0], changed(PERSONS[1], born="")])
    assert "Huber" not in str(caught.value)
    with pytest.raises(InputError):
        rule.encode(b"short", PERSONS)
    with pytest.raises(InputError):
        PrivateRecords(fields=("name",), threshold=0.0)


def test_a_record_like_two_people_is_merged_with_neither():
    owners = owners_of(2, 3, [(0, 0), (0, 1), (1, 1)])
    assert owners == [("left:0",), ("left:1",), ("left:0",), ("left:0", "left:1"), ("right:2",)]
    with pytest.raises(InputError, match="several owners") as caught:
        refuse_shared(owners)
    assert "left:0" not in str(caught.value)
    assert refuse_shared([("a",), ("a", "a")]) == ["a", "a"]


def test_shared_entries_are_refused_unless_the_graph_is_declared_public():
    owners = [("mother",), ("mother", "child"), ("child",)]
    with pytest.raises(InputError, match="several owners"):
        AttributionGraph.declared(owners, public=False)
    graph = AttributionGraph.declared(owners, public=True)
    assert graph.counts.tolist() == [2, 2] and "zero-out" in graph.assumption and "mother" not in repr(graph)
    assert AttributionGraph.declared([("a",), ("b",)], public=False).counts.tolist() == [1, 1]
    assert graph.bounded(1).accepted.tolist() == [True, False, True]
    turned = AttributionGraph.declared(owners, public=True, order=[1, 0, 2])
    assert turned.bounded(1).accepted.tolist() == [False, True, False]
    assert graph.entry_rates([0.1, 0.02]).tolist() == pytest.approx([0.02, 0.02, 0.1])  # names are sorted: child first
    for bad in (
        lambda: AttributionGraph.declared([()], public=True),
        lambda: AttributionGraph.declared(owners, public=True, order=[0, 0, 1]),
        lambda: graph.bounded(0),
        lambda: graph.entry_rates([0.1]),
        lambda: graph.entry_rates([0.1, 1.5]),
    ):
        with pytest.raises(InputError):
            bad()


graphs = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=3, unique=True), min_size=1, max_size=14
)


@settings(max_examples=60, deadline=None)
@given(owners=graphs, most=st.integers(1, 3), seed=st.integers(0, 999))
def test_bounding_is_greedy_maximal_and_within_its_bound(owners, most, seed):
    order = np.random.default_rng(seed).permutation(len(owners)).tolist()
    graph = AttributionGraph.declared(owners, public=True, order=order).bounded(most)
    assert (graph.counts <= most).all()
    for entry in np.flatnonzero(~graph.accepted).tolist():  # every entry left out has an owner without room
        assert any(graph.counts[o] == most for o in graph.owners[entry])


@settings(max_examples=40, deadline=None)
@given(owners=graphs, seed=st.integers(0, 999))
def test_taking_one_person_out_moves_a_sum_by_their_drawn_entries_only(owners, seed):
    """Record and replay: the same coins on D and on D with one person's entries zeroed."""
    rng = np.random.default_rng(seed)
    graph = AttributionGraph.declared(owners, public=True).bounded(2)
    rates = rng.uniform(0.1, 0.9, len(graph.names))
    values = rng.normal(size=(len(owners), 3))
    values /= np.maximum(1, np.linalg.norm(values, axis=1))[:, None]  # each entry clipped to 1
    person = int(rng.integers(len(graph.names)))
    theirs = np.array([person in some for some in graph.owners])
    sampler = graph.sampler(KEY, rates)
    again = graph.sampler(KEY, rates)
    for step in range(20):
        drawn, replayed = sampler.draw(step).entries, again.draw(step).entries
        assert drawn.tolist() == replayed.tolist() and graph.accepted[drawn].all()
        with_, without = values[drawn].sum(axis=0), np.where(theirs[:, None], 0, values)[replayed].sum(axis=0)
        assert np.linalg.norm(with_ - without) <= theirs[drawn].sum() + 1e-12
        assert theirs[drawn].sum() <= graph.counts[person] <= 2


def test_each_owners_guarantee_is_at_most_that_of_their_own_class():
    owners = [("a",), ("a", "b"), ("a", "b"), ("b",), ("c",)]
    graph = AttributionGraph.declared(owners, public=True)
    rates = [0.02, 0.01, 0.03]
    for person in range(3):
        exact = graph.mechanism(person, rates, noise_multiplier=1.0).guarantee(steps=200).epsilon(1e-5)
        bound = graph.bound(person, rates, noise_multiplier=1.0).guarantee(steps=200).epsilon(1e-5)
        assert exact <= bound * (1 + 1e-3)
    # The other owner's lower rate helps: entries shared with b are drawn at b's rate.
    assert graph.mechanism(0, rates, noise_multiplier=1.0).rates == (0.02, 0.01, 0.01)
    # How often entries are really drawn is what the mechanism says.
    sampler = graph.sampler(KEY, [0.5, 0.25, 0.1])
    hits = np.zeros(5)
    for step in range(2000):
        hits[sampler.draw(step).entries] += 1
    assert np.allclose(hits / 2000, [0.5, 0.25, 0.25, 0.25, 0.1], atol=0.05)
