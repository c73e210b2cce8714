"""Architectures that private learning likes; each usable without the rest of confide."""

from confide.nn.models import cnn, logistic, mlp
from confide.nn.registry import build, names, register

__all__ = ["build", "cnn", "logistic", "mlp", "names", "register"]
