"""Private SGD read as Langevin dynamics: which temperature its noise has, and noise added to reach a chosen one.

>>> round(natural_temperature(lr=0.1, noise_variance=(1.1 / 512) ** 2, records=60_000), 4)
0.0138

With L the mean loss over N records, theta moves by -lr (noisy gradient + k theta). Langevin dynamics with step h and
temperature T moves by -(h / 2) N (grad L + k theta) + N(0, h T). Equal drift needs h = 2 lr / N; noise of variance v in
each coordinate of the gradient then has the temperature T = lr v N / 2. For usual learning rates that is far below 1: a
*cold* posterior. `SGLD` adds the missing noise (h (T - natural) in each coordinate of the weights); that is
post-processing, so it costs nothing and can only hide more. A temperature below the natural one cannot be had: the
noise is there for privacy. The largest learning rate at which T is not exceeded is 2 T / (v N).

Privacy is that of the whole private run; a "free" guarantee of Langevin sampling itself is not claimed. The match to a
posterior holds for small steps, without momentum, and where few units are clipped (else the drift is not grad L).

References
----------
Knolle et al.: Differentially private training of neural networks with
Langevin dynamics for calibrated predictive uncertainty. arXiv 2107.04296. Welling, Teh: Bayesian learning via
stochastic gradient Langevin dynamics. ICML 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from confide.errors import InputError


def natural_temperature(*, lr: float, noise_variance: float, records: float) -> float:
    """Return the temperature that the private noise alone has.

    Parameters
    ----------
    lr : float
    noise_variance : float
        In each coordinate of the noisy mean gradient: (noise multiplier x clipping norm / denominator)^2.
    records : float
        N of the likelihood: a public number of records.
    """
    return lr * noise_variance * records / 2


class SGLD(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics on the noisy gradient.

    Parameters
    ----------
    params : iterable of parameters
    lr : float
    records : float
        N, a public number (of contributors or entries: of what the mean loss is a mean).
    temperature : float or None
        None keeps the natural one.
    prior_precision : float
        Of a normal prior around zero on every weight; k = prior_precision / N.
    decay : float
        The learning rate of step t is lr (1 + t)^-decay; 0 keeps it.

    Raises
    ------
    InputError
        Values out of range; a temperature below the natural one (with the largest learning rate that fits).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        records: float,
        temperature: float | None = None,
        prior_precision: float = 0.0,
        decay: float = 0.0,
    ) -> None:
        for name, value, low in (
            ("records", records, 0.0),
            ("temperature", 1.0 if temperature is None else temperature, 0.0),
        ):
            if not (math.isfinite(value) and value > low):
                raise InputError(f"{name} is {value!r}", where="optimizer sgld", expected="a finite number above 0")
        if not (0 <= decay < 1 and math.isfinite(prior_precision) and prior_precision >= 0):
            raise InputError(
                f"decay is {decay!r}, prior_precision {prior_precision!r}",
                where="optimizer sgld",
                expected="a decay in [0, 1), a precision of 0 or more",
            )
        super().__init__(params, {"lr": lr, "prior_precision": prior_precision, "decay": decay})
        self.records, self.temperature = float(records), temperature
        self._variance: float | None = None
        self._seed = 0

    def inform(self, *, noise_variance: float, seed: int) -> None:
        """Take the variance of the noise in the gradient of this step, and a seed for the noise that is added."""
        self._variance, self._seed = noise_variance, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step from the noisy gradients in ``.grad``."""
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            count = group.setdefault("count", 0)
            lr = group["lr"] * (1 + count) ** -group["decay"]
            group["count"] = count + 1
            more = self.added(lr)
            for value in group["params"]:
                if value.grad is None:
                    continue
                value.sub_(lr * (value.grad + group["prior_precision"] / self.records * value))
                if more > 0:
                    if value.device not in generators:
                        generators[value.device] = torch.Generator(value.device).manual_seed(self._seed)
                    noise = torch.empty_like(value).normal_(generator=generators[value.device])
                    value.add_(noise, alpha=math.sqrt(more))

    def added(self, lr: float) -> float:
        """Return the variance of the noise that is added to each weight at this learning rate.

        Raises
        ------
        InputError
            The noise in the gradient is unknown, or too much for the temperature.
        """
        if self.temperature is None:
            return 0.0
        if self._variance is None:
            raise InputError(
                "a temperature needs the variance of the noise in the gradient",
                where="optimizer sgld",
                expected="a private run, which states it in every step",
            )
        natural = natural_temperature(lr=lr, noise_variance=self._variance, records=self.records)
        if natural > self.temperature * (1 + 1e-9):
            raise too_warm(natural, self.temperature, lr)
        return 2 * lr / self.records * (self.temperature - natural)


def too_warm(natural: float, temperature: float, lr: float) -> InputError:
    """Return the refusal of a temperature below the natural one."""
    return InputError(
        f"the noise of the plan alone has temperature {natural:.4g}, more than {temperature:g}",
        where="optimizer sgld",
        expected=f"a learning rate of at most {lr * temperature / natural:.4g} for this temperature",
        remedy="lower lr, enlarge the expected batch, or ask for a higher temperature",
    )
