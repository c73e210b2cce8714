"""Augmentation multiplicity: several views of an entry, averaged before the clip, never clipped one by one.

>>> import torch
>>> signal = torch.arange(4.0).reshape(1, 1, 4)
>>> ShiftFlip(shift=1)(signal, torch.tensor([[0.99, 0.9]])).flatten().tolist()      # by one, the edge reflected
[1.0, 2.0, 3.0, 2.0]

A view of an entry is a row of the same clip unit with weight 1 / views: the unit's gradient is that of the mean loss
over its views, clipped once, so the sensitivity is that of a single view. The numbers behind a view are a keyed hash of
(contributor, entry, step, view): they involve nobody else, so leaving one person out changes no other view.

References
----------
De et al.: Unlocking high-accuracy differentially private image classification through scale. arXiv 2204.13650.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from confide.contributors import ContributorIndex, Draw, derive, siphash
from confide.errors import InputError

Transform = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ShiftFlip:
    """Shift by up to `shift` pixels along every axis of an image or volume (edges reflected), and mirror left-right.

    Parameters
    ----------
    shift : int
    flip : bool
        Mirror with probability one half. Wrong where left and right mean something (hearts, letters): then False.
    """

    shift: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.shift, bool) or not isinstance(self.shift, int) or self.shift < 0:
            raise InputError(f"shift is {self.shift!r}", where="augmentation", expected="a number of pixels, 0 or more")

    def __call__(self, inputs: Tensor, numbers: Tensor) -> Tensor:
        """Return the views, of the same shape.

        Parameters
        ----------
        inputs : tensor, shape (rows, channels, [depth,] height, width)
        numbers : float64 tensor, shape (rows, 4 or more), in [0, 1)
            One for each axis, one for the mirror.
        """
        if inputs.dim() < 3:
            raise InputError(
                f"shifts and mirrors need images, these entries have the shape {tuple(inputs.shape[1:])}",
                where="augmentation",
                expected="entries of shape (channels, height, width) or (channels, depth, height, width)",
                remedy='give a transformation of your own: transform = "module:function"',
            )
        out = inputs
        for number, axis in enumerate(range(2, inputs.dim())):
            size = inputs.shape[axis]
            if self.shift >= size:
                raise InputError(f"a shift of {self.shift} in images of {size}", where="augmentation")
            moved = (numbers[:, number] * (2 * self.shift + 1)).long() - self.shift
            index = (torch.arange(size, device=inputs.device) + moved[:, None]).abs()
            index = (size - 1) - ((size - 1) - index).abs()
            if self.flip and axis == inputs.dim() - 1:
                index = torch.where(numbers[:, -1, None] < 0.5, index.flip(1), index)
            shape = [len(inputs)] + [1] * (inputs.dim() - 1)
            shape[axis] = size
            out = out.gather(axis, index.reshape(shape).expand_as(out))
        return out


@dataclass(frozen=True)
class Augmentation:
    """Views of every drawn entry.

    Parameters
    ----------
    views : int
        K; a step costs about K times as much.
    transform : function
        (inputs, numbers) to inputs of the same shape; each row may use its own row of inputs and of numbers (uniform on
        [0, 1), float64, shape (rows, `numbers`)) and nothing else. Checked on random inputs before a run.
    numbers : int
        How many random numbers a view gets.
    """

    views: int = 16
    transform: Transform = ShiftFlip()
    numbers: int = 5

    def __post_init__(self) -> None:
        for name, value in (("views", self.views), ("numbers", self.numbers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}", where="augmentation", expected="a whole number, 1 or more")

    def expand(self, draw: Draw) -> Draw:
        """Return the draw with every entry `views` times, side by side, each with its share of the weight."""
        return Draw(
            draw.step,
            np.repeat(draw.entries, self.views),
            np.repeat(draw.units, self.views),
            draw.contributors,
            np.repeat(draw.weights / self.views, self.views),
        )

    def apply(
        self, inputs: Any, targets: Any, rows: npt.NDArray[np.int64], draw: Draw, index: ContributorIndex, key: bytes
    ) -> tuple[Any, Any]:
        """Return the views of a physical batch.

        Parameters
        ----------
        inputs, targets
            Collated; targets of the images' own height and width (masks) are moved along with them.
        rows : int64 array
            Which rows of the expanded draw these are.
        draw : Draw
            From `expand`.
        index : ContributorIndex
        key : bytes
            32 secret bytes of the run.
        """
        if not isinstance(inputs, Tensor):
            raise InputError(
                "views are made of one tensor, and these entries have several inputs",
                where="augmentation",
                expected="data sets that give (tensor, target)",
                remedy="transform inside the model (training mode draws random numbers of its own), or leave it out",
            )
        numbers = torch.from_numpy(self._numbers(rows, draw, index, key)).to(inputs.device)
        moved = self._checked(inputs, numbers)
        mask = isinstance(targets, Tensor) and targets.dim() >= 3 and inputs.dim() >= 4
        if mask and targets.shape[-2:] == inputs.shape[-2:]:
            whole = targets if targets.dim() == inputs.dim() else targets.unsqueeze(1)
            targets = self._checked(whole, numbers).reshape(targets.shape)
        return moved, targets

    def check(self, inputs: Any) -> None:
        """Refuse a transformation that mixes rows or changes shapes, on random numbers.

        Raises
        ------
        InputError
        """
        if not isinstance(inputs, Tensor):
            return
        generator = torch.Generator().manual_seed(20261)
        shape = (3, *inputs.shape[1:])
        x = torch.randn(shape, generator=generator).to(inputs.dtype).to(inputs.device)
        u = torch.rand(3, self.numbers, generator=generator, dtype=torch.float64).to(inputs.device)
        changed, other = x.clone(), u.clone()
        changed[1], other[1] = x[0], u[0]
        first, second = self._checked(x, u), self._checked(changed, other)
        if not torch.equal(first[[0, 2]], second[[0, 2]]) or not torch.equal(first, self._checked(x, u)):
            raise InputError(
                "the transformation mixes entries: changing one entry or its numbers changed another one's view",
                where="augmentation transform",
                expected="each row made of its own row of inputs and numbers alone",
                remedy="use the numbers that are handed in instead of random numbers of your own",
            )

    def _checked(self, inputs: Tensor, numbers: Tensor) -> Tensor:
        out = self.transform(inputs, numbers)
        if not isinstance(out, Tensor) or out.shape != inputs.shape:
            raise InputError(
                "the transformation changed the shape of the entries",
                where="augmentation transform",
                expected=f"a tensor of shape {tuple(inputs.shape)}",
            )
        return out

    def _numbers(
        self, rows: npt.NDArray[np.int64], draw: Draw, index: ContributorIndex, key: bytes
    ) -> npt.NDArray[np.float64]:
        entries = draw.entries[rows]
        who = index.words[index.of_entry[entries]]
        state = siphash.absorb(siphash.start(derive(key, "views", 16)), who[:, 0])
        state = siphash.absorb(state, who[:, 1])
        state = siphash.absorb(state, index.ordinals[entries].astype(np.uint64))
        state = siphash.absorb(state, (rows % self.views).astype(np.uint64))
        words = [siphash.finish(state, words=4, last=[draw.step, number]) for number in range(self.numbers)]
        return np.stack(words, axis=1) / 2.0**64 * (1 - 2.0**-53)
