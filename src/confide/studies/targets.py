"""What a study's model answers with: a class, a mask, or a number; the loss of one entry and the answers for each.

A loss looks at one entry alone and its scale is a declared constant: the number of pixels, the bounds of the number,
declared weights. No class weight, mean or deviation is taken from the data.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from confide.data import Schema
from confide.data.masks import mask_values
from confide.studies.models import loss_for, outputs_of, probabilities, require_torch

if TYPE_CHECKING:
    from confide.studies.file import Study

#: Models that answer with a mask.
MASKS = ("monet", "unet")
#: Losses of each kind of label, the default first.
LOSSES = {"classes": ("cross-entropy",), "mask": ("cross-entropy", "dice"), "number": ("squared", "absolute")}
# Pixels of one pass without gradients: what a U-Net keeps of them stays below a few hundred megabytes.
_PIXELS = 2**19


def schema_of(study: Study) -> Schema:
    """The declared columns of a study."""
    return Schema(columns=study.columns)


def rule_of(study: Study) -> tuple[str, tuple[float, ...] | None]:
    """Return the name of the loss of one entry and its declared weights."""
    declared = study.training.entry_loss
    if declared is None:
        return LOSSES[schema_of(study).target][0], None
    return declared.rule, declared.weights


def loss_of(study: Study) -> Any:
    """Return the loss of a study: (outputs, targets) to one value for each entry."""
    schema = schema_of(study)
    rule, weights = rule_of(study)
    if schema.target == "mask":
        from confide import nn

        if rule == "dice":
            return nn.soft_dice
        return lambda outputs, targets: nn.pixel_cross_entropy(outputs, targets, weights)
    if schema.target == "number":
        functional = require_torch().nn.functional
        measure = functional.mse_loss if rule == "squared" else functional.l1_loss
        return lambda outputs, targets: measure(outputs.reshape(-1), targets.reshape(-1), reduction="none")
    return loss_for(schema.n_outputs)


def answers_of(study: Study, model: Any, features: Any) -> npt.NDArray[Any]:
    """Return what a study's model answers for each entry.

    Returns
    -------
    array
        Probabilities, shape (entries,) or (entries, classes); for masks uint8, shape (entries, [depth,] height, width),
        positions in the declared classes (0 and 1 for a yes/no mask, yes from `evaluation.threshold` on); for numbers
        float64, shape (entries,), in the unit of the label and within its declared bounds.
    """
    schema = schema_of(study)
    if schema.target == "mask":
        return _marked(model, features, outputs=schema.n_outputs, threshold=study.evaluation.threshold)
    if schema.target == "number":
        assert schema.label is not None
        column = schema.label[1]
        # The bounds are public, so moving an answer to them costs nothing; before the exponential of a logarithmic
        # scale, which would be infinite, and after it, for rounding.
        found = column.unscaled(np.clip(_raw(model, features), -1, 1))
        return np.asarray(np.clip(found, *column.low_high), dtype=np.float64)
    return np.asarray(probabilities(model, features, outputs=schema.n_outputs), dtype=np.float64)


def truth_of(study: Study, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return labels as `answers_of` gives them: numbers in their own unit, all others as they are."""
    schema = schema_of(study)
    if schema.target != "number":
        return labels
    assert schema.label is not None
    return np.asarray(schema.label[1].unscaled(labels.astype(np.float64)), dtype=np.float64)


