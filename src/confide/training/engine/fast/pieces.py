"""What is kept of one parameter until the norm of every unit is known: enough for its square and for the clipped sum.

>>> from confide.training.engine.fast.arithmetic import Arithmetic
>>> kept = Kept(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.Size([2]), Arithmetic(torch.float32, tf32=False))
>>> kept.squared().round(decimals=4).tolist(), kept.weighted(torch.tensor([0.2, 1.0])).round(decimals=4).tolist()
([25.0, 0.25], [0.9, 1.2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from confide.training.engine.fast import kernels
from confide.training.engine.fast.arithmetic import Arithmetic, squares
from confide.training.engine.fast.blocks import Blocks

# Values of one unit up to which a kept gradient is small: reading it costs less than starting a kernel for it.
SMALL = 4096
# Rows of a whole batch up to which one Gram of all rows, masked to pairs of one unit, serves ragged units.
MASKED_ROWS = 2048
# The same where sizes are known and differ: so few rows are less work than a round for each size.
FEW_ROWS = 256


class Piece(Protocol):
    """The gradient of every unit for one parameter (or for some rows of it)."""

    def squared(self) -> Tensor:
        """Return an upper bound of the squared norm of each unit, float64, (units,)."""
        ...

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum over units of weight x gradient; `weights` (units,), exactly zero drops a unit whole."""
        ...


def drop(values: Tensor, weights: Tensor) -> Tensor:
    """Zero the units of weight zero by selection (zero times a non-finite value is not zero)."""
    if values.device.type == "cpu" and get_proxy_mode() is None and not bool((weights == 0).any()):
        return values  # looking is free here: nothing waits for the answer
    keep = (weights != 0).reshape(-1, *[1] * (values.dim() - 1))
    return torch.where(keep, values, torch.zeros((), dtype=values.dtype, device=values.device))


def row_squares(values: Tensor) -> Tensor:
    """Return the squared length of each row (entries, 1, n), float64, (entries,)."""
    plain = type(values) is Tensor and values.device.type == "cpu" and get_proxy_mode() is None
    if plain and values.shape[-1] >= 128 and values.dtype in (torch.float32, torch.float64):
        flat = values.detach()[:, 0].numpy()
        # eight times faster on long rows than torch, which first writes all of them again in float64
        return torch.from_numpy(np.einsum("ij,ij->i", flat, flat, dtype=np.float64))
    return values.double().square().sum((1, 2))


@dataclass
class Kept:
    """Gradients of all units, stored: values (units, n) of a parameter of the given shape.

    `turn` brings axes that are stored in another order (then `shape` is the stored one) back to the parameter's.
    `square` are the squares of these very values, where the kernel that made them gave them too.
    """

    values: Tensor
    shape: torch.Size
    arithmetic: Arithmetic
    turn: tuple[int, ...] | None = None
    square: Tensor | None = None

    def squared(self) -> Tensor:
        """See `Piece`."""
        return self.square if self.square is not None else squares(self.values, self.arithmetic.accumulate)

    def weighted(self, weights: Tensor) -> Tensor:
        """See `Piece`; the product is taken in the accumulating precision whatever the values are stored in."""
        wide, values = self.arithmetic.accumulate, self.values
        if values.device.type == "cpu" and values.dtype == wide and get_proxy_mode() is None:
            return self._turned(torch.mv(drop(values, weights).t(), weights.to(wide)).reshape(self.shape))
        if wide == torch.float32 and kernels.triton_for(values, "sums"):
            return self._turned(torch.ops.confide.weighted_sum(values, weights).reshape(self.shape))
        scaled = drop(values, weights).to(wide) * weights.to(wide)[:, None]
        return self._turned(scaled.sum(0).reshape(self.shape))

    def _turned(self, value: Tensor) -> Tensor:
        return value if self.turn is None else value.permute(self.turn)

    def plus(self, other: Kept) -> Kept:
        """Join two uses of one parameter, in the order of the parameter."""
        total = self.straight() + other.straight()
        return Kept(total.flatten(1), total.shape[1:], self.arithmetic)

    def straight(self) -> Tensor:
        """Return the gradients as (units, *shape of the parameter)."""
        values = self.values.to(self.arithmetic.accumulate).reshape(-1, *self.shape)
        return values if self.turn is None else values.permute(0, *(axis + 1 for axis in self.turn))


