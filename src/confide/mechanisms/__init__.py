"""What adds the noise: generators, lattice noise, and private histograms, quantiles and choices (numpy only)."""

from confide.mechanisms.auroc import NoisyAUROC, noisy_auroc
from confide.mechanisms.histogram import noisy_histogram, nonnegative, release_entry_counts
from confide.mechanisms.noise import KeyedNoise, NoiseSource, OSNoise, SeededNoise, complex_normal, noise_for_step
from confide.mechanisms.released import Released
from confide.mechanisms.search import draw_runs, runs_probabilities
from confide.mechanisms.secure import SecureNoise
from confide.mechanisms.selection import partition_threshold, private_selection, quantile, select_partitions

__all__ = [
    "KeyedNoise",
    "NoiseSource",
    "NoisyAUROC",
    "OSNoise",
    "Released",
    "SecureNoise",
    "SeededNoise",
    "complex_normal",
    "draw_runs",
    "noise_for_step",
    "noisy_auroc",
    "noisy_histogram",
    "nonnegative",
    "partition_threshold",
    "private_selection",
    "quantile",
    "release_entry_counts",
    "runs_probabilities",
    "select_partitions",
]
