"""Which slices of a volume a model with attention over slices looks at, averaged over held-out volumes; internal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from confide.report.figures import Curve

AXES = ("depth", "height", "width")
_TOGETHER = 16


def slice_curves(
    models: dict[str, Any], volumes: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> list[Curve]:
    """Return the mean weight of every slice by model, class and orientation; empty where no model weighs slices.

    Parameters
    ----------
    models : mapping of name to torch.nn.Module
    volumes : float32 array, shape (n, channels, depth, height, width)
    labels : int64 array, shape (n,)
        0 or 1.

    Returns
    -------
    list of Curve
        Weights times the number of slices of all orientations, so that 1 is what a slice would have if all weighed the
        same; ``y_label`` names the orientation.
    """
    out = []
    for name, model in models.items():
        found = _weights(model, volumes)
        if found is None:
            continue
        slices = sum(w.shape[1] for w in found)
        for positive, said in ((1, "with the finding"), (0, "without")):
            chosen = labels == positive
            if not chosen.any():
                continue
            for axis, weights in zip(AXES, found, strict=True):
                mean = weights[chosen].mean(0) * slices
                numbers: list[float | None] = [float(i + 1) for i in range(len(mean))]
                out.append(Curve(label=f"{name}, {said}", x=numbers, y=mean.tolist(), y_label=axis))
    return out


def _weights(model: Any, volumes: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]] | None:
    import torch

    from confide.nn import SliceAttention

    # a release may wrap its net: a temperature, or a mean over snapshots, of which the first speaks for all
    net = next((part for part in model.modules() if isinstance(part, SliceAttention)), None)
    if net is None or volumes.ndim != 5 or not len(volumes):
        return None
    device, training = next(net.parameters()).device, net.training
    net.eval()
    parts: list[list[Any]] = [[], [], []]
    for low in range(0, len(volumes), _TOGETHER):
        view = net.explain(torch.from_numpy(np.ascontiguousarray(volumes[low : low + _TOGETHER])).to(device))
        for store, weights in zip(parts, view.weights, strict=True):
            store.append(weights.double().cpu().numpy())
    net.train(training)
    return [np.concatenate(one) for one in parts]
