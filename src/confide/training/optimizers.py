"""Optimisers by name; any torch optimiser works with a private run, as it only ever sees the noisy gradient.

>>> make_optimizer("sgd", [torch.nn.Parameter(torch.zeros(2))], lr=0.5).defaults["lr"]
0.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from confide.errors import InputError, nearest


class DPAdam(torch.optim.Optimizer):
    """Adam whose second moment is freed from the variance of the noise.

    The noise adds a known constant to E[g^2]; it is subtracted before the root, with a floor, so that the steps follow
    the signal rather than the noise. The constant is public (plan), so nothing more is spent.

    Parameters
    ----------
    params : iterable of parameters
    lr : float
    noise_variance : float
        Variance of the noise in each coordinate of the gradient: (noise_multiplier * clip_norm / denominator)^2.
    betas : pair of float
    floor : float
        Smallest second moment that is divided by, relative to `noise_variance`.
    weight_decay : float
        Decoupled, as in AdamW.

    References
    ----------
    Tang, Shpilevskiy, Lécuyer: DP-AdamBC: your DP-Adam is actually DP-SGD (unless you apply bias correction).
    AAAI 2024.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        noise_variance: float,
        betas: tuple[float, float] = (0.9, 0.999),
        floor: float = 0.05,
        weight_decay: float = 0.0,
    ) -> None:
        if not noise_variance > 0 or not floor > 0:
            raise InputError("noise_variance and floor must be above 0", where="DPAdam")
        defaults = {"lr": lr, "betas": betas, "variance": noise_variance, "floor": floor, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step from the noisy gradients in ``.grad``."""
        for group in self.param_groups:
            first, second = group["betas"]
            for value in group["params"]:
                if value.grad is not None:
                    self._update(value, value.grad, group, first, second)

    def _update(self, value: Tensor, grad: Tensor, group: dict[str, Any], first: float, second: float) -> None:
        state = self.state[value]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(value), torch.zeros_like(value)
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - first)
        state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        mean = state["mean"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        signal = (square - group["variance"]).clamp_min(group["floor"] * group["variance"])
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.sub_(group["lr"] * mean / signal.sqrt())


def _torch(name: str) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, lr, **options: getattr(torch.optim, name)(params, lr=lr, **options)


_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": _torch("SGD"),
    "adam": _torch("Adam"),
    "adamw": _torch("AdamW"),
    "dp-adam": lambda params, lr, **options: DPAdam(params, lr, **options),
}


def make_optimizer(name: str, params: Iterable[Any], lr: float, **options: Any) -> torch.optim.Optimizer:
    """Make an optimiser by name.

    Parameters
    ----------
    name : str
        sgd, adam, adamw or dp-adam (needs ``noise_variance``).
    params : iterable of parameters
    lr : float
        Learning rate, above 0.
    **options
        Further arguments of that optimiser, for example ``momentum``, ``weight_decay``, ``betas``.

    Raises
    ------
    InputError
        Unknown name or option, or a learning rate that is not above 0.
    """
    if name not in _OPTIMIZERS:
        close = nearest(name, _OPTIMIZERS)
        raise InputError(
            f"unknown optimizer {name!r}",
            where="optimizer name",
            expected=", ".join(_OPTIMIZERS),
            remedy=f"did you mean {close!r}?" if close else None,
        )
    if not lr > 0:
        raise InputError(f"the learning rate is {lr}", where="optimizer lr", expected="a number above 0")
    try:
        return _OPTIMIZERS[name](params, lr, **options)
    except TypeError as error:
        raise InputError(f"an option does not fit optimizer {name!r}: {error}", where="optimizer") from error
