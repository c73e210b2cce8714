"""How many entries pass through the model at once when nobody says: from the memory that is there.

>>> most_entries([torch.zeros(10)], 0) == CAP
True
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from confide.training.engine.tape import Site

# Share of the memory that is free, and bounds in bytes where it cannot be asked or is plentiful.
SHARE = {"cuda": 0.5, "cpu": 0.25}
FLOOR, CEILING = 2**28, {"cuda": 2**36, "cpu": 2**31}
CAP = 8192


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device; 1 GiB where nothing tells."""
    try:
        if device.type == "cuda":
            return int(torch.cuda.mem_get_info(device)[0])
        return _available() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError, RuntimeError):
        return 2**30


def _available() -> int:
    """Bytes that Linux would give without swapping, its cache of files included; 0 where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def planned(device: torch.device, free: int) -> int:
    """Bytes of a device that the physical batch is chosen for."""
    kind = device.type if device.type in SHARE else "cpu"
    return min(max(int(SHARE[kind] * free), FLOOR), CEILING[kind])


def most_entries(parameters: Sequence[Tensor], entry_bytes: int) -> int:
    """Return how many entries fit, each with a gradient of its own and what the layers keep of it.

    Parameters
    ----------
    parameters : sequence of tensors
        Trainable ones.
    entry_bytes : int
        What the layers keep of one entry, 0 if nothing was measured.
    """
    budget = planned(parameters[0].device, free_memory(parameters[0].device))
    own = sum(value.numel() * value.element_size() for value in parameters)
    # Three times what is kept: other operations keep their inputs too, and the backward pass makes gradients of both.
    return int(min(max(budget // max(own + 3 * entry_bytes, 1), 1), CAP))


def kept_bytes(sites: Sequence[Site], entries: int) -> int:
    """Bytes of one entry in the inputs and outputs of the layers that were recorded for `entries` entries."""
    total = 0
    for site in sites:
        total += sum(value.numel() * value.element_size() for value in site.saved)
        total += sum(tap.shape.numel() * tap.dtype.itemsize for tap in site.taps)
    return -(-total // max(entries, 1))
