"""How the rows of a batch belong to units, in the forms that fast sums want.

>>> blocks = Blocks.of(np.array([0, 0, 1, 1]), 2, torch.device("cpu"))
>>> blocks.each, blocks.sums(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
(2, [3.0, 7.0])

Units with equally many entries are plain reshapes. Ragged units are either grouped by size (sizes known on the host)
or, in a compiled step whose shapes must not depend on the sizes, addressed through `units` and `offsets` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Units of one size: their numbers (None: all, in order), entries of each, and their rows (None: all)."""

    units: Tensor | None
    size: int
    rows: Tensor | None

    def take(self, values: Tensor) -> Tensor:
        """Turn (entries, rows, ...) into (n, size * rows, ...)."""
        chosen = values if self.rows is None else values.index_select(0, self.rows)
        return chosen.reshape(-1, self.size * values.shape[1], *values.shape[2:])


@dataclass(frozen=True)
class Blocks:
    """The partition of a batch into units.

    Attributes
    ----------
    units : int64 tensor, shape (entries,)
        Unit of each entry; entries of one unit side by side.
    count : int
        Number of units.
    each : int, optional
        Entries of every unit if they all have equally many, else None.
    parts : tuple of Part
        Ragged units by size; empty if the sizes are not known on the host.
    """

    units: Tensor
    count: int
    each: int | None
    parts: tuple[Part, ...] = field(default=())

    @classmethod
    def of(cls, units: npt.NDArray[np.int64], count: int, device: torch.device) -> Blocks:
        """Build from units that are known on the host."""
        where = torch.as_tensor(units, device=device)
        sizes = np.bincount(units, minlength=count)
        if count and len(units) and bool(np.all(sizes == sizes[0])):
            return cls(where, count, int(sizes[0]), (Part(None, int(sizes[0]), None),))
        starts = np.cumsum(sizes) - sizes
        parts = []
        for size in np.unique(sizes[sizes > 0]).tolist():
            chosen = np.flatnonzero(sizes == size)
            rows = (starts[chosen][:, None] + np.arange(size)).reshape(-1)
            parts.append(Part(torch.as_tensor(chosen, device=device), size, torch.as_tensor(rows, device=device)))
        return cls(where, count, None, tuple(parts))

    @property
    def known(self) -> bool:
        """True when the size of every unit is known without looking at the device."""
        return bool(self.parts)

    @property
    def offsets(self) -> Tensor:
        """First entry of each unit and the end, int32, shape (count + 1,); from `units`, without the host."""
        ends = torch.arange(self.count + 1, device=self.units.device)
        return torch.searchsorted(self.units, ends).to(torch.int32)

    def sums(self, values: Tensor) -> Tensor:
        """Sum values (entries, ...) over the entries of each unit: (count, ...)."""
        if self.each == 1:
            return values
        if self.each is not None:
            return values.reshape(self.count, self.each, *values.shape[1:]).sum(1)
        return values.new_zeros((self.count, *values.shape[1:])).index_add(0, self.units, values)

    def spread(self, values: Tensor) -> Tensor:
        """Give every entry the value of its unit: (count,) to (entries,)."""
        return values if self.each == 1 else values[self.units]

    def pieces(self, *values: Tensor) -> Iterator[tuple[Part, list[Tensor]]]:
        """Walk over the parts with (entries, rows, ...) tensors turned into (n, size * rows, ...)."""
        for part in self.parts:
            yield part, [part.take(value) for value in values]

    def place(self, part: Part, values: Tensor, out: Tensor | None) -> Tensor:
        """Put what was computed for the units of one part in the order of all units."""
        if part.units is None:
            return values
        out = values.new_zeros((self.count, *values.shape[1:])) if out is None else out
        return out.index_copy(0, part.units, values)
