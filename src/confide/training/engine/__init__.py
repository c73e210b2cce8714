"""The clipping engine: one backward pass, norms of units, clipped sum.

Importing the layer files registers their rules.
"""

from confide.training.engine import attention, conv, embedding, linear, norm, recurrent, standardised
from confide.training.engine.core import ClippingEngine
from confide.training.engine.types import ClippedSum, EngineOptions, check_losses

__all__ = [
    "ClippedSum",
    "ClippingEngine",
    "EngineOptions",
    "attention",
    "check_losses",
    "conv",
    "embedding",
    "linear",
    "norm",
    "recurrent",
    "standardised",
]
