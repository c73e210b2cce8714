"""What `EngineOptions` chooses on this machine, and why, in words for `confide doctor`."""

from __future__ import annotations

import torch

from confide.training.engine.memory import free_memory, planned
from confide.training.engine.types import EngineOptions


def chosen(device: str = "auto") -> dict[str, str]:
    """Return "engine", "precision", "kernels", "noise", "memory" and "processes", each as what is used and why.

    Parameters
    ----------
    device : str
        See `EngineOptions`.

    >>> sorted(chosen("cpu"))
    ['engine', 'kernels', 'memory', 'noise', 'precision', 'processes']
    """
    options = EngineOptions(device=device)
    where = options.torch_device()
    cuda = where.type == "cuda"
    if options.compiled:
        engine = "fast, the whole step compiled and replayed as a CUDA graph: benchmarks/engine found it the fastest"
    elif options.fast:
        engine = f"fast, layer by layer: at least as fast as the exact one on {where.type} in benchmarks/engine"
    else:
        engine = f"exact, layer by layer: benchmarks/engine did not find the fast one faster on {where.type}"
    reasons = {
        "bf16": "products in bfloat16, norms and sums in float32: this device multiplies bfloat16 fastest",
        "tf32": "TF32 products",
        "fp32": "float32" + (": this device has no bfloat16" if cuda else ": rounding to less saves no time on a CPU"),
    }
    return {
        "engine": engine,
        "precision": reasons[options.arithmetic],
        "kernels": _kernels(where),
        "noise": "ChaCha20 on the device: the sums need not leave it"
        if cuda
        else "numpy generator on the host, 256-bit key: the sums are there already",
        "memory": _memory(where),
        "processes": _processes(where),
    }


def _memory(where: torch.device) -> str:
    free = free_memory(where)
    meant = planned(where, free) / 2**30
    return (
        f"{free / 2**30:.1f} GiB free; the physical batch is chosen for {meant:.1f} GiB, and halved where memory runs "
        "out all the same"
    )


def _processes(where: torch.device) -> str:
    how = "torchrun --nproc-per-node {} -m confide train STUDY.toml"
    if where.type != "cuda":
        return f"1, with {torch.get_num_threads()} threads; more by {how.format('N')} (gloo)"
    found = torch.cuda.device_count()
    if found == 1:
        return "1: there is one device"
    return (
        f"1 of {found} devices; all of them by {how.format(found)} (NCCL): a process for each, contributors shared out"
    )


def _kernels(where: torch.device) -> str:
    if where.type != "cuda":
        return "plain PyTorch: the Triton kernels are for CUDA"
    from confide.training.engine.fast import kernels

    if not kernels.TRITON:
        return "plain PyTorch: Triton is not installed"
    failed = kernels.check(torch.device(where.type, torch.cuda.current_device()))
    return "Triton, tried here" + (
        f"; not used because they failed here: {', '.join(sorted(failed))}" if failed else ""
    )
