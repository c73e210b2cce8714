"""What a mechanism costs a contributor: dominating pairs, composition, read-outs, calibration.

>>> from confide.accounting import Gaussian, SampledGaussian, compose
>>> g = SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=4).guarantee(steps=1000)
>>> low, high = g.epsilon_interval(delta=1e-5)
>>> 8.89 < low < high < 8.91
True
"""

from confide.accounting.calibration import calibrate_clips, calibrate_noise, calibrate_rates, calibrate_steps, epsilons
from confide.accounting.guarantee import Guarantee, compose
from confide.accounting.mechanisms import Gaussian, Laplace, Mechanism, SampledGaussian, mechanism_from_dict
from confide.accounting.more_mechanisms import (
    CappedSampledGaussian,
    ComplexGaussian,
    ContributorSampledGaussian,
    DiscreteGaussian,
    Exponential,
    GaussianBudget,
    LocalGaussian,
    RandomisedResponse,
    ReclippedSampledGaussian,
    ReplaceSampledGaussian,
    UnequalSampledGaussian,
    ZCDPBudget,
)
from confide.accounting.renyi import RDP_ORDERS, rdp_delta, rdp_epsilon

__all__ = [
    "CappedSampledGaussian",
    "ComplexGaussian",
    "ContributorSampledGaussian",
    "DiscreteGaussian",
    "Exponential",
    "GaussianBudget",
    "LocalGaussian",
    "RandomisedResponse",
    "ReclippedSampledGaussian",
    "ReplaceSampledGaussian",
    "UnequalSampledGaussian",
    "ZCDPBudget",
    "rdp_delta",
    "RDP_ORDERS",
    "Gaussian",
    "Guarantee",
    "Laplace",
    "Mechanism",
    "SampledGaussian",
    "calibrate_clips",
    "calibrate_noise",
    "calibrate_rates",
    "calibrate_steps",
    "compose",
    "epsilons",
    "mechanism_from_dict",
    "rdp_epsilon",
]
