"""From a name in a study file to a model, a per-entry loss and an optimiser."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confide.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import torch

    from confide.studies.file import Study


def require_torch() -> Any:
    """Import torch, or say in one line which command installs it."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("training needs PyTorch, which is not installed", "train") from error
    return torch


def build_model(study: Study, *, inputs: tuple[int, ...], outputs: int, base: Path) -> torch.nn.Module:
    """Make the study's model.

    Parameters
    ----------
    study : Study
    inputs : tuple of int
        Shape of one entry: ``(features,)`` for tables, ``(channels, height, width)`` for images.
    outputs : int
        1 for a yes/no label (one logit), otherwise the number of classes.
    base : Path
        Folder of the study file: ``module:Class`` is looked up there before the installed packages.
    """
    require_torch()
    import torch

    name, options = study.model.name, dict(study.model.options)
    activations = study.training.activations
    if activations is not None:
        from confide.training.methods.neuraldp import FixedProjection, NeuralDPModel

        first = FixedProjection(math.prod(inputs), activations.width, activations.projection)
        plain = study.model_copy(update={"training": type(study.training)()})
        return NeuralDPModel(first, build_model(plain, inputs=(activations.width,), outputs=outputs, base=base))
    images = study.data[0].images
    if name == "graphsage" and images is not None and images.mode == "mesh":
        options = {"coordinates": images.size[0], "vertices": images.size[1], **options}
    if ":" not in name:
        from confide import nn

        model = nn.build(name, inputs=inputs if len(inputs) > 1 else inputs[0], outputs=outputs, **options)
    else:
        model = _imported(name, base)(inputs if len(inputs) > 1 else inputs[0], outputs, **options)
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model {name!r} is not a torch.nn.Module", where="[model] name")
    built: torch.nn.Module = model
    if any(value.is_complex() for value in built.parameters()):
        from confide.training.methods import realify

        return realify(built)
    return built


def fixed_features(study: Study, images: Any, *, outputs: int, base: Path) -> Any:
    """Features of all entries, once, where the study's model learns a head on fixed features only; else None.

    Parameters
    ----------
    study : Study
    images : float32 array, shape (entries, channels, height, width)
        As read; for tables (entries, features).
    outputs, base
        As for `build_model`.

    Returns
    -------
    float32 array, shape (entries, features), or None
    """
    if images.ndim < 3:
        return None
    require_torch()
    from confide import nn

    model = build_model(study, inputs=images.shape[1:], outputs=outputs, base=base)
    return model.features.transform(images) if isinstance(model, nn.FeatureModel) else None


def _imported(name: str, base: Path) -> Any:
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(base))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import the model's module {module_name!r}: {error}",
            where="[model] name",
            expected="'module:Class' with the module beside the study file or installed",
        ) from error
    finally:
        sys.path.remove(str(base))
    if not hasattr(module, attribute):
        raise InputError(
            f"module {module_name!r} has no {attribute!r}",
            where="[model] name",
            expected="a class or function called as Class(inputs, outputs, **options)",
        )
    return getattr(module, attribute)


def loss_for(outputs: int) -> Any:
    """Per-entry loss: logistic for one output, cross-entropy for several; returns shape (entries,)."""
    torch = require_torch()
    functional = torch.nn.functional
    if outputs == 1:

        def loss(prediction: Any, target: Any) -> Any:
            return functional.binary_cross_entropy_with_logits(
                prediction.reshape(-1), target.to(prediction.dtype).reshape(-1), reduction="none"
            )
    else:

        def loss(prediction: Any, target: Any) -> Any:
            return functional.cross_entropy(prediction, target.long(), reduction="none")

    return loss


def outputs_of(model: Any, features: Any, batch: int) -> Iterator[Any]:
    """Yield what a model answers, without gradients, for `batch` entries at a time, on its device."""
    torch = require_torch()
    import numpy as np

    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        for start in range(0, len(features), batch):
            yield model(torch.as_tensor(np.ascontiguousarray(features[start : start + batch])).to(device))


def probabilities(model: Any, features: Any, *, outputs: int, batch: int = 4096) -> Any:
    """Predicted probabilities as a numpy array: shape (entries,) for one output, else (entries, classes)."""
    torch = require_torch()
    import numpy as np

    parts = []
    for y in outputs_of(model, features, batch):
        p = torch.sigmoid(y.reshape(-1)) if outputs == 1 else torch.softmax(y, dim=1)
        parts.append(p.cpu().numpy())
    if not parts:
        return np.zeros((0,) if outputs == 1 else (0, outputs))
    return np.concatenate(parts)
