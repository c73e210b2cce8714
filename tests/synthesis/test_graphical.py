"""Inference from noisy tables against private-pgm and against a brute-force solution."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from confide.synthesis.graphical import GraphicalModel, Table, cells, maximal_cliques

# Estimated once by private-pgm (mbi 2.0.0) in an environment of its own: it needs JAX.
ORACLE = json.loads((Path(__file__).parent / "private_pgm.json").read_text())


@pytest.fixture(scope="module")
def measured():
    return [Table(tuple(t["clique"]), np.array(t["values"]), t["deviation"]) for t in ORACLE["measured"]]


@pytest.fixture(scope="module")
def model(measured):
    found = GraphicalModel(ORACLE["sizes"], [t.clique for t in measured])
    found.fit(measured, iterations=3000, tolerance=1e-12)
    return found


def test_tables_are_those_of_private_pgm(model):
    for table in ORACLE["estimated"]:
        np.testing.assert_allclose(model.table(tuple(table["clique"])), table["table"], atol=2e-3)


def test_tables_are_those_of_the_whole_joint_table(model, measured):
    """The closest distribution is unique in the measured tables, whatever the way to it."""
    sizes = ORACLE["sizes"]

    def loss(logits):
        p = np.exp(logits - logits.max())
        p = (p / p.sum()).reshape(sizes)
        value, slope = 0.0, np.zeros(sizes)
        for t in measured:
            axes = tuple(v for v in range(len(sizes)) if v not in t.clique)
            miss = p.sum(axis=axes) - t.values
            value += 0.5 * float((miss**2).sum())
            slope = slope + np.expand_dims(miss, axes)
        return value, (p * (slope - (p * slope).sum())).ravel()

    p = optimize.minimize(loss, np.zeros(np.prod(sizes)), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x
    p = np.exp(p - p.max()).reshape(sizes)
    p /= p.sum()
    for t in measured:
        axes = tuple(v for v in range(len(sizes)) if v not in t.clique)
        np.testing.assert_allclose(model.table(t.clique), p.sum(axis=axes), atol=3e-3)


def test_a_sample_has_the_tables_of_the_model(model, measured):
    rows = model.sample(40_000, np.random.default_rng(0))
    for t in measured:
        drawn = np.zeros(t.values.shape)
        np.add.at(drawn, tuple(rows[:, v] for v in t.clique), 1 / len(rows))
        assert 0.5 * np.abs(drawn - model.table(t.clique)).sum() < 0.02


def test_triangulation_joins_a_cycle_and_counts_cells():
    cycle = [(0, 1), (1, 2), (2, 3), (0, 3)]
    found = maximal_cliques([2, 2, 2, 2, 5], cycle)
    assert sorted(map(len, found)) == [1, 3, 3]
    assert cells([2, 2, 2, 2, 5], cycle) == 8 + 8 + 5
