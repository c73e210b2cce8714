"""Complex parameters as pairs of real ones: clipping and noise are then the circular complex Gaussian mechanism.

>>> class Twist(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
...     def forward(self, x):
...         return (x * self.weight).abs().sum(-1)
>>> model = realify(Twist())
>>> [(name, tuple(value.shape)) for name, value in model.named_parameters()]
[('parametrizations.weight.original0', (3,)), ('parametrizations.weight.original1', (3,))]
>>> complex_state(model)["weight"].dtype
torch.complex64

A gradient of n complex values is a real vector of 2 n (torch's ``.grad`` is dL/dx + i dL/dy), its norm the complex L2
norm over all parameters, so a sum clipped to C has sensitivity C, and noise of standard deviation s C for every real
component is a Gaussian mechanism with noise multiplier s. Real and imaginary noise are independent and equally large:
*circular*; any correlation between them would cost privacy at equal total variance. The total variance of a complex
value is 2 (s C)^2. ``torch.randn(dtype=complex64)`` has 1/2 per component: scaled by s C it would add half of the
variance that is claimed. Clipping real and imaginary parts apart would give a sensitivity of sqrt(2) C.

After `realify` nothing is complex but the computation, so every engine, plan and method serves such a model as any
other. Parameters that are computed from others take the general way through the engine, whose cost grows with the
number of clip units in a physical batch; layers that keep two real weights of their own (`confide.nn`) are faster.

References
----------
Riess et al.: Complex-valued federated learning with differential privacy and MRI applications. arXiv 2110.03478.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from confide.errors import InputError


class _Pair(nn.Module):
    """A complex tensor from two real ones, and back."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        return torch.complex(real, imaginary)

    def right_inverse(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value.real.clone(), value.imag.clone()


def is_complex(model: nn.Module) -> bool:
    """Return whether the model has a complex parameter."""
    return any(value.is_complex() for value in model.parameters())


def realify(model: nn.Module) -> nn.Module:
    """Keep every complex parameter as two real ones; the model computes what it did before.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.

    Returns
    -------
    torch.nn.Module
        The same model, without complex parameters.

    Raises
    ------
    InputError
        A complex parameter that two modules share: as pairs they would become two parameters.
    """
    seen: dict[int, str] = {}
    for path, module in list(model.named_modules()):
        for name, value in list(module._parameters.items()):
            if value is None or not value.is_complex():
                continue
            where = f"{path}.{name}" if path else name
            if id(value) in seen:
                raise InputError(
                    "a complex parameter is shared by two modules",
                    where=where,
                    expected=f"parameters of its own (this one is also {seen[id(value)]})",
                    remedy="keep real and imaginary part as two real parameters in one module that both call",
                )
            seen[id(value)] = where
            frozen = not value.requires_grad
            parametrize.register_parametrization(module, name, _Pair())
            if frozen:
                module.parametrizations[name].requires_grad_(False)
    return model


def complex_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a realified model under its complex names, for use without confide."""
    state = dict(model.state_dict())
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        head, mark, tail = name.partition("parametrizations.")
        if mark and tail.endswith(".original0"):
            out[head + tail.removesuffix(".original0")] = torch.complex(value, state[name.removesuffix("0") + "1"])
        elif not (mark and tail.endswith(".original1")):
            out[name] = value
    return out
