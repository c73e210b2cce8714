"""What a mechanism costs a contributor: dominating pairs, composition, read-outs, calibration.

>>> from confide.accounting import Gaussian, SampledGaussian, compose
>>> g = SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=4).guarantee(steps=1000)
>>> low, high = g.epsilon_interval(delta=1e-5)
>>> 8.89 < low < high < 8.91
True
"""

from confide.accounting.approximate import ApproximateBudget
from confide.accounting.bounded_range import Exponential
from confide.accounting.calibration import (
    calibrate_clips,
    calibrate_noise,
    calibrate_rates,
    calibrate_steps,
    epsilons,
    solve_clips,
    solve_rates,
)
from confide.accounting.comparisons import Coupled, collusion, coupled_sample, coupled_scale
from confide.accounting.factorisation import Correlation
from confide.accounting.filters import GaussianFilter, Odometer, RenyiFilter
from confide.accounting.guarantee import Guarantee, compose
from confide.accounting.mechanisms import Gaussian, Laplace, Mechanism, SampledGaussian, mechanism_from_dict
from confide.accounting.more_mechanisms import (
    CappedSampledGaussian,
    ComplexGaussian,
    ContributorSampledGaussian,
    DiscreteGaussian,
    GaussianBudget,
    LocalGaussian,
    RandomisedResponse,
    ReclippedSampledGaussian,
    ReplaceSampledGaussian,
    UnequalSampledGaussian,
    ZCDPBudget,
)
from confide.accounting.renyi import RDP_ORDERS, rdp_delta, rdp_epsilon
from confide.accounting.selection import PrivateSelection, mean_of_runs, success_for

__all__ = [
    "RDP_ORDERS",
    "ApproximateBudget",
    "CappedSampledGaussian",
    "ComplexGaussian",
    "ContributorSampledGaussian",
    "Correlation",
    "Coupled",
    "DiscreteGaussian",
    "Exponential",
    "Gaussian",
    "GaussianBudget",
    "GaussianFilter",
    "Guarantee",
    "Laplace",
    "LocalGaussian",
    "Mechanism",
    "Odometer",
    "PrivateSelection",
    "RandomisedResponse",
    "ReclippedSampledGaussian",
    "RenyiFilter",
    "ReplaceSampledGaussian",
    "SampledGaussian",
    "UnequalSampledGaussian",
    "ZCDPBudget",
    "calibrate_clips",
    "calibrate_noise",
    "calibrate_rates",
    "calibrate_steps",
    "collusion",
    "compose",
    "coupled_sample",
    "coupled_scale",
    "epsilons",
    "mean_of_runs",
    "mechanism_from_dict",
    "rdp_delta",
    "rdp_epsilon",
    "solve_clips",
    "solve_rates",
    "success_for",
]
