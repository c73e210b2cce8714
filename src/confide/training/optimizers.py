"""Optimisers by name; any torch optimiser works with a private run, as it only ever sees the noisy gradient.

>>> make_optimizer("sgd", [torch.nn.Parameter(torch.zeros(2))], lr=0.5).defaults["lr"]
0.5
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from confide.errors import InputError, nearest
from confide.training.methods.langevin import SGLD


class DPAdam(torch.optim.Optimizer):
    """Adam whose second moment is freed from the variance of the noise.

    The noise adds a known number to E[g^2]; it is subtracted before the root, with a floor, so that the steps follow
    the signal rather than the noise. The number is public (plan), so nothing more is spent. Where it changes from step
    to step (a clipping norm that follows a quantile, correlated noise) its running mean is subtracted, with the weights
    that the second moment has.

    Parameters
    ----------
    params : iterable of parameters
    lr : float
    noise_variance : float, optional
        Variance of the noise in each coordinate of the gradient: (noise_multiplier * clip_norm / denominator)^2. A
        private run states it in every step, so it need not be given.
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
        noise_variance: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        floor: float = 0.05,
        weight_decay: float = 0.0,
    ) -> None:
        if not (noise_variance is None or noise_variance > 0) or not floor > 0:
            raise InputError("noise_variance and floor must be above 0", where="DPAdam")
        defaults = {"lr": lr, "betas": betas, "variance": noise_variance, "floor": floor, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self._asks = noise_variance is None

    def inform(self, *, noise_variance: float, seed: int) -> None:
        """Take the variance of the noise of this step, unless one was given."""
        if self._asks:
            for group in self.param_groups:
                group["variance"] = noise_variance

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step from the noisy gradients in ``.grad``."""
        for group in self.param_groups:
            if group["variance"] is None:
                raise InputError(
                    "the variance of the noise is unknown",
                    where="DPAdam",
                    expected="noise_variance, or a private run that states it in every step",
                )
            first, second = group["betas"]
            for value in group["params"]:
                if value.grad is not None:
                    self._update(value, value.grad, group, first, second)

    def _update(self, value: Tensor, grad: Tensor, group: dict[str, Any], first: float, second: float) -> None:
        state = self.state[value]
        if not state:
            state["step"], state["noise"] = 0, 0.0
            state["mean"], state["square"] = torch.zeros_like(value), torch.zeros_like(value)
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - first)
        state["square"].mul_(second).addcmul_(grad, grad, value=1 - second)
        state["noise"] = state.get("noise", 0.0) * second + group["variance"] * (1 - second)
        noise = state["noise"] / (1 - second ** state["step"])
        mean = state["mean"] / (1 - first ** state["step"])
        square = state["square"] / (1 - second ** state["step"])
        signal = (square - noise).clamp_min(group["floor"] * noise)
        value.mul_(1 - group["lr"] * group["weight_decay"])
        value.sub_(group["lr"] * mean / signal.sqrt())


def _torch(name: str) -> Callable[..., torch.optim.Optimizer]:
    return lambda params, lr, **options: getattr(torch.optim, name)(params, lr=lr, **options)


# Every torch optimiser that makes one step from one gradient: it sees nothing but noisy gradients.
_TORCH = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop", "ASGD")
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    **{name.lower(): _torch(name) for name in _TORCH},
    "dp-adam": lambda params, lr, **options: DPAdam(params, lr, **options),
    "sgld": lambda params, lr, **options: SGLD(params, lr, **options),
}


def make_optimizer(name: str, params: Iterable[Any], lr: float, **options: Any) -> torch.optim.Optimizer:
    """Make an optimiser by name.

    Parameters
    ----------
    name : str
        sgd, adam, adamw, nadam, radam, adamax, adagrad, adadelta, rmsprop, rprop, asgd; dp-adam (`DPAdam`); sgld
        (`confide.training.methods.SGLD`, needs ``records``); or ``module:Class`` for one of your own, made as
        ``Class(params, lr=lr, **options)``.
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
    if name not in _OPTIMIZERS and ":" not in name:
        close = nearest(name, _OPTIMIZERS)
        raise InputError(
            f"unknown optimizer {name!r}",
            where="optimizer name",
            expected=", ".join(_OPTIMIZERS) + ", or module:Class for one of your own",
            remedy=f"did you mean {close!r}?" if close else None,
        )
    if not lr > 0:
        raise InputError(f"the learning rate is {lr}", where="optimizer lr", expected="a number above 0")
    make = _OPTIMIZERS[name] if name in _OPTIMIZERS else _imported(name)
    try:
        return make(params, lr=lr, **options)
    except TypeError as error:
        raise InputError(f"an option does not fit optimizer {name!r}: {error}", where="optimizer") from error


def _imported(name: str) -> Callable[..., torch.optim.Optimizer]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"there is no optimizer {name!r}: {error}", where="optimizer name", expected="module:Class, importable here"
        ) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"{name!r} is no torch optimizer", where="optimizer name", expected="a torch.optim.Optimizer")
    made: Callable[..., torch.optim.Optimizer] = found
    return made
