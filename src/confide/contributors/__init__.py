"""Who is protected: the index from entries to contributors, the secret keys, and the Poisson samplers."""

from confide.contributors.cyclic import CyclicSampler, group_of
from confide.contributors.holdout import holdout_mask
from confide.contributors.index import ContributorIndex
from confide.contributors.keys import derive, new_key, ratchet
from confide.contributors.linkage import BY_PSEUDONYM, Linkage, PrivateRecords, by_table, owners_of
from confide.contributors.mislinked import merged_guarantee, split, split_guarantee, wrong_links
from confide.contributors.owners import AttributionGraph, refuse_shared
from confide.contributors.samplers import ContributorSampler, Draw, EntrySampler, secret_subset

__all__ = [
    "BY_PSEUDONYM",
    "AttributionGraph",
    "ContributorIndex",
    "ContributorSampler",
    "CyclicSampler",
    "Draw",
    "EntrySampler",
    "Linkage",
    "PrivateRecords",
    "by_table",
    "derive",
    "group_of",
    "holdout_mask",
    "merged_guarantee",
    "new_key",
    "owners_of",
    "ratchet",
    "refuse_shared",
    "secret_subset",
    "split",
    "split_guarantee",
    "wrong_links",
]
