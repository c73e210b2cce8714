"""A torch dataset together with the people it is about.

>>> import torch
>>> from torch.utils.data import TensorDataset
>>> data = ContributorDataset(TensorDataset(torch.zeros(3, 2), torch.zeros(3)), contributors=["ada", "ben", "ada"])
>>> len(data), data.index.n_contributors
(3, 2)
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from confide.contributors import ContributorIndex
from confide.errors import InputError


class ContributorDataset(Dataset[Any]):
    """Wrap a map-style dataset with the contributor of each entry.

    Parameters
    ----------
    dataset : torch Dataset
        Has a length and gives ``(inputs, target)`` for an entry; with more than two parts all but the last are inputs.
    contributors : sequence of str, one for each entry, or ContributorIndex
        Ids as text.
    budgets : mapping, sequence or None
        The declared consent level (an epsilon of the plan's levels) by contributor id, or one for each entry (the same
        for all entries of a contributor); None where everybody has the same.
    entries : sequence of str, optional
        Stable key of each entry, unique within its contributor: makes the secret coins independent of the row order.
    collate : function, optional
        List of items to a batch; default ``torch.utils.data.default_collate``.
    fingerprint : function, optional
        Secret key (bytes) to a keyed fingerprint of the contents; default: the tensors of a TensorDataset, otherwise
        only the contributor index and the number of entries, as reading a whole image folder is too dear.

    Raises
    ------
    InputError
        Lengths that differ, missing ids, a contributor with two budgets or with none.
    """

    def __init__(
        self,
        dataset: Any,
        contributors: Sequence[str] | ContributorIndex,
        budgets: Mapping[str, float] | Sequence[float] | None = None,
        *,
        entries: Sequence[str] | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        fingerprint: Callable[[bytes], str] | None = None,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InputError(
                "the dataset gives no access by position",
                expected="a map-style dataset with a length (not an IterableDataset)",
                remedy="load it into a torch TensorDataset, or write __len__ and __getitem__",
            )
        if isinstance(contributors, ContributorIndex):
            self.index = contributors
        else:
            self.index = ContributorIndex.from_labels(contributors, entries)
        if len(dataset) != self.index.n_entries:
            raise InputError(
                f"{self.index.n_entries} contributor ids for {len(dataset)} entries",
                where="ContributorDataset",
                expected="one contributor id for each entry, in the order of the dataset",
            )
        self.dataset, self._collate, self._fingerprint = dataset, collate, fingerprint
        self.budgets = None if budgets is None else _budgets(budgets, self.index)

    def __len__(self) -> int:
        return self.index.n_entries

    def __getitem__(self, position: int) -> Any:
        return self.dataset[position]

    def __repr__(self) -> str:
        return "ContributorDataset(private)"

    def batch(self, positions: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        """Return (inputs, targets) of some entries."""
        if isinstance(self.dataset, TensorDataset) and self._collate is None:
            rows = torch.as_tensor(positions)
            parts: Any = tuple(value[rows] for value in self.dataset.tensors)
        else:
            wanted = positions.tolist()
            many = getattr(self.dataset, "__getitems__", None)
            items = many(wanted) if many is not None else [self.dataset[i] for i in wanted]
            parts = (self._collate or default_collate)(items)
        return split_batch(parts)

    def fingerprint(self, key: bytes) -> str:
        """Return a keyed fingerprint (HMAC-SHA256, hexadecimal): it tells a changed data set to whoever has the key.

        Parameters
        ----------
        key : bytes
            32 secret bytes of the run.
        """
        digest = hmac.new(key, b"confide data 1", hashlib.sha256)
        for array in (self.index.of_entry, self.index.ordinals):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\x00".join(self.index.ids.tolist()).encode())
        if self.budgets is not None:
            digest.update(self.budgets.tobytes())
        if self._fingerprint is not None:
            digest.update(self._fingerprint(key).encode())
        elif isinstance(self.dataset, TensorDataset):
            for value in self.dataset.tensors:
                digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def split_batch(parts: Any) -> tuple[Any, Any]:
    """Split a collated item into inputs and targets."""
    if isinstance(parts, list | tuple) and len(parts) >= 2:
        return (parts[0] if len(parts) == 2 else tuple(parts[:-1])), parts[-1]
    raise InputError(
        "an item of the dataset is not a pair",
        where="dataset[0]",
        expected="(inputs, target); with several inputs (input, ..., input, target)",
        remedy="return a tuple from __getitem__, or give collate=",
    )


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """Call the model: several inputs become positional arguments, a dictionary becomes keyword arguments."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def to_device(value: Any, device: torch.device) -> Any:
    """Move every tensor in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: to_device(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_device(part, device) for part in value)
    return value


def _budgets(budgets: Mapping[str, float] | Sequence[float], index: ContributorIndex) -> npt.NDArray[np.float64]:
    """Return one budget for each contributor, in the order of the index."""
    if isinstance(budgets, Mapping):
        missing = [name for name in index.ids.tolist() if name not in budgets]
        if missing:
            raise InputError(
                f"{len(missing)} contributors have no budget",
                where="budgets",
                expected="a declared level for every contributor id",
            )
        return np.array([float(budgets[name]) for name in index.ids.tolist()])
    values = np.asarray(budgets, dtype=np.float64)
    if values.shape != (index.n_entries,):
        raise InputError("budgets have the wrong length", expected=f"one for each of the {index.n_entries} entries")
    first = np.zeros(index.n_contributors)
    first[index.of_entry] = values
    if not np.array_equal(first[index.of_entry], values):
        raise InputError(
            "a contributor has two budgets",
            where=f"entry {int(np.argmax(first[index.of_entry] != values))}",
            expected="the same level for all entries of a contributor",
        )
    return first
