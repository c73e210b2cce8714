"""Images and volumes in their published formats, and private training on them: what several studies share."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.errors import InputError

if TYPE_CHECKING:
    import torch

    from confide.planning import Plan
    from confide.training import Methods, TrainingResult

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Entries and their labels.

    Attributes
    ----------
    x : float32 array, shape (entries, channels, height, width) or (entries, channels, depth, height, width)
    y : int64 array, shape (entries,)
    """

    x: F32
    y: I64

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Any) -> Labelled:
        """Return some entries."""
        return Labelled(self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Splits:
    """Training, validation and test entries as they were published (validation may be empty)."""

    train: Labelled
    validation: Labelled
    test: Labelled

    def head(self, entries: int) -> Splits:
        """Return the first entries of every split."""
        rows = slice(0, entries)
        return Splits(self.train.take(rows), self.validation.take(rows), self.test.take(rows))


def read_medmnist(path: Path) -> Splits:
    """Read a MedMNIST file (.npz) of grey images or volumes with its published splits; values from 0 to 1.

    Raises
    ------
    InputError
        An array is missing.
    """
    found = []
    with np.load(path) as file:
        for split in ("train", "val", "test"):
            for kind in ("images", "labels"):
                if f"{split}_{kind}" not in file:
                    raise InputError(
                        f"{path.name} has no array {split}_{kind}",
                        where="--data",
                        expected="a MedMNIST file such as pneumoniamnist.npz or adrenalmnist3d.npz",
                    )
            images = file[f"{split}_images"]
            top = 255.0 if images.max() > 1 else 1.0
            x = images.astype(np.float32)[:, None] / np.float32(top)
            found.append(Labelled(x, file[f"{split}_labels"].reshape(-1).astype(np.int64)))
    return Splits(*found)


def read_idx(folder: Path, *, mean: float, deviation: float) -> Splits:
    """Read MNIST or Fashion-MNIST from the four idx files as they are published (.gz or not).

    Parameters
    ----------
    folder : Path
        With train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte.
    mean, deviation : float
        Public constants to standardise by, for values from 0 to 1.

    Raises
    ------
    InputError
        A file is missing or is no idx file.
    """
    parts = []
    for split in ("train", "t10k"):
        x, y = _idx(folder, f"{split}-images-idx3-ubyte", 3), _idx(folder, f"{split}-labels-idx1-ubyte", 1)
        scaled = (x.astype(np.float32)[:, None] / np.float32(255.0) - np.float32(mean)) / np.float32(deviation)
        parts.append(Labelled(scaled, y.astype(np.int64)))
    return Splits(parts[0], parts[0].take(slice(0, 0)), parts[1])


def _idx(folder: Path, name: str, dims: int) -> npt.NDArray[np.uint8]:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            raw = file.read_bytes()
            data = gzip.decompress(raw) if file.suffix == ".gz" else raw
            head = 4 * (1 + dims)
            shape = np.frombuffer(data[:head].ljust(head, b"\0"), ">i4")
            if int(shape[0]) != 0x0800 + dims or len(data) != head + int(np.prod(shape[1:])):
                raise InputError(f"{file.name} is no idx file of {dims} dimensions", where="--data")
            return np.frombuffer(data, np.uint8, offset=head).reshape(tuple(int(n) for n in shape[1:]))
    raise InputError(
        f"{folder} has no file {name} or {name}.gz",
        where="--data",
        expected="a folder with the four idx files of MNIST or Fashion-MNIST",
    )


def read_digits(rng: np.random.Generator) -> Splits:
    """Read the 1,797 handwritten digits (8 x 8) that come with scikit-learn; 1,397 for training, 400 for test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images.astype(np.float32)[:, None] / 8.0 - 1.0).astype(np.float32)
    order = rng.permutation(len(x))
    whole = Labelled(x[order], digits.target[order].astype(np.int64))
    return Splits(whole.take(slice(0, 1397)), whole.take(slice(0, 0)), whole.take(slice(1397, None)))


def learn(
    net: torch.nn.Module,
    data: Labelled,
    plan: Plan,
    *,
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
    device: str = "cpu",
    methods: Methods | None = None,
    loss: Any = None,
    entries_each: int = 1,
    physical_batch: int = 1024,
    progress: Callable[[int, int], None] | None = None,
) -> TrainingResult:
    """Train privately; `entries_each` rows in a row belong to one contributor.

    Parameters
    ----------
    net : torch.nn.Module
    data : Labelled
    plan : Plan
    optimizer : function
        Makes the optimiser of given parameters.
    device : str
    methods : Methods, optional
    loss : function, optional
        Per-entry loss; cross-entropy unless given.
    entries_each, physical_batch : int
    progress : function, optional
    """
    import torch
    from torch.utils.data import TensorDataset

    from confide.studies.models import loss_for
    from confide.training import ContributorDataset, EngineOptions, fit

    x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (data.x, data.y))
    owners = [str(row // entries_each) for row in range(len(x))]
    net.to(device)
    kind = "fast" if device.startswith("cuda") else "auto"
    return fit(
        net,
        loss_for(2) if loss is None else loss,
        optimizer(net.parameters()),
        plan,
        ContributorDataset(TensorDataset(x, y), contributors=owners),
        options=EngineOptions(physical_batch=physical_batch, device=device, engine=kind),
        methods=methods,
        progress=progress,
    )


def learn_plainly(
    net: torch.nn.Module,
    data: Labelled,
    rng: np.random.Generator,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    batch: int = 128,
    device: str = "cpu",
    loss: Any = None,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Train without clipping or noise (NAdam with cosine decay); `change` augments a batch."""
    import torch

    from confide.studies.models import loss_for

    each = loss_for(2) if loss is None else loss
    x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (data.x, data.y))
    net.to(device).train()
    optimizer = torch.optim.NAdam(net.parameters(), lr=learning_rate)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.from_numpy(rng.permutation(len(x))), batch):
            optimizer.zero_grad()
            inputs = x[rows] if change is None else change(x[rows])
            each(net(inputs), y[rows]).mean().backward()
            optimizer.step()
        course.step()


def logits_of(net: torch.nn.Module, x: F32, *, batch: int = 512) -> npt.NDArray[np.float64]:
    """Return the outputs for all entries, shape (entries, ...)."""
    import torch

    net.eval()
    device = next(net.parameters()).device
    with torch.no_grad():
        parts = [
            net(torch.from_numpy(x[low : low + batch]).to(device)).double().cpu() for low in range(0, len(x), batch)
        ]
    found: npt.NDArray[np.float64] = torch.cat(parts).numpy()
    return found


def share_right(net: torch.nn.Module, data: Labelled) -> float:
    """Return the share of entries whose largest output is their class."""
    return float((logits_of(net, data.x).argmax(1) == data.y).mean())
