"""Architectures that private learning likes; each usable without the rest of confide."""

from confide.nn.models import cnn, logistic, mlp
from confide.nn.registry import build, names, register
from confide.nn.standardised import WSConv1d, WSConv2d, WSConv3d, standardise

__all__ = ["WSConv1d", "WSConv2d", "WSConv3d", "build", "cnn", "logistic", "mlp", "names", "register", "standardise"]
