"""Every registered architecture in a size that a test can afford: name, shape of an entry, outputs, options."""

from __future__ import annotations

import numpy as np
import torch

from confide.nn import build, mesh_edges

# A strip of triangles over nine vertices.
EDGES = mesh_edges(np.array([[i, i + 1, i + 2] for i in range(7)])).tolist()
CASES = {
    "logistic": ("logistic", (5,), 1, {}),
    "mlp": ("mlp", (1, 4, 4), 3, {"hidden": [6], "activation": "mish"}),
    "cnn": ("cnn", (2, 8, 8), 2, {"widths": [4, 8]}),
    "smoothnet": ("smoothnet", (3, 16, 16), 3, {"width": 1, "depth": 2}),
    "resnet9": ("resnet9", (1, 16, 16), 2, {"groups": 8}),
    "resnet9 plain sum": ("resnet9", (3, 16, 16), 2, {"scale_norm": False, "weights": "centred", "pool": "mean"}),
    "wideresnet": ("wideresnet", (3, 8, 8), 3, {"depth": 10, "width": 1}),
    "wideresnet, scaled sums": ("wideresnet", (1, 8, 8), 2, {"depth": 10, "width": 1, "scale_norm": True}),
    "wideresnet, other order": (
        "wideresnet",
        (1, 8, 8),
        2,
        {"depth": 10, "width": 1, "order": "shortcut-norm-activation"},
    ),
    "unet": ("unet", (1, 8, 8), 1, {"width": 4, "levels": 2, "groups": 2}),
    "unet 3d": ("unet", (1, 4, 4, 4), 2, {"width": 4, "levels": 1, "groups": 2, "weights": "standardised"}),
    "monet": ("monet", (1, 8, 8), 1, {"width": 4, "groups": 2}),
    "monet 3d": ("monet", (1, 4, 4, 4), 2, {"width": 2, "levels": 1, "groups": 2}),
    "vit": ("vit", (1, 8, 8), 3, {"width": 8, "depth": 2, "heads": 2}),
    "slices": (
        "slices",
        (1, 8, 9, 10),
        2,
        {"features": 8, "heads": 2, "backbone_options": {"widths": [4], "groups": 2}},
    ),
    "complex-cnn": ("complex-cnn", (1, 8, 8), 2, {"widths": [4, 4], "groups": 2}),
    "complex-cnn pairs": (
        "complex-cnn",
        (4, 8, 8),
        2,
        {"widths": [4], "representation": "pairs", "activation": "cardioid", "pool": "max"},
    ),
    "complex-cnn centred": ("complex-cnn", (1, 8, 8), 2, {"widths": [4], "groups": 2, "weights": "centred"}),
    "complex-cnn whitened": ("complex-cnn", (1, 8, 8), 2, {"widths": [4], "groups": 2, "weights": "whitened"}),
    "scattering": ("scattering", (1, 12, 12), 2, {"angles": 4}),
    "hog": ("hog", (3, 12, 12), 2, {}),
    "graphsage": ("graphsage", (9, 3), 2, {"width": 6, "edges": EDGES}),
}


def made(case: str) -> torch.nn.Module:
    name, shape, outputs, options = CASES[case]
    model = build(name, shape, outputs, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():  # layers that start at zero must not hide anything
            value.add_(0.05 * torch.randn_like(value))
    return model
