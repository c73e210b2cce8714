"""The clipping engine: one backward pass, norms of units, clipped sum."""

from confide.training.engine import linear
from confide.training.engine.core import ClippedSum, ClippingEngine, EngineOptions, check_losses

__all__ = ["ClippedSum", "ClippingEngine", "EngineOptions", "check_losses", "linear"]
