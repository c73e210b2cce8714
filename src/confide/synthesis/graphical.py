"""Maximum-entropy tables: a junction tree over measured tables, fitted by mirror descent (numpy only).

The model is the distribution exp(sum of potentials) over the cliques of a junction tree whose tables come closest to
noisy ones. McKenna, Sheldon and Miklau, "Graphical-model based estimation and inference for differential privacy", ICML
2019 (Private-PGM), Algorithm 1 with the line search of their proximal method.

>>> model = GraphicalModel((2, 2), [(0, 1)])
>>> model.fit([Table((0, 1), np.array([[0.5, 0.0], [0.0, 0.5]]), 0.01)])
>>> model.table((0, 1)).round(2).tolist()
[[0.5, 0.0], [0.0, 0.5]]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from confide.synthesis.domain import Floats, Ints

Clique = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """A noisy table over some variables (ascending), as shares, with the standard deviation of its cells."""

    clique: Clique
    values: Floats
    deviation: float


def maximal_cliques(sizes: Sequence[int], cliques: Iterable[Clique]) -> list[Clique]:
    """Triangulate the graph of `cliques` (fewest cells first) and return its maximal cliques."""
    around: list[set[int]] = [set() for _ in sizes]
    for clique in cliques:
        for a, b in itertools.combinations(clique, 2):
            around[a].add(b)
            around[b].add(a)
    log_size = np.log(np.asarray(sizes, dtype=np.float64))
    left = set(range(len(sizes)))
    cost = {v: float(log_size[v] + sum(log_size[u] for u in around[v])) for v in left}
    found: list[Clique] = []
    while left:
        node = min(left, key=lambda v: (cost[v], v))
        beside = around[node]
        clique = tuple(sorted({node, *beside}))
        if not any(set(clique) <= set(other) for other in found):
            found.append(clique)
        for a, b in itertools.combinations(beside, 2):
            if b not in around[a]:
                around[a].add(b)
                around[b].add(a)
        for v in beside:
            around[v].discard(node)
        left.discard(node)
        for v in beside:
            cost[v] = float(log_size[v] + sum(log_size[u] for u in around[v]))
    return found


def cells(sizes: Sequence[int], cliques: Iterable[Clique]) -> int:
    """Return the number of cells of a junction tree that holds these tables."""
    return sum(int(np.prod([sizes[v] for v in clique])) for clique in maximal_cliques(sizes, cliques))


def _spread(values: Floats, inner: Clique, outer: Clique) -> Floats:
    """Shape a table over `inner` so that it broadcasts over `outer` (both ascending)."""
    shape = [1] * len(outer)
    for size, var in zip(values.shape, inner, strict=True):
        shape[outer.index(var)] = size
    return values.reshape(shape)


def _logsumexp(values: Floats, axes: tuple[int, ...]) -> Floats:
    if not axes:
        return values
    top = values.max(axis=axes, keepdims=True)
    total = np.exp(values - top).sum(axis=axes)
    return np.asarray(np.log(np.maximum(total, 1e-300)) + top.reshape(total.shape), dtype=np.float64)


class GraphicalModel:
    """A distribution over all variables with a junction tree of the given tables.

    Parameters
    ----------
    sizes : sequence of int
        Cells of every variable.
    cliques : iterable of tuple
        Variables (ascending) of tables that have to fit into one clique of the tree.
    start : GraphicalModel, optional
        Warm start: its potentials are taken over.
    """

    def __init__(self, sizes: Sequence[int], cliques: Iterable[Clique], start: GraphicalModel | None = None) -> None:
        self.sizes = tuple(int(n) for n in sizes)
        wanted = {tuple(clique) for clique in cliques}
        self.cliques = maximal_cliques(self.sizes, wanted)
        self._edges = self._tree()
        self.potentials: dict[Clique, Floats] = {}
        if start is not None:
            self.potentials = {clique: values for clique, values in start.potentials.items() if clique in wanted}
        self.tables = self._calibrate(self.potentials)

    def home(self, clique: Clique) -> int:
        """Return the smallest clique of the tree that holds `clique`."""
        inside = [i for i, outer in enumerate(self.cliques) if set(clique) <= set(outer)]
        return min(inside, key=lambda i: (int(np.prod([self.sizes[v] for v in self.cliques[i]])), i))

    def _tree(self) -> list[tuple[int, int, Clique]]:
        """Return (child, parent, separator) from the leaves to the roots of a maximum spanning tree of separators."""
        sets = [set(clique) for clique in self.cliques]
        reached, edges = {0}, []
        best = {i: (len(sets[i] & sets[0]), 0) for i in range(1, len(sets))}
        while best:
            child = max(best, key=lambda i: (best[i][0], -i))
            parent = best.pop(child)[1]
            edges.append((child, parent, tuple(sorted(sets[child] & sets[parent]))))
            reached.add(child)
            for i in best:
                shared = len(sets[i] & sets[child])
                if shared > best[i][0]:
                    best[i] = (shared, child)
        return edges[::-1]

    def _calibrate(self, potentials: Mapping[Clique, Floats]) -> list[Floats]:
        """Return the table of every clique of the tree (belief propagation in logarithms)."""
        beliefs = [np.zeros([self.sizes[v] for v in clique]) for clique in self.cliques]
        for clique, potential in potentials.items():
            home = self.home(clique)
            beliefs[home] += _spread(potential, clique, self.cliques[home])
        messages = {}
        for child, parent, separator in self._edges:
            clique = self.cliques[child]
            axes = tuple(i for i, v in enumerate(clique) if v not in separator)
            message = _logsumexp(beliefs[child], axes)
            messages[child] = message
            beliefs[parent] += _spread(message, separator, self.cliques[parent])
        for child, parent, separator in reversed(self._edges):
            clique = self.cliques[parent]
            axes = tuple(i for i, v in enumerate(clique) if v not in separator)
            message = _logsumexp(beliefs[parent], axes) - messages[child]
            beliefs[child] += _spread(message, separator, self.cliques[child])
        found = []
        for belief in beliefs:
            values = np.exp(belief - belief.max())
            found.append(values / values.sum())
        return found

    def table(self, clique: Clique) -> Floats:
        """Return the model's table over variables that stand together in one clique."""
        home = self.home(clique)
        axes = tuple(i for i, v in enumerate(self.cliques[home]) if v not in clique)
        return np.asarray(self.tables[home].sum(axis=axes), dtype=np.float64)

    def fit(self, measured: Sequence[Table], *, iterations: int = 200, tolerance: float = 1e-6) -> None:
        """Move the potentials until the model's tables are closest to the measured ones (squares over variances)."""
        homes = [self.home(table.clique) for table in measured]
        axes = [
            tuple(i for i, v in enumerate(self.cliques[home]) if v not in table.clique)
            for home, table in zip(homes, measured, strict=True)
        ]
        # in units of the strongest measurement, so that a step of 1 is the right order
        unit = min((table.deviation for table in measured), default=1.0)
        precision = [(unit / table.deviation) ** 2 for table in measured]

        def read(tables: Sequence[Floats]) -> list[Floats]:
            return [tables[home].sum(axis=gone) for home, gone in zip(homes, axes, strict=True)]

        def loss(values: Sequence[Floats]) -> tuple[float, list[Floats]]:
            misses = [value - table.values for value, table in zip(values, measured, strict=True)]
            slopes = [weight * miss for weight, miss in zip(precision, misses, strict=True)]
            return 0.5 * sum(float((g * m).sum()) for g, m in zip(slopes, misses, strict=True)), slopes

        values = read(self.tables)
        now, slopes = loss(values)
        step = 2.0
        for _ in range(iterations):
            step *= 2.0
            descended = False
            for _ in range(25):
                potentials = dict(self.potentials)
                for table, slope in zip(measured, slopes, strict=True):
                    potentials[table.clique] = potentials.get(table.clique, 0.0) - step * slope
                tables = self._calibrate(potentials)
                following = read(tables)
                reached, steeper = loss(following)
                gain = sum(float((g * (a - b)).sum()) for g, a, b in zip(slopes, values, following, strict=True))
                if now - reached >= 0.5 * gain - 1e-15 and reached <= now:
                    descended = True
                    break
                step *= 0.5
            if not descended:
                return
            done = now - reached <= tolerance * max(now, 1e-12)
            self.potentials, self.tables, values, now, slopes = potentials, tables, following, reached, steeper
            if done:
                return

    def sample(self, rows: int, rng: np.random.Generator) -> Ints:
        """Draw rows, shape (rows, variables)."""
        from confide.synthesis.conditional import draw_rows

        codes = np.full((rows, len(self.sizes)), -1, dtype=np.int64)
        for node in [0, *(child for child, _, _ in reversed(self._edges))]:
            clique = self.cliques[node]
            known = tuple(v for v in clique if codes[0, v] >= 0) if rows else ()
            for var in (v for v in clique if v not in known):
                wanted = (*known, var)
                inside = tuple(v for v in clique if v in wanted)
                axes = tuple(i for i, v in enumerate(clique) if v not in wanted)
                table = np.moveaxis(self.tables[node].sum(axis=axes), inside.index(var), -1)
                before = tuple(v for v in inside if v != var)
                flat = table.reshape(-1, self.sizes[var])
                total = flat.sum(1, keepdims=True)
                # a parent that the model gives no mass (rounding) has no preference
                p = np.where(total > 0, flat / np.maximum(total, 1e-300), 1 / self.sizes[var])
                code = np.zeros(rows, dtype=np.int64)
                for v in before:
                    code = code * self.sizes[v] + codes[:, v]
                codes[:, var] = draw_rows(p[code], rng, [code])
                known = wanted
        return codes
