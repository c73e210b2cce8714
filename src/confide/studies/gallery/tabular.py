"""People split three ways, and private logistic regression on their entries: what several studies share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from confide.contributors import ContributorIndex
from confide.data import Table
from confide.evaluation import per_contributor
from confide.planning import Plan

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """One side of a split: positions of its entries, who owns them, and one label a person."""

    entries: npt.NDArray[np.int64]
    index: ContributorIndex
    labels: npt.NDArray[np.int64]

    @property
    def people(self) -> npt.NDArray[np.int64]:
        """Numbers of the people, one a label."""
        return np.arange(self.labels.size)

    def scores(self, by_entry: F64) -> F64:
        """Mean score of each person; `by_entry` covers the whole table."""
        zeros = np.zeros(self.entries.size, dtype=np.int64)
        return per_contributor(zeros, by_entry[self.entries], self.index.of_entry)[1]


@dataclass(frozen=True)
class Split:
    """Training, validation and test people of a table."""

    table: Table
    train: Part
    validation: Part
    test: Part


def split_people(table: Table, rng: np.random.Generator, *, train: float = 0.6, validation: float = 0.15) -> Split:
    """Split people, never entries, by independent public coins."""
    coin = rng.random(table.index.n_contributors)
    sides = (coin < train, (coin >= train) & (coin < train + validation), coin >= train + validation)
    assert table.labels is not None
    parts = []
    for side in sides:
        index, entries = table.index.subset(side)
        labels = per_contributor(table.labels[entries], np.zeros(entries.size), index.of_entry)[0]
        parts.append(Part(entries, index, labels))
    return Split(table, *parts)


def split_rows(sides: Sequence[tuple[F32, npt.NDArray[np.int64]]]) -> Split:
    """Return published training, validation and test rows as a split; every row is a unit of its own.

    Parameters
    ----------
    sides : three pairs of float32 array (rows, features) and int64 array (rows,) of 0 and 1
    """
    rows = [f"row {i}" for i in range(sum(len(y) for _, y in sides))]
    index = ContributorIndex.from_labels(rows)
    features = np.ascontiguousarray(np.concatenate([x for x, _ in sides]), dtype=np.float32)
    labels = np.concatenate([y for _, y in sides])
    table = Table(pl.DataFrame({"label": labels}), index, None, features, (), labels, ())
    ends = np.cumsum([len(y) for _, y in sides])
    parts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        inside = np.zeros(len(rows), dtype=bool)
        inside[index.of_entry[start:end]] = True
        own, entries = index.subset(inside)
        of_person = per_contributor(labels[entries], np.zeros(entries.size), own.of_entry)[0]
        parts.append(Part(entries, own, of_person))
    return Split(table, *parts)


def train(split: Split, plan: Plan, *, members: int = 1, learning_rate: float = 0.5, model: Any = None) -> list[F64]:
    """Train privately and return the scores of every entry of the table, one array a member.

    Several members share one plan: its steps are divided among them and the model begins anew for each, so that
    together they cost what the plan says.
    """
    import torch
    from torch.utils.data import TensorDataset

    from confide.nn import build
    from confide.studies.models import loss_for, probabilities
    from confide.training import ContributorDataset, EngineOptions, PrivateRun, make_optimizer

    table = split.table
    assert table.labels is not None
    x = torch.from_numpy(np.ascontiguousarray(table.features[split.train.entries]))
    y = torch.from_numpy(np.ascontiguousarray(table.labels[split.train.entries]))
    net = model if model is not None else build("logistic", table.input_shape, 1)
    fresh = {name: value.detach().clone() for name, value in net.state_dict().items()}
    optimizer = make_optimizer("sgd", net.parameters(), lr=learning_rate)
    owners = split.train.index.ids[split.train.index.of_entry].tolist()
    run = PrivateRun(
        net,
        loss_for(1),
        optimizer,
        plan,
        ContributorDataset(TensorDataset(x, y), contributors=owners),
        options=EngineOptions(physical_batch=8192),
    )
    each = plan.steps // members
    found: list[F64] = []
    for number, batch in enumerate(run, 1):
        run.step(run.loss(net(batch.inputs), batch.targets))
        if number % each == 0 and len(found) < members:
            net.eval()
            found.append(np.asarray(probabilities(net, table.features, outputs=1), dtype=np.float64))
            net.load_state_dict(fresh)
            net.train()
    return found


def train_plainly(split: Split, rng: np.random.Generator, *, epochs: int = 30, learning_rate: float = 0.01) -> F64:
    """Train the same model without clipping or noise (Adam, every entry once an epoch) and return its scores."""
    import torch

    from confide.nn import build
    from confide.studies.models import loss_for, probabilities

    table = split.table
    assert table.labels is not None
    x = torch.from_numpy(np.ascontiguousarray(table.features[split.train.entries]))
    y = torch.from_numpy(np.ascontiguousarray(table.labels[split.train.entries]))
    net, loss = build("logistic", table.input_shape, 1), loss_for(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in torch.split(torch.from_numpy(rng.permutation(len(x))), 2048):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).mean().backward()
            optimizer.step()
    return np.asarray(probabilities(net, table.features, outputs=1), dtype=np.float64)
