"""Physical batches: whole units up to a size; a unit that is larger comes in parts that are clipped once, together.

Batches are about equally large: every shape of a batch costs a compiled step a compilation, and a last batch of
whatever is left over would have another shape in almost every step.

>>> [len(c.rows) for c in chunks(np.arange(1030), 512)]
[344, 344, 342]
>>> [(c.rows.tolist(), c.units.tolist(), c.partial) for c in chunks(np.array([0, 0, 1, 2, 2, 2]), 2)]
[([0, 1], [0, 0], False), ([2], [0], False), ([3, 4], [0, 0], True), ([5], [0], False)]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from confide.errors import InputError


@dataclass(frozen=True)
class Chunk:
    """One physical batch.

    Attributes
    ----------
    rows : int64 array
        Positions in the draw.
    units : int64 array
        Unit of each row, numbered from 0 within this chunk.
    members : int64 array
        Unit of the draw behind each unit of this chunk.
    partial : bool
        True when the next chunk goes on with the same (single) unit.
    """

    rows: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    partial: bool


def chunks(units: npt.NDArray[np.int64], size: int, *, single: bool = False) -> Iterator[Chunk]:
    """Split a draw into about equally large physical batches of at most `size` entries.

    Parameters
    ----------
    units : int64 array, shape (n,)
        Unit of each entry; entries of one unit side by side, units numbered 0, 1, ... in order.
    size : int
    single : bool
        Never put two units into one physical batch.

    Raises
    ------
    InputError
        If the entries of a unit do not stand side by side.
    """
    if len(units) == 0:
        return
    steps = np.diff(units)
    if units[0] != 0 or bool(np.any((steps != 0) & (steps != 1))):
        raise InputError(
            "the units of a batch are not in order",
            expected="units numbered 0, 1, 2, ... with the entries of each side by side",
        )
    starts = np.flatnonzero(np.concatenate([[True], steps == 1, [True]]))
    first, count = 0, len(starts) - 1
    enough = -(-len(units) // -(-len(units) // size))
    while first < count:
        last = first + 1
        while not single and last < count and starts[last] - starts[first] < enough:
            if starts[last + 1] - starts[first] > size:
                break
            last += 1
        low, high = int(starts[first]), int(starts[last])
        if high - low <= size:
            rows = np.arange(low, high, dtype=np.int64)
            yield Chunk(rows, units[low:high] - first, np.arange(first, last, dtype=np.int64), False)
        else:
            for begin in range(low, high, size):
                rows = np.arange(begin, min(begin + size, high), dtype=np.int64)
                member = np.array([first], dtype=np.int64)
                yield Chunk(rows, np.zeros(len(rows), dtype=np.int64), member, begin + size < high)
        first = last