@dataclass
class ByEntry:
    """Small gradients of single entries, values (entries, n), whose sums over units wait for those of the others."""

    values: Tensor
    shape: torch.Size
    blocks: Blocks
    arithmetic: Arithmetic

    @cached_property
    def kept(self) -> Kept:
        """The gradients of units: summed once, so that norm and sum read the same values."""
        return Kept(kernels.entry_sums(self.values, self.blocks), self.shape, self.arithmetic)

    def squared(self) -> Tensor:
        """See `Piece`."""
        return self.kept.squared()

    def weighted(self, weights: Tensor) -> Tensor:
        """See `Piece`."""
        return self.kept.weighted(weights)


class Group:
    """Small gradients side by side, so that one sum over units, one of squares and a weighted one serve them all."""

    def __init__(self, members: Sequence[Kept | ByEntry]) -> None:
        arithmetic = members[0].arithmetic
        self._order = sorted(range(len(members)), key=lambda number: isinstance(members[number], ByEntry))
        ordered = [members[number] for number in self._order]
        of_units = [member.values.to(arithmetic.accumulate) for member in ordered if isinstance(member, Kept)]
        waiting = [member for member in ordered if isinstance(member, ByEntry)]
        if waiting:
            joined = torch.cat([member.values.to(arithmetic.accumulate) for member in waiting], 1)
            of_units.append(kernels.entry_sums(joined, waiting[0].blocks))
        values = torch.cat(of_units, 1)
        self.whole = Kept(values, values.shape[1:], arithmetic)
        self._forms = [(m.values.shape[1], m.shape, m.turn if isinstance(m, Kept) else None) for m in ordered]
        self._weights: Tensor | None = None
        self._sums: dict[int, Tensor] = {}

    def weighted(self, weights: Tensor) -> dict[int, Tensor]:
        """Return the weighted sum of every member, by its number."""
        if self._weights is not weights:
            parts = torch.split(self.whole.weighted(weights), [width for width, _, _ in self._forms])
            for number, part, (_, shape, turn) in zip(self._order, parts, self._forms, strict=True):
                value = part.reshape(shape)
                self._sums[number] = value if turn is None else value.permute(turn)
            self._weights = weights
        return self._sums


@dataclass
class Member:
    """One of a `Group`, whose squares are in the group's."""

    group: Group
    number: int

    def weighted(self, weights: Tensor) -> Tensor:
        """See `Piece`."""
        return self.group.weighted(weights)[self.number]


