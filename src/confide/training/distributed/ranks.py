"""The processes of one run, and what they say to each other.

>>> alone = Ranks()
>>> alone.rank, alone.world, alone.first
(0, 1, True)

Three rules keep a run with several processes as private as one with a single process:

1. *One sum.* Each rank clips its own units; the partial sums are added on rank 0, or each part of the flat sum on the
   rank that it belongs to (`Exchange`).
2. *Noise once.* Whoever adds up a part adds the noise of that part to it and divides; the others get a copy of what is
   noisy. With "device" noise each rank does so for its own part; with any other source rank 0 does it for all. Were
   every rank to draw equal noise from a common key and add it to its own copy of the whole sum, copies that differ in
   rounding would give away that difference without noise; were every rank to draw its own noise for its own part, the
   sum would carry it once a rank.
3. *One voice.* Keys, checkpoints and whatever else decides comes from rank 0 and reaches the others before they act, so
   that all go on or all stop. Nothing is decided by a rank from its own people.

What passes between processes is not encrypted (torch.distributed does not): use hosts and networks that may see the
private data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from confide.contributors import Draw
from confide.errors import BudgetError, ConfideError, InputError, RunError, VerificationError
from confide.training.distributed.shares import Share, share
from confide.training.engine import ClippedSum

T = TypeVar("T")

# Tensors are there at once or never; a message may wait for rank 0 to read a large data set or to write a report.
PATIENCE = timedelta(minutes=30)
MESSAGES = timedelta(hours=24)
_KINDS = {kind.__name__: kind for kind in (InputError, BudgetError, VerificationError, RunError)}


class Ranks:
    """The processes of a run as one of them sees it; with no group there is this process alone and nothing is sent.

    Parameters
    ----------
    group : process group, optional
        For tensors: NCCL, gloo.
    messages : process group, optional
        For small objects, on the CPU; by default `group`.
    """

    def __init__(self, group: Any = None, messages: Any = None) -> None:
        self._group, self._messages = group, group if messages is None else messages
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world = 1 if group is None else dist.get_world_size(group)

    @property
    def first(self) -> bool:
        """True on the process that holds the ledger, adds the noise and writes files."""
        return self.rank == 0

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, world={self.world})"

    # -- a step ----------------------------------------------------------------------------------------------------

    def share(self, draw: Draw) -> Share:
        """Return this rank's part of a step's draw."""
        return share(draw, self.rank, self.world)

    def total(self, part: ClippedSum, mine: Share, device: torch.device, *, gradients: bool = True) -> ClippedSum:
        """Add the partial sums of all ranks.

        Parameters
        ----------
        part : ClippedSum
            Of this rank's units.
        mine : Share
        device : torch.device
            Where the group's tensors live.
        gradients : bool
            False: they are added up already (in shards), and stay as they are.

        Returns
        -------
        ClippedSum
            Norms, factors and counts of the whole step on every rank, units in the order of the whole draw; the sums
            of gradients on rank 0 alone (elsewhere they are partial).
        """
        if self.world == 1:
            return part
        if len(part.norms) != len(mine.units):
            raise RunError(f"{len(part.norms)} units were clipped, and {len(mine.units)} belong to this process")
        figures = np.zeros(2 * mine.whole + 3)
        figures[mine.units], figures[mine.whole + mine.units] = part.norms, part.factors
        figures[-3:] = part.nonfinite, part.loss, part.entries
        sums = part.gradients
        with self._talk():
            told = torch.as_tensor(figures, device=device)
            dist.all_reduce(told, group=self._group)
            if gradients:
                flat = torch.cat([value.reshape(-1) for value in sums])
                dist.reduce(flat, self._global(0), group=self._group)
                sums = split_like(flat, sums)
        figures = told.cpu().numpy()
        return ClippedSum(
            sums,
            figures[: mine.whole].copy(),
            figures[mine.whole : 2 * mine.whole].copy(),
            round(figures[-3]),
            float(figures[-2]),
            round(figures[-1]),
        )

    def spread_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Give every rank the noisy gradient of rank 0, bit for bit, in ``.grad``."""
        if self.world == 1:
            return
        for kind in dict.fromkeys(value.dtype for value in parameters):
            chosen = [value for value in parameters if value.dtype == kind]
            full = [value.grad for value in chosen if value.grad is not None]
            flat = (
                torch.cat([grad.reshape(-1) for grad in full])
                if self.first
                else chosen[0].new_empty(sum(value.numel() for value in chosen))
            )
            with self._talk():
                dist.broadcast(flat, self._global(0), group=self._group)
            for value, grad in zip(chosen, split_like(flat, chosen), strict=True):
                value.grad = grad.to(value.dtype)

    def reduce_scatter(self, values: Tensor) -> Tensor:
        """Add equal tensors of all ranks and return this rank's part: rows are cut into `world` equal parts."""
        mine = values.new_empty((values.shape[0] // self.world, *values.shape[1:]))
        act = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        with self._talk():
            act(mine, values, group=self._group)
        return mine

    def all_gather(self, values: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return equal tensors of all ranks, one after the other along the first axis."""
        whole = values.new_empty((self.world * values.shape[0], *values.shape[1:])) if out is None else out
        act = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with self._talk():
            act(whole, values, group=self._group)
        return whole

    def most(self, count: int) -> int:
        """Return the largest of all ranks' counts."""
        if self.world == 1:
            return count
        told = torch.tensor(count)
        with self._talk():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._messages)
        return int(told)

    # -- messages --------------------------------------------------------------------------------------------------

    def from_first(self, act: Callable[[], T]) -> T:
        """Do something on rank 0 alone and give every rank the result, or the error.

        Parameters
        ----------
        act : function
            Called on rank 0 only; its result must be picklable.
        """
        if self.world == 1:
            return act()
        told: list[Any] = [None]
        raised: BaseException | None = None
        if self.first:
            try:
                told = [("done", act())]
            except BaseException as error:
                raised, told = error, [("error", _packed(error))]
        with self._talk(raised):
            dist.broadcast_object_list(told, self._global(0), group=self._messages, device=torch.device("cpu"))
        if raised is not None:
            raise raised
        kind, value = told[0]
        if kind == "error":
            raise _unpacked(value, 0)
        result: T = value
        return result

    def together(self, act: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on any, it fails on all.

        Returns
        -------
        What `act` gave on this rank.
        """
        if self.world == 1:
            return act()
        raised: BaseException | None = None
        result: Any = None
        try:
            result = act()
        except BaseException as error:
            raised = error
        told: list[Any] = [None] * self.world
        with self._talk(raised):
            dist.all_gather_object(told, None if raised is None else _packed(raised), group=self._messages)
        if raised is not None:
            raise raised
        for rank, failed in enumerate(told):
            if failed is not None:
                raise _unpacked(failed, rank)
        done: T = result
        return done

    def same(self, value: Any, what: str) -> None:
        """Refuse if ranks do not hold equal values.

        Raises
        ------
        InputError
            On every rank, if any differs from rank 0.
        """
        wanted = self.from_first(lambda: value)

        def compare() -> None:
            if value != wanted:
                raise InputError(
                    f"{what} is not the same in every process",
                    where=f"process {self.rank} of {self.world}",
                    expected="the same study, data, model and plan everywhere",
                    remedy="let every process read the same files",
                )

        self.together(compare)

    def spread_state(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0: initial weights are random."""
        if self.world == 1:
            return
        with self._talk(), torch.no_grad():
            for value in [*model.parameters(), *model.buffers()]:
                plain = value.detach().contiguous()
                group = self._messages if plain.device.type == "cpu" else self._group  # NCCL moves no host memory
                dist.broadcast(plain, self._global(0), group=group)
                value.copy_(plain)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self._group, rank)

    @contextmanager
    def _talk(self, own: BaseException | None = None) -> Iterator[None]:
        """Turn a broken connection into an error that says what to do; an error of this rank's own comes first."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if own is not None:
                raise own from None
            raise RunError(
                "another process of this run stopped or cannot be reached",
                where=f"process {self.rank} of {self.world}",
                remedy="see what the others said; the run goes on from its last checkpoint with --resume, with any "
                "number of processes",
            ) from error


def split_like(flat: Tensor, values: list[Any]) -> list[Tensor]:
    """Cut a flat tensor into the shapes of the given ones."""
    parts = torch.split(flat, [value.numel() for value in values])
    return [part.reshape(value.shape) for part, value in zip(parts, values, strict=True)]


def join(device: str = "cpu") -> Ranks:
    """Return the processes of this run: the group that exists, the one that torchrun asks for, or this process alone.

    A script that is started by torchrun joins by itself. Were each process to train on its own, several models would
    come out of one charge to the ledger.

    Parameters
    ----------
    device : str
        What the run computes on. CUDA devices are chosen by ``LOCAL_RANK`` and talk through NCCL, all else through
        gloo.

    Raises
    ------
    RunError
        The processes do not find each other.
    InputError
        Fewer CUDA devices than processes on this host.
    """
    global _joined
    if not dist.is_available():
        return Ranks()
    if _joined is not None and dist.is_initialized():
        return _joined
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return Ranks()
        _start(device)
    elif dist.get_world_size() == 1:
        return Ranks()
    group = dist.group.WORLD
    messages = group if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=MESSAGES)
    _joined = Ranks(group, messages)
    return _joined


_joined: Ranks | None = None


def _start(device: str) -> None:
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= found:
            raise InputError(
                f"process {local} of this host has no CUDA device: there are {found}",
                where="torchrun --nproc-per-node",
                expected="at most one process for each device",
                remedy=f"start {found} processes, or train on the CPU (--device cpu)",
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE if cuda else MESSAGES)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "the processes of this run do not find each other",
            where="torch.distributed",
            expected="a start by torchrun",
            remedy=str(error).splitlines()[0],
        ) from error


def leave() -> None:
    """Close the group that `join` opened; does nothing where there is none."""
    global _joined
    _joined = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _packed(error: BaseException) -> tuple[str, dict[str, Any]]:
    """Return what another process needs to raise the same; only confide's own errors carry their words."""
    if not isinstance(error, ConfideError):
        return "RunError", {"what": f"{type(error).__name__}: {error}"}
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "RunError")
    return kind, {"what": error.what, "where": error.where, "expected": error.expected, "remedy": error.remedy}


def _unpacked(packed: tuple[str, dict[str, Any]], rank: int) -> ConfideError:
    kind, words = packed
    words = {**words, "where": f"process {rank}: {words['where']}" if words.get("where") else f"process {rank}"}
    return _KINDS[kind](**words)
