"""What `EngineOptions` chooses on this machine, and why, in words for `confide doctor`."""

from __future__ import annotations

import torch

from confide.training.engine.types import EngineOptions


def chosen(device: str = "auto") -> dict[str, str]:
    """Return "engine", "precision", "kernels" and "noise", each as what is used and why.

    Parameters
    ----------
    device : str
        See `EngineOptions`.

    >>> sorted(chosen("cpu"))
    ['engine', 'kernels', 'noise', 'precision']
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
        "noise": "ChaCha20 on the device" if cuda else "numpy generator on the host, 256-bit key",
    }


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
