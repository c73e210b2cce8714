"""What an adversary can do at best: membership, reconstruction, and what it means in words.

Pure functions of guarantees; nothing here looks at data. Bounds hold against every attacker; `glrt_power` and
`glrt_reconstruction` describe one restricted adversary and say so.
"""

from confide.risk.inverses import largest_clip, largest_rate, most_steps, smallest_noise
from confide.risk.measures import (
    SensitivityIndex,
    divergence_between,
    information_bits,
    noise_for,
    noise_for_advantage,
    noise_for_reconstruction,
    posterior_tail,
    sensitivity_index,
    success_among,
    true_positive_rate,
)
from confide.risk.profile import Corridor, RiskProfile, percent, profile, profiles, sentences
from confide.risk.reconstruction import MeanEstimation, noise_for_error
from confide.risk.restricted import LABEL, glrt_power, glrt_reconstruction

__all__ = [
    "LABEL",
    "Corridor",
    "MeanEstimation",
    "RiskProfile",
    "SensitivityIndex",
    "divergence_between",
    "glrt_power",
    "glrt_reconstruction",
    "information_bits",
    "largest_clip",
    "largest_rate",
    "most_steps",
    "noise_for",
    "noise_for_advantage",
    "noise_for_error",
    "noise_for_reconstruction",
    "percent",
    "posterior_tail",
    "profile",
    "profiles",
    "sensitivity_index",
    "sentences",
    "smallest_noise",
    "success_among",
    "true_positive_rate",
]
