"""Models by name.

>>> build("logistic", inputs=3, outputs=1)
Linear(in_features=3, out_features=1, bias=True)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from confide.errors import InputError, nearest

Builder = Callable[..., nn.Module]
_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a function ``builder(inputs, outputs, **options) -> torch.nn.Module`` under a name."""

    def keep(builder: Builder) -> Builder:
        _BUILDERS[name] = builder
        return builder

    return keep


def names() -> tuple[str, ...]:
    """Return the names that `build` knows."""
    return tuple(sorted(_BUILDERS))


def build(name: str, inputs: int | tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
    """Make a model by name.

    Initial weights are public: zero for ``logistic``, ``scattering`` and ``hog``, for the others the rules that each
    one names (else PyTorch's own) under a fixed seed (``seed=0`` unless given), so that two parties who name the same
    model start from the same weights.

    Parameters
    ----------
    name : str
        One of `names`: ``logistic``, ``mlp``, ``cnn``, ``smoothnet``, ``resnet9``, ``wideresnet``, ``vit``,
        ``scattering``, ``hog``, ``complex-cnn`` for images; ``unet``, ``monet`` for masks of images and volumes;
        ``slices`` for volumes; ``graphsage`` for meshes.
    inputs : int or tuple of int
        Number of features; for images (channels, height, width), for volumes (channels, depth, height, width).
    outputs : int
        1 for a yes/no label (one logit), else the number of classes.
    **options
        Options of that model, see its builder.

    Raises
    ------
    InputError
        Unknown name or option (the nearest one is offered), inputs that do not fit.
    """
    if name not in _BUILDERS:
        close = nearest(name, _BUILDERS)
        raise InputError(
            f"unknown model {name!r}",
            where="model name",
            expected=", ".join(names()) + ", or module:Class for a model of your own",
            remedy=f"did you mean {close!r}?" if close else None,
        )
    builder = _BUILDERS[name]
    known = [p.name for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            close = nearest(option, known)
            raise InputError(
                f"model {name!r} has no option {option!r}",
                where="model options",
                expected=", ".join(known) or "no options",
                remedy=f"did you mean {close!r}?" if close else None,
            )
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    if not shape or min(*shape, outputs, 1) < 1:
        raise InputError(
            f"a model with inputs {inputs} and {outputs} outputs", where="model", expected="sizes of 1 or more"
        )
    return builder(shape, outputs, **options)
