"""What the architectures share: declared input shapes, names to layers, public seeds, kinds of weights.

>>> InputShape("cnn", (3, 32, 32), least=16)(torch.zeros(2, 1, 32, 32))      # doctest: +SKIP
InputError: model 'cnn' got entries with 1 channel ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from confide.errors import InputError, nearest
from confide.nn.standardised import WSConv2d, WSConv3d

__all__ = [
    "CheckedSequential",
    "InputShape",
    "choice",
    "convolution",
    "groups_for",
    "make_activation",
    "seeded",
    "zero_linear",
]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "elu": nn.ELU,
    "mish": nn.Mish,
}
_AXES = {1: "(features,)", 2: "(channels, height, width)", 3: "(channels, depth, height, width)"}


def choice(name: str, known: dict[str, Any] | tuple[str, ...], where: str) -> str:
    """Return `name` if it is known, else say which ones are and offer the nearest.

    Raises
    ------
    InputError
    """
    if name not in known:
        close = nearest(name, known)
        raise InputError(
            f"unknown {where.split()[-1]} {name!r}",
            where=where,
            expected=", ".join(known),
            remedy=f"did you mean {close!r}?" if close else None,
        )
    return name


def make_activation(name: str) -> Callable[[], nn.Module]:
    """Return a maker of the activation: tanh, relu, gelu, silu, selu, elu or mish."""
    return _ACTIVATIONS[choice(name, _ACTIVATIONS, "model activation")]


def seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Initialise under a fixed public seed and leave the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would queue a call for every absent device
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
        return make()


def zero_linear(features: int, outputs: int) -> nn.Linear:
    """Return a linear layer of zeros, without a draw from the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def groups_for(channels: int, groups: int, where: str) -> int:
    """Return the number of groups, at most one for each channel.

    Raises
    ------
    InputError
        The channels do not divide into groups of equal size.
    """
    found = min(groups, channels)
    if found < 1 or channels % found:
        raise InputError(
            f"{channels} channels do not divide into {groups} groups",
            where=where,
            expected="a number of groups that divides the channels",
        )
    return found


_WEIGHTS = ("plain", "centred", "standardised")


def convolution(dims: int, weights: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Return a convolution in 2 or 3 dimensions.

    Parameters
    ----------
    dims : int
    weights : str
        "plain"; "centred": each filter minus its mean; "standardised": also of fixed length, with a learned gain.
    *args, **kwargs
        As for ``nn.Conv2d``.
    """
    choice(weights, _WEIGHTS, "model weights")
    if weights == "plain":
        return (nn.Conv2d if dims == 2 else nn.Conv3d)(*args, **kwargs)
    centred = weights == "centred"
    kind = WSConv2d if dims == 2 else WSConv3d
    return kind(*args, **kwargs, gain=not centred, centre_only=centred)


class InputShape(nn.Module):
    """Pass entries of the declared shape on, refuse others in words.

    Parameters
    ----------
    model : str
        Name for messages.
    shape : tuple of int
        Shape of one entry, channels first.
    dims : int or tuple of int
        How many axes follow the channels: 2 for images, 3 for volumes.
    least : int
        Smallest size along every axis that the model's pooling leaves something of.
    multiple : int
        Every size must be a multiple of it.
    fixed : bool
        True if the model is made for exactly this size (a fixed number of patches or features).

    Raises
    ------
    InputError
        At once if the declared shape does not suit the model; later if entries of another shape come in.
    """

    def __init__(
        self,
        model: str,
        shape: tuple[int, ...],
        *,
        dims: int | tuple[int, ...] = 2,
        least: int = 1,
        multiple: int = 1,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        allowed = (dims,) if isinstance(dims, int) else dims
        if len(shape) - 1 not in allowed:
            raise InputError(
                f"model {model!r} got inputs of shape {shape}",
                where="model",
                expected=" or ".join(_AXES[d] for d in allowed),
            )
        self.name, self.shape, self.least, self.multiple, self.fixed = model, tuple(shape), least, multiple, fixed
        self._check_sizes(self.shape[1:])

    def _check_sizes(self, sizes: tuple[int, ...]) -> None:
        if min(sizes) < self.least:
            raise InputError(
                f"model {self.name!r} got entries of {' x '.join(map(str, sizes))}, smaller than its pooling",
                where="model",
                expected=f"at least {self.least} along every axis",
                remedy="resize the entries, or take a model with fewer pooling steps (cnn, mlp)",
            )
        if any(size % self.multiple for size in sizes):
            raise InputError(
                f"model {self.name!r} got entries of {' x '.join(map(str, sizes))}",
                where="model",
                expected=f"multiples of {self.multiple} along every axis (it halves them and doubles them again)",
                remedy="pad or crop the entries, or give fewer levels",
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape)`` to the same."""
        if x.dim() != len(self.shape) + 1:
            raise InputError(
                f"model {self.name!r} got a batch of shape {tuple(x.shape)}",
                where="model",
                expected=f"(entries, {', '.join(map(str, self.shape))})",
            )
        if x.shape[1] != self.shape[0]:
            raise InputError(
                f"model {self.name!r} got entries with {x.shape[1]} channel{'s' if x.shape[1] > 1 else ''}",
                where="model",
                expected=f"{self.shape[0]}, as declared when it was made",
                remedy="check the image mode (gray or rgb) and the order of the axes: channels come first",
            )
        sizes = tuple(x.shape[2:])
        if self.fixed and sizes != self.shape[1:]:
            raise InputError(
                f"model {self.name!r} got entries of {' x '.join(map(str, sizes))}",
                where="model",
                expected=" x ".join(map(str, self.shape[1:])) + ", the size that it was made for",
            )
        self._check_sizes(sizes)
        return x

    def extra_repr(self) -> str:
        """Show the declared shape."""
        return f"{self.shape}"


class CheckedSequential(nn.Sequential):
    """Layers one after another behind a check, which takes no number of a layer and leaves no trace in saved weights.

    Parameters
    ----------
    *layers : torch.nn.Module
        As for ``nn.Sequential``, of which a slice is.

    Attributes
    ----------
    check : InputShape or None
    """

    check: InputShape | None = None

    def behind(self, check: InputShape) -> CheckedSequential:
        """Refuse inputs that `check` refuses; returns this model."""
        self.__dict__["check"] = check
        return self

    def forward(self, x: Tensor) -> Tensor:
        """``(n, *shape)`` to what the last layer gives."""
        out = x if self.check is None else self.check(x)
        for layer in self:
            out = layer(out)
        return out
