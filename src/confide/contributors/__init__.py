"""Who is protected: the index from entries to contributors, the secret keys, and the Poisson samplers."""

from confide.contributors.cyclic import CyclicSampler, group_of
from confide.contributors.holdout import holdout_mask
from confide.contributors.index import ContributorIndex
from confide.contributors.keys import derive, new_key, ratchet
from confide.contributors.samplers import ContributorSampler, Draw, EntrySampler, secret_subset

__all__ = [
    "ContributorIndex",
    "ContributorSampler",
    "CyclicSampler",
    "Draw",
    "EntrySampler",
    "derive",
    "group_of",
    "holdout_mask",
    "new_key",
    "ratchet",
    "secret_subset",
]