def written(study: Study, marked: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Return masks as they are written: the declared values of the classes, as bytes where these are below 256."""
    label = schema_of(study).label
    assert label is not None
    values = mask_values(label[1])
    return np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)[marked]


def _marked(model: Any, features: Any, *, outputs: int, threshold: float) -> npt.NDArray[np.uint8]:
    torch = require_torch()
    batch = max(1, _PIXELS // math.prod(features.shape[2:]))
    out = np.empty((len(features), *features.shape[2:]), dtype=np.uint8)
    for number, y in enumerate(outputs_of(model, features, batch)):
        found = torch.sigmoid(y[:, 0]) >= threshold if outputs == 1 else y.argmax(1)
        out[number * batch : (number + 1) * batch] = found.to(torch.uint8).cpu().numpy()
    return out


def _raw(model: Any, features: Any, batch: int = 1024) -> npt.NDArray[np.float64]:
    parts = [y.reshape(-1).double().cpu().numpy() for y in outputs_of(model, features, batch)]
    return np.concatenate(parts) if parts else np.empty(0)


def check_target(study: Study) -> None:
    """Refuse what does not fit the kind of the study's label.

    Raises
    ------
    ValueError
        In the words of the study file.
    """
    schema = schema_of(study)
    kind, rule = schema.target, rule_of(study)[0]
    _check_models(study, kind)
    _check_surfaces(study)
    if rule not in LOSSES[kind]:
        what = {"classes": "a label with classes", "mask": "a mask", "number": "a number"}[kind]
        raise ValueError(f"[training] loss = {rule!r} is no loss of {what}; expected {' or '.join(LOSSES[kind])}")
    if kind == "classes":
        if rule_of(study)[1] is not None:
            raise ValueError("[training] loss: weights belong to the classes of a mask")
        return
    _check_weights(study, schema)
    _check_methods(study, kind)
    if kind == "mask":
        _check_pictures(study, schema)


def _check_models(study: Study, kind: str) -> None:
    candidates = [] if study.search is None else [one.model.name for one in study.search.candidates]
    for name in (study.model.name, *(one for one in candidates if one is not None)):
        if kind != "mask" and name in MASKS:
            raise ValueError(
                f"[model] {name!r} answers with a mask for each picture, and the label has one value for each: declare "
                '[columns.NAME] role = "label", type = "mask", classes = [0, 1], folder = "masks"'
            )
        if kind == "mask" and name not in MASKS and ":" not in name and name in _without_masks():
            raise ValueError(
                f"[model] {name!r} answers with one value for a picture, and the label is a mask; expected "
                + ", ".join(MASKS)
                + ", or module:Class of your own"
            )


def _check_surfaces(study: Study) -> None:
    modes = {source.images.mode for source in study.data if source.images is not None}
    if "mesh" in modes and study.model.name != "graphsage" and ":" not in study.model.name:
        raise ValueError(
            f"[model] {study.model.name!r} reads no meshes; expected graphsage, or module:Class of your own"
        )
    views = study.training.views
    if modes & {"points", "mesh"} and views is not None and views.transform is None:
        raise ValueError(
            "[training] augmentation shifts and mirrors pictures, and the entries are surfaces: give a transformation "
            'of your own, transform = "module:function"'
        )


def _without_masks() -> tuple[str, ...]:
    from confide.studies.file import model_names

    return tuple(name for name in model_names() if name not in MASKS)


def _check_weights(study: Study, schema: Schema) -> None:
    rule, weights = rule_of(study)
    if weights is None:
        return
    if schema.target != "mask" or rule != "cross-entropy":
        raise ValueError("[training] loss: weights go with the cross-entropy of a mask")
    wanted = max(schema.n_outputs, 2)
    if len(weights) != wanted:
        raise ValueError(
            f"[training] loss: {len(weights)} weights for {wanted} classes"
            + (", no and yes" if schema.n_outputs == 1 else "")
        )


def _check_methods(study: Study, kind: str) -> None:
    """What is made for classes, and says nothing about masks or numbers yet."""
    chosen, evaluation = study.training, study.evaluation
    views = chosen.views
    left = {
        "[search]": study.search is not None,
        "[training] ensemble": chosen.ensemble is not None,
        "[training] temperature": chosen.temperature is not None,
        "[training] neuraldp": chosen.neuraldp is not None,
        "[training] snapshots": kind == "number" and chosen.snapshots is not None,
        "[evaluation] metrics = {epsilon = ...}": evaluation.metrics != "internal",
        "[evaluation] validation": evaluation.validation > 0,
        '[evaluation] unit = "entry"': evaluation.unit == "entry",
        "[training] augmentation with a transform of its own, which would change masks like pictures": kind == "mask"
        and views is not None
        and views.transform is not None,
    }
    found = [name for name, there in left.items() if there]
    if found:
        what = "masks" if kind == "mask" else "numbers"
        raise ValueError(f"made for a label with classes, not for {what}: {', '.join(found)}; leave it out")


def _check_pictures(study: Study, schema: Schema) -> None:
    assert schema.label is not None
    name, column = schema.label
    for source in study.data:
        if source.images is None or source.images.mode not in ("gray", "rgb"):
            raise ValueError(
                f"[columns.{name}] is a mask, and {source.label} has no pictures: declare images under [[data]]"
            )
        if source.images.array is None and column.folder is None:
            raise ValueError(
                f'[columns.{name}] folder is missing: folder = "masks" names the folder of the files that the column '
                "names (label images as PNG or TIFF, or .npy)"
            )
        if column.spacing is not None and len(column.spacing) != len(source.images.size):
            raise ValueError(
                f"[columns.{name}] spacing has {len(column.spacing)} numbers for pictures of "
                f"{len(source.images.size)} dimensions"
            )
