"""Several processes, one private run: shares of a draw, one sum, noise once, one process that speaks to the world.

``torchrun --nproc-per-node 2 -m confide train study.toml`` is all a user has to say; `PrivateRun` and `confide.Trainer`
join the group by themselves.
"""

from confide.training.distributed.exchange import Exchange
from confide.training.distributed.noise import BlockNoise
from confide.training.distributed.ranks import Ranks, join, leave
from confide.training.distributed.shares import Share, share

__all__ = ["BlockNoise", "Exchange", "Ranks", "Share", "join", "leave", "share"]
