"""One column given the columns before it: the maximum-entropy conditional with given (shrunk) interactions.

The model of a column x with parents a, b, ... is a softmax over its cells,

    logit(x | a, b, ...) = f0(x) + f_a(a, x) + f_b(b, x) + s(c, d, ...)' B r(x) + t g(x),

with s and r scores (`confide.synthesis.scores`) where only their covariances were released, and t a public number of
the row (here the number of visits over its mean). Fitting sets the parameters such that, on
rows whose parents were already simulated, one-way and centred two-way tables equal the released ones: an exponential
family's maximum-likelihood equations with noisy sufficient statistics. No junction tree is needed, because parents are
always known when a column is drawn, so any number of two-way tables per column is as cheap as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize

from confide.synthesis.domain import Floats, Ints

LOGIT_LIMIT = 30.0


@dataclass(frozen=True, eq=False)
class Parent:
    """A released centred two-way table with one parent.

    Attributes
    ----------
    codes : int64 array, shape (rows,)
        The parent's value on each simulated row; -1 where it does not apply (no previous visit).
    centre : float array, shape (cells of parent,)
    interaction : float array, shape (cells of parent, cells of the column)
        Target: sum over rows of weight (e_parent - centre)(e_x - q)', over the rows' total weight.
    slack : float
        Variance of the target's noise, which sets how far the fit may stay away from it.
    """

    codes: Ints
    centre: Floats
    interaction: Floats
    slack: float


@dataclass(frozen=True, eq=False)
class Conditional:
    """Fitted parameters; `tables` are the centred interaction parameters with a last row of zeros for "no parent"."""

    base: Floats
    tables: tuple[Floats, ...] = ()
    tilt: Floats | None = None
    slopes: Floats | None = None
    parameters: Floats | None = None

    def logits(self, parents: Sequence[Ints], tilt: Floats | None, rows: int, scores: Floats | None = None) -> Floats:
        """Return the logits of every row, shape (rows, cells)."""
        values = np.broadcast_to(self.base, (rows, len(self.base))).copy()
        for table, codes in zip(self.tables, parents, strict=True):
            values += table[codes]
        if self.tilt is not None and tilt is not None:
            values += tilt[:, None] * self.tilt
        if self.slopes is not None and scores is not None:
            values += scores @ self.slopes
        return values

    def draw(
        self,
        parents: Sequence[Ints],
        tilt: Floats | None,
        rng: np.random.Generator,
        rows: int,
        allowed: npt.NDArray[np.bool_] | None = None,
        scores: Floats | None = None,
    ) -> Ints:
        """Draw one value a row; `allowed` masks out cells, shape (rows, cells)."""
        return draw_rows(probabilities(self.logits(parents, tilt, rows, scores), allowed), rng, parents)


def probabilities(logits: Floats, allowed: npt.NDArray[np.bool_] | None = None) -> Floats:
    """Return the softmax of every row."""
    if allowed is not None:
        logits = np.where(allowed, logits, -np.inf)
    # one row of memory a cell: numpy is several times slower at reducing many short rows
    values = np.array(logits.T, dtype=np.float64, order="C")
    values -= values.max(0)
    np.exp(values, out=values)
    values /= values.sum(0)
    return values.T


GOLDEN = 0.6180339887498949


def draw_rows(p: Floats, rng: np.random.Generator, alike: Sequence[Ints] = ()) -> Ints:
    """Draw one cell from each row of a matrix of probabilities.

    The uniform numbers are evenly spread (a randomly shifted golden-ratio sequence) over rows that are alike, so that
    the shares of a drawn table stray less from the model than those of independent draws; every single draw still has
    the row's probabilities.
    """
    order = _grouped_order(rng.random(len(p)), alike)
    u = np.empty(len(p))
    u[order] = np.mod(np.arange(len(p)) * GOLDEN + rng.random(), 1.0)
    edges = np.cumsum(p.T, axis=0)
    return np.asarray((u * edges[-1] > edges[:-1]).sum(0), dtype=np.int64)


def _grouped_order(key: Floats, alike: Sequence[Ints]) -> Ints:
    """Return np.lexsort((key, *alike)) for keys that differ; few codes are sorted as 16 bits, which numpy does fast."""
    if len(key) < 1000:
        return np.lexsort((key, *alike))
    code, cells = np.zeros(len(key), dtype=np.int64), 1
    for one in reversed(alike):
        low = int(one.min(initial=0))
        width = int(one.max(initial=0)) - low + 1
        cells *= width
        if cells > 1 << 16:
            return np.lexsort((key, *alike))
        code = code * width + (one - low)
    first = np.argsort(key)
    return np.asarray(first[np.argsort(code[first].astype(np.uint16), kind="stable")])


@dataclass(frozen=True, eq=False)
class Moments:
    """Released covariances of scores: of columns that are known on a row with the column that is drawn.

    Attributes
    ----------
    scores : float array, shape (rows, K)
        Centred scores of the known columns; 0 where one does not apply.
    right : float array, shape (cells, S)
        Scores of the column, centred at its one-way distribution.
    goal : float array, shape (K, S)
    slack : float array, shape (K, S)
        Variance that the fit may use to stay away from the goal.
    """

    scores: Floats
    right: Floats
    goal: Floats
    slack: Floats


@dataclass(frozen=True, eq=False)
class Targets:
    """What the fit has to meet: one-way distribution, its tilted companion and the two-way tables."""

    centre: Floats
    one_way: Floats
    parents: tuple[Parent, ...] = ()
    tilt: Floats | None = None
    tilted: Floats | None = None
    allowed: npt.NDArray[np.bool_] | None = field(default=None)
    moments: Moments | None = None


def _grouped(targets: Targets, weights: Floats) -> tuple[Targets, Floats]:
    """Join rows that look the same to the model: their weights add up, the equations stay."""
    keys = [parent.codes + 1 for parent in targets.parents]
    if targets.tilt is not None:
        keys.append(np.unique(targets.tilt, return_inverse=True)[1])
    if targets.allowed is not None:
        keys.append(np.unique(targets.allowed, axis=0, return_inverse=True)[1].reshape(-1))
    code = np.zeros(len(weights), dtype=np.int64)
    for key in keys:
        code = np.unique(code * (int(key.max()) + 1) + key, return_inverse=True)[1]
    _, first = np.unique(code, return_index=True)
    grouped = replace(
        targets,
        parents=tuple(replace(parent, codes=parent.codes[first]) for parent in targets.parents),
        tilt=None if targets.tilt is None else targets.tilt[first],
        allowed=None if targets.allowed is None else targets.allowed[first],
    )
    return grouped, np.bincount(code, weights=weights).astype(np.float64)


def fit(targets: Targets, weights: Floats, *, start: Conditional | None = None, iterations: int = 40) -> Conditional:
    """Find the conditional whose expected tables on the given rows equal the targets.

    Parameters
    ----------
    targets : Targets
    weights : float array, shape (rows,)
        Weight of each simulated row.
    start : Conditional, optional
        Warm start of the same shape.

    Notes
    -----
    Minimises the convex dual by L-BFGS:
    sum_r w_r log Z_r - <targets, parameters> + sum slack / (p q) parameters^2 / 2.
    """
    moments = targets.moments
    if moments is None:
        targets, weights = _grouped(targets, weights)
    n, rows = len(targets.one_way), len(weights)
    w = weights / weights.sum()
    tilt = targets.tilt
    sizes = [n] + ([n] if tilt is not None else []) + [len(p.centre) * n for p in targets.parents]
    edges = np.cumsum([0, *sizes])
    safe = np.maximum(targets.centre, 1e-4)
    goal = [targets.one_way]
    ridge = [np.full(n, 1e-6)]
    if tilt is not None:
        goal.append(targets.tilted if targets.tilted is not None else targets.one_way * float(w @ tilt))
        # where hardly anybody has another number of visits, these equations would be met by those few alone
        ridge.append(np.full(n, 1e-3))
    for parent in targets.parents:
        goal.append(parent.interaction.ravel())
        mass = np.outer(np.maximum(parent.centre, 1e-4), safe)
        ridge.append((1e-7 / np.maximum(mass, 1e-3) + parent.slack / mass).ravel())
    if moments is not None:
        sizes.append(moments.goal.size)
        edges = np.append(edges, edges[-1] + moments.goal.size)
        goal.append(moments.goal.ravel())
        ridge.append((1e-4 + moments.slack).ravel())
    aim, penalty = np.concatenate(goal), np.concatenate(ridge)
    codes = [np.where(p.codes < 0, len(p.centre), p.codes) for p in targets.parents]
    masses = [
        np.bincount(code, weights=w, minlength=len(p.centre) + 1)[:-1]
        for p, code in zip(targets.parents, codes, strict=True)
    ]
    # one row of memory a cell: sums over few cells of many rows are then sums of long rows
    forbidden = None if targets.allowed is None else np.ascontiguousarray(~targets.allowed.T)
    scores = None if moments is None else np.ascontiguousarray(moments.scores.T)

    def unpack(x: Floats) -> Conditional:
        tables = []
        for number, parent in enumerate(targets.parents):
            at = number + 1 + (tilt is not None)
            raw = x[edges[at] : edges[at + 1]].reshape(len(parent.centre), n)
            tables.append(np.vstack([raw - parent.centre @ raw, np.zeros(n)]))
        slopes = None
        if moments is not None:
            slopes = x[edges[-2] :].reshape(moments.goal.shape) @ moments.right.T
        tilted = x[n : 2 * n].copy() if tilt is not None else None
        return Conditional(x[:n].copy(), tuple(tables), tilted, slopes, x)

    def loss(x: Floats) -> tuple[float, Floats]:
        model = unpack(x)
        logits = np.repeat(model.base[:, None], rows, axis=1)
        for table, code in zip(model.tables, codes, strict=True):
            logits += np.take(table.T, code, axis=1)
        if tilt is not None and model.tilt is not None:
            logits += model.tilt[:, None] * tilt
        if scores is not None and model.slopes is not None:
            logits += model.slopes.T @ scores
        if forbidden is not None:
            logits[forbidden] = -np.inf
        top = logits.max(0)
        values = np.exp(logits - top)
        total = values.sum(0)
        value = float(w @ (np.log(total) + top))
        weighted = values * (w / total)
        gradient = [weighted.sum(1)]
        if tilt is not None:
            gradient.append(weighted @ tilt)
        for parent, table, code, at in zip(targets.parents, model.tables, codes, masses, strict=True):
            sums = [np.bincount(code, weights=cell, minlength=len(parent.centre) + 1)[:-1] for cell in weighted]
            centred = np.stack(sums, axis=1) - np.outer(at, targets.centre)
            value -= float(at @ table[:-1] @ targets.centre)
            gradient.append((centred - np.outer(parent.centre, centred.sum(0))).ravel())
        if moments is not None and scores is not None:
            gradient.append((scores @ weighted.T @ moments.right).ravel())
        expected = np.concatenate(gradient)
        return value - float(aim @ x) + 0.5 * float(penalty @ x**2), expected - aim + penalty * x

    x0 = np.zeros(edges[-1])
    x0[:n] = np.log(np.maximum(targets.one_way, 1e-7))
    if start is not None and start.parameters is not None and start.parameters.shape == x0.shape:
        x0 = start.parameters
    bounds = [(-LOGIT_LIMIT, LOGIT_LIMIT)] * len(x0)
    found = optimize.minimize(
        loss,
        np.clip(x0, -LOGIT_LIMIT, LOGIT_LIMIT),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations, "maxcor": 12},
    )
    return unpack(np.asarray(found.x, dtype=np.float64))