@dataclass
class Pair:
    """Inputs (entries, rows, d) and output gradients (entries, rows, p) of a linear map; no gradient is formed."""

    inputs: Tensor
    grads: Tensor
    blocks: Blocks
    arithmetic: Arithmetic

    def squared(self) -> Tensor:
        """See `Piece`."""
        a, g, blocks = self.inputs, self.grads, self.blocks
        if blocks.each == 1 and a.shape[1] == 1:
            exact = row_squares(a) * row_squares(g)
            length = exact.sqrt()
        elif blocks.known and (len(blocks.parts) == 1 or len(a) * a.shape[1] > FEW_ROWS):
            exact, length = self._by_part()
        else:
            exact, length = self._masked()
        reach = length * (1.0 + self.arithmetic.unit * (a.shape[-1] + g.shape[-1]))
        upper: Tensor = (exact.clamp_min(0.0).sqrt() + self.arithmetic.slack(self._most_rows()) * reach).square()
        return upper

    def _most_rows(self) -> int:
        sizes = [part.size for part in self.blocks.parts] or [self.blocks.each or len(self.inputs)]
        return max(sizes) * int(self.inputs.shape[1])

    def _by_part(self) -> tuple[Tensor, Tensor]:
        """Squared norm of each unit, and the sum of |a_i| |g_i| over its rows: both from the Grams."""
        out: Tensor | None = None
        reach: Tensor | None = None
        for part, (a, g) in self.blocks.pieces(self.inputs, self.grads):
            a, g = a.double(), g.double()
            both = torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))
            out = self.blocks.place(part, both.sum((1, 2)), out)
            own = both.diagonal(dim1=1, dim2=2).sqrt().sum(1)
            reach = self.blocks.place(part, own, reach)
        assert out is not None
        assert reach is not None
        return out, reach

    def _masked(self) -> tuple[Tensor, Tensor]:
        """The same from one Gram of all rows, masked to pairs of one unit."""
        rows = self.inputs.shape[1]
        a, g = (value.reshape(-1, value.shape[-1]).double() for value in (self.inputs, self.grads))
        unit = self.blocks.units.repeat_interleave(rows) if rows > 1 else self.blocks.units
        same = unit[:, None] == unit[None, :]
        both = (a @ a.t()) * (g @ g.t())
        gram = torch.where(same, both, torch.zeros((), dtype=a.dtype, device=a.device)).sum(1)
        none = gram.new_zeros(self.blocks.count)
        return none.index_add(0, unit, gram), none.index_add(0, unit, both.diagonal().sqrt())

    def weighted(self, weights: Tensor) -> Tensor:
        """See `Piece`: one matrix product with the weights folded into the output gradients."""
        wide = self.arithmetic.accumulate
        each = self.blocks.spread(weights).to(wide)
        g = drop(self.grads, each).to(wide) * each[:, None, None]
        a = drop(self.inputs, each).to(wide)
        return g.reshape(-1, g.shape[-1]).t() @ a.reshape(-1, a.shape[-1])


@dataclass
class Tokens:
    """Rows of a table: one gradient (n, width) for each (unit, row of the table) that occurs."""

    values: Tensor
    units: Tensor
    numbers: Tensor
    count: int
    shape: torch.Size
    arithmetic: Arithmetic

    @classmethod
    def of(cls, index: Tensor, grads: Tensor, blocks: Blocks, shape: torch.Size, arithmetic: Arithmetic) -> Tokens:
        """Sum gradients (entries, n, width) of equal rows `index` (entries, n) within each unit, in fixed shapes."""
        keys = (blocks.units[:, None] * shape[0] + index).reshape(-1)
        ordered, order = torch.sort(keys, stable=True)
        first = torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered[1:] != ordered[:-1]])
        run = torch.cumsum(first, 0) - 1
        flat = grads.reshape(len(keys), -1).to(arithmetic.accumulate)
        values = torch.zeros_like(flat).index_add(0, run, flat[order])
        where = torch.zeros_like(keys).scatter(0, run, ordered)
        return cls(values, where // shape[0], where % shape[0], blocks.count, shape, arithmetic)

    def squared(self) -> Tensor:
        """See `Piece`."""
        row = squares(self.values, self.arithmetic.accumulate)
        return row.new_zeros(self.count).index_add(0, self.units, row)

    def weighted(self, weights: Tensor) -> Tensor:
        """See `Piece`."""
        each = weights[self.units].to(self.values.dtype)
        scaled = drop(self.values, each) * each[:, None]
        return scaled.new_zeros(self.shape).index_add(0, self.numbers, scaled)

    def keep(self) -> Kept:
        """Form the gradient of the whole table for each unit: for a table that is used in another way too."""
        whole = self.values.new_zeros((self.count * self.shape[0], *self.shape[1:]))
        whole = whole.index_add(0, self.units * self.shape[0] + self.numbers, self.values)
        return Kept(whole.reshape(self.count, -1), self.shape, self.arithmetic)
