"""The fast clipping engine; see `engine.py`."""

from confide.training.engine.fast.engine import FastClippingEngine

__all__ = ["FastClippingEngine"]
