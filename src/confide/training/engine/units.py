"""Units of clipping: which rows belong together, and the gradient of each unit for one parameter.

>>> segments = Segments(torch.tensor([0, 0, 1]), 2)
>>> [(group.units.tolist(), group.size) for group in segments.groups]
[([1], 1), ([0], 2)]

A *unit* is what is clipped as one: an entry, or a contributor with all drawn entries. Units that have equally many
entries are stacked into one block, so that every layer rule sees dense ``(units, rows, ...)`` tensors and never a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Units with the same number of entries.

    Attributes
    ----------
    units : int64 tensor, shape (n,)
    size : int
        Entries of each of these units.
    rows : int64 tensor, shape (n * size,), or None
        Their entries in order; None when these are all entries of the batch.
    """

    units: Tensor
    size: int
    rows: Tensor | None

    def take(self, values: Tensor) -> Tensor:
        """Turn (entries, records, ...) into (n, size * records, ...): all records of each unit side by side."""
        chosen = values if self.rows is None else values.index_select(0, self.rows)
        return chosen.reshape(len(self.units), self.size * values.shape[1], *values.shape[2:])


# Values of unit gradients that are widened to float64 at a time.
_BLOCK = 1 << 21


class Segments:
    """The partition of a physical batch into units.

    Parameters
    ----------
    units : int64 tensor, shape (entries,)
        Unit 0..count-1 of each entry; entries of one unit stand side by side.
    count : int
        Number of units; a unit may have no entry here.
    """

    def __init__(self, units: Tensor, count: int) -> None:
        self.units, self.count = units, count

    @cached_property
    def groups(self) -> list[Group]:
        """The units by their number of entries; units without entries are left out."""
        counts = torch.bincount(self.units, minlength=self.count)
        starts = torch.cumsum(counts, 0) - counts
        groups = []
        for size in torch.unique(counts).tolist():
            if size == 0:
                continue
            units = torch.nonzero(counts == size).flatten()
            offsets = torch.arange(size, device=units.device)
            rows = (starts[units][:, None] + offsets).flatten()
            groups.append(Group(units, size, None if len(rows) == len(self.units) else rows))
        return groups


class UnitGradient:
    """The gradient of every unit for one parameter, summed over all uses of the parameter.

    Kept dense, as (units, *shape), or as touched rows only (embeddings); both are merged when a tied parameter is used
    in both ways. Values keep the precision of the parameter; norms are formed from these very values in float64.
    """

    def __init__(self, parameter: Tensor, count: int) -> None:
        self.parameter, self.count = parameter, count
        self._dense: Tensor | None = None
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, units: Tensor, values: Tensor, rows: slice | None = None) -> None:
        """Add dense gradients (n, *shape) of the given units, for some leading rows of the parameter if `rows`."""
        if self._dense is None:
            if rows is None and len(units) == self.count:
                # The first block covers all units: it becomes the store, in the order of `units` (0, 1, 2, ...).
                self._dense = values.to(self.parameter.dtype).contiguous()
                return
            self._dense = self.parameter.new_zeros((self.count, *self.parameter.shape))
        target = self._dense if rows is None else self._dense[:, rows]
        target.index_add_(0, units, values.to(self._dense.dtype))

    def add_rows(self, units: Tensor, index: Tensor, values: Tensor) -> None:
        """Add gradients (n, width) of single rows `index` (n,) of the parameter, for the unit of each."""
        self._rows.append((units, index, values.to(self.parameter.dtype)))

    def _merge_rows(self) -> None:
        """Bring row gradients to one value for each (unit, row), or into the dense store if there is one."""
        if not self._rows:
            return
        units = torch.cat([part[0] for part in self._rows])
        index = torch.cat([part[1] for part in self._rows])
        values = torch.cat([part[2] for part in self._rows])
        if self._dense is not None:
            self._dense.index_put_((units, index), values, accumulate=True)
            self._rows = []
            return
        keys, where = torch.unique(units * self.parameter.shape[0] + index, return_inverse=True)
        merged = values.new_zeros((len(keys), *values.shape[1:])).index_add_(0, where, values)
        self._rows = [(keys // self.parameter.shape[0], keys % self.parameter.shape[0], merged)]

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every unit, float64, shape (units,)."""
        self._merge_rows()
        total = torch.zeros(self.count, dtype=torch.float64, device=self.parameter.device)
        if self._dense is not None:
            flat = self._dense.reshape(self.count, -1)
            total += torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64).square()
        for units, _, values in self._rows:
            row = torch.linalg.vector_norm(values.reshape(len(values), -1), dim=1, dtype=torch.float64).square()
            total.index_add_(0, units, row)
        return total

    def clipped_sum(self, factors: Tensor) -> Tensor:
        """Return the sum over units of factor x gradient in float64; a factor of exactly zero drops the unit whole.

        Parameters
        ----------
        factors : float64 tensor, shape (units,)
        """
        self._merge_rows()
        total = torch.zeros(self.parameter.shape, dtype=torch.float64, device=self.parameter.device)
        keep = factors != 0  # zero times a non-finite value is not zero, so such units leave by selection
        # In float64 throughout: a factor that is rounded to a narrow type (subnormal in float16) could exceed the clip.
        if self._dense is not None:
            for rows in torch.split(keep.nonzero().reshape(-1), max(1, _BLOCK // max(1, self.parameter.numel()))):
                total += torch.tensordot(factors[rows], self._dense[rows].double(), dims=1)
        for units, index, values in self._rows:
            kept = keep[units]
            scaled = values[kept].double() * factors[units[kept]].reshape(-1, *[1] * (values.dim() - 1))
            total.index_add_(0, index[kept], scaled)
        return total

    def dense(self) -> Tensor:
        """Return the gradients as (units, *shape)."""
        self._merge_rows()
        out = self.parameter.new_zeros((self.count, *self.parameter.shape)) if self._dense is None else self._dense
        for units, index, values in self._rows:
            out = out.clone()
            out.index_put_((units, index), values, accumulate=True)
        return out
