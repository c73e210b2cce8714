"""Architectures that private learning likes; each usable without the rest of confide.

None of them mixes entries: no batch normalisation, no statistics over a batch, no memory of earlier ones.
"""

from confide.nn.complexvalued import (
    Cardioid,
    ComplexAvgPool2d,
    ComplexConv2d,
    ComplexGroupNorm,
    ComplexLinear,
    ComplexMaxPool2d,
    ComplexWSConv2d,
    ConjMish,
    SeparableMish,
    as_complex,
    complex_cnn,
    iGaussian,
    kspace,
    whiten,
)
from confide.nn.features import HOG, FeatureModel, FixedFeatures, Scattering2d, features_named, hog, scattering
from confide.nn.graphs import MeshSAGE, PackedMeshSAGE, graphsage, mesh_edges
from confide.nn.losses import pixel_cross_entropy, soft_dice
from confide.nn.models import cnn, logistic, mlp
from confide.nn.monet import MoNet, RepeatBlock, monet
from confide.nn.parts import InputShape
from confide.nn.registry import build, names, register
from confide.nn.residual import Residual, ScaleNorm
from confide.nn.resnet9 import resnet9
from confide.nn.slices import SliceAttention, SliceView, slices
from confide.nn.smoothnet import SmoothBlock, SmoothStack, smoothnet
from confide.nn.standardised import WSConv1d, WSConv2d, WSConv3d, standardise
from confide.nn.unet import UNet, unet
from confide.nn.vit import positions, vit
from confide.nn.wideresnet import WideBlock, wideresnet

__all__ = [
    "HOG",
    "Cardioid",
    "ComplexAvgPool2d",
    "ComplexConv2d",
    "ComplexGroupNorm",
    "ComplexLinear",
    "ComplexMaxPool2d",
    "ComplexWSConv2d",
    "ConjMish",
    "FeatureModel",
    "FixedFeatures",
    "InputShape",
    "MeshSAGE",
    "MoNet",
    "PackedMeshSAGE",
    "RepeatBlock",
    "Residual",
    "ScaleNorm",
    "Scattering2d",
    "SeparableMish",
    "SliceAttention",
    "SliceView",
    "SmoothBlock",
    "SmoothStack",
    "UNet",
    "WSConv1d",
    "WSConv2d",
    "WSConv3d",
    "WideBlock",
    "as_complex",
    "build",
    "cnn",
    "complex_cnn",
    "features_named",
    "graphsage",
    "hog",
    "iGaussian",
    "kspace",
    "logistic",
    "mesh_edges",
    "mlp",
    "monet",
    "names",
    "pixel_cross_entropy",
    "positions",
    "register",
    "resnet9",
    "scattering",
    "slices",
    "smoothnet",
    "soft_dice",
    "standardise",
    "unet",
    "vit",
    "whiten",
    "wideresnet",
]
