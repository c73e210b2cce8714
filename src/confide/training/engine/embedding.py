"""Embeddings: only the rows that a unit looked up carry a gradient, so only those are kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows


def _gradient(
    saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str], *, padding: int | None
) -> Mapping[str, Tensor | Rows]:
    index, g = saved[0], grads[0]
    flat = index.reshape(len(index), -1)
    values = g.reshape(len(g), flat.shape[1], -1)
    if padding is not None:
        values = values.masked_fill((flat == padding)[..., None], 0.0)
    return {"weight": Rows(flat, values)}


@register(nn.Embedding)
def embedding(call: Call, module: nn.Embedding, input: Tensor) -> Tensor:
    """nn.Embedding, padding index included."""
    out, tap = call.tap(F.embedding(input, module.weight.detach(), module.padding_idx))
    call.record((tap,), (input,), partial(_gradient, padding=module.padding_idx), {"weight": module.weight})
    return out


def _bag_gradient(
    saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str], *, padding: int | None, mean: bool
) -> Mapping[str, Tensor | Rows]:
    index, g = saved[0], grads[0]
    used = (index != padding) if padding is not None else index.new_ones(index.shape).bool()
    scale = used.to(g.dtype)
    if mean:
        scale = scale / scale.sum(-1, keepdim=True).clamp_min(1.0)
    values = g[..., None, :] * scale[..., None]
    flat = index.reshape(len(index), -1)
    return {"weight": Rows(flat, values.reshape(len(g), flat.shape[1], -1))}


@register(nn.EmbeddingBag, supports=lambda module: module.mode in ("sum", "mean"))
def embedding_bag(
    call: Call,
    module: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """nn.EmbeddingBag on (entries, bag) indices, mode sum or mean; other calls take the general way."""
    if input.dim() != 2 or offsets is not None or per_sample_weights is not None:
        return type(module).forward(module, input, offsets, per_sample_weights)
    looked = F.embedding_bag(input, module.weight.detach(), mode=module.mode, padding_idx=module.padding_idx)
    out, tap = call.tap(looked)
    gradient = partial(_bag_gradient, padding=module.padding_idx, mean=module.mode == "mean")
    call.record((tap,), (input,), gradient, {"weight": module.weight}, axis=0)
    return out
