"""Complex-valued layers whose every parameter is real, so that private training of them is exact as it is."""

from confide.nn.complexvalued.activations import Cardioid, ConjMish, SeparableMish, iGaussian
from confide.nn.complexvalued.layers import ComplexConv2d, ComplexLinear, ComplexWSConv2d, as_complex, kspace
from confide.nn.complexvalued.model import complex_cnn
from confide.nn.complexvalued.norm import ComplexGroupNorm, whiten
from confide.nn.complexvalued.pooling import ComplexAvgPool2d, ComplexMaxPool2d

__all__ = [
    "Cardioid",
    "ComplexAvgPool2d",
    "ComplexConv2d",
    "ComplexGroupNorm",
    "ComplexLinear",
    "ComplexMaxPool2d",
    "ComplexWSConv2d",
    "ConjMish",
    "SeparableMish",
    "as_complex",
    "complex_cnn",
    "iGaussian",
    "kspace",
    "whiten",
]
