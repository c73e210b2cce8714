"""What a release predicts with: members whose probabilities are averaged, over one temperature.

>>> one = Predictor([nn.Linear(2, 1)], outputs=1, temperature=2.0)
>>> one(torch.ones(3, 2)).shape
torch.Size([3, 1])

The output is a logit (or log-probabilities), so that whatever reads a single model reads this one as well. Snapshots of
one run, their average and a temperature that was paid for are post-processing: this module adds no cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Predictor(nn.Module):
    """Average the probabilities of members, each at one temperature.

    Parameters
    ----------
    members : sequence of modules
        With one output (a logit) or one for each class, shape (entries, outputs), for masks (entries, outputs, ...).
    outputs : int
    temperature : float
        Logits of every member are divided by it.
    """

    def __init__(self, members: Sequence[nn.Module], *, outputs: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.outputs = outputs
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logit (one output) or the logarithm of the probabilities."""
        found = [member(*args, **kwargs) / self.temperature for member in self.members]
        if len(found) == 1:
            single: Tensor = found[0]
            return single
        logits = torch.stack(found)
        many = torch.log(torch.tensor(float(len(found)), dtype=logits.dtype, device=logits.device))
        if self.outputs == 1:
            yes, no = F.logsigmoid(logits).logsumexp(0), F.logsigmoid(-logits).logsumexp(0)
            return yes - no
        # (members, entries, classes), and for masks pixels behind them
        return torch.log_softmax(logits, dim=2).logsumexp(0) - many
