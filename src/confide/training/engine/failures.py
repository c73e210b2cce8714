"""What failed: memory that ran out, which smaller batches may mend, or a device that is lost to this process.

>>> out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), fatal(RuntimeError("CUDA error: launch failure"))
(True, True)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from confide.errors import RunError

# On a CPU torch raises a plain RuntimeError with these words, numpy and Python a MemoryError.
_CPU = ("DefaultCPUAllocator", "not enough memory")


def out_of_memory(error: BaseException) -> bool:
    """True where memory of a device or of the host ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU)


def fatal(error: BaseException) -> bool:
    """True for errors after which the device is not usable in this process."""
    lost = getattr(torch, "AcceleratorError", ())
    return (isinstance(error, lost) if lost else False) or "CUDA error" in str(error)


def device_failed(error: BaseException, where: str) -> RunError:
    """Say that the device failed and how to go on."""
    return RunError(
        f"the device failed: {str(error).splitlines()[0]}",
        where=where,
        remedy="start again with --resume: the run goes on from its last checkpoint, and what was reserved stays "
        "reserved",
    )


@contextmanager
def in_words(where: str) -> Iterator[None]:
    """Turn a failed device, and memory that ran out where no smaller batch can help, into errors that say what to do.

    Parameters
    ----------
    where : str

    Raises
    ------
    RunError
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if fatal(error):
            raise device_failed(error, where) from error
        if out_of_memory(error):
            raise RunError(
                f"memory ran out: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                where=where,
                expected="room for the model, its gradient, the noise and the state of the optimiser",
                remedy="use a smaller model or another device; a run that has begun goes on with --resume",
            ) from error
        raise
