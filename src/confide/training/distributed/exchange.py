"""From every rank's partial sums to one noisy sum on all of them, with each rank doing its part of the work.

>>> exchange = Exchange(Ranks(), [torch.zeros(2), torch.zeros(3)])
>>> [v.tolist() for v in exchange([torch.ones(2), torch.ones(3)], lambda part, start: part + start)]
[[1.0, 1.0], [1.0, 1.0, 1.0]]

The flat sum is cut into equal parts. One operation (reduce-scatter) adds the partial sums and leaves each rank with its
part; the rank adds noise to that part and to nothing else; a second (all-gather) hands the noisy parts around. So every
coordinate is added up in one place and noised there, once, and what all ranks then hold are copies, bit for bit. It
moves as many bytes as an all-reduce and divides the noise among the ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from confide.training.distributed.ranks import Ranks, split_like


class Exchange:
    """Adds partial sums over ranks.

    Parameters
    ----------
    ranks : Ranks
    like : sequence of tensors
        Shapes of the sums.
    """

    def __init__(self, ranks: Ranks, like: Sequence[Tensor]) -> None:
        self.ranks, self._like = ranks, list(like)
        self.size = sum(value.numel() for value in self._like)
        self._rest = -self.size % ranks.world

    def __call__(self, sums: list[Tensor], noise: Callable[[Tensor, int], Tensor]) -> list[Tensor]:
        """Return the noisy sums; `sums` is emptied on the way, so that its memory can be used again.

        Parameters
        ----------
        sums : list of tensors
            This rank's partial sums, of one type, on its device.
        noise : function
            (part of the flat sum, position of its first value) to that part with noise.
        """
        flat = torch.cat([value.reshape(-1) for value in sums] + [sums[0].new_zeros(self._rest)])
        sums.clear()
        if self.ranks.world == 1:
            return split_like(noise(flat, 0), self._like)
        mine = self.ranks.reduce_scatter(flat)
        start = self.ranks.rank * len(mine)
        real = max(0, min(len(mine), self.size - start))  # the last parts may hold what fills up
        if real:
            mine[:real] = noise(mine[:real], start).to(flat.dtype)
        whole = self.ranks.all_gather(mine, out=flat)
        return split_like(whole[: self.size], self._like)
