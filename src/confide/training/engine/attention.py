"""nn.MultiheadAttention: its projections as linear layers; the attention itself has no parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from confide.training.engine.linear import tapped_linear
from confide.training.engine.registry import register
from confide.training.engine.tape import Call, Rows


def _bias_rows(
    saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str]
) -> Mapping[str, Tensor | Rows]:
    """Parameter of shape (1, 1, width), repeated for every entry: (units, records, 1, width)."""
    return {"bias": grads[0].sum(1).reshape(len(grads[0]), 1, 1, -1)}


def _append(call: Call, value: Tensor, parameter: Tensor, label: str) -> Tensor:
    """Append the learned key or value of length one to every sequence (time, entries, width)."""
    repeated, tap = call.tap(parameter.detach().repeat(1, value.shape[1], 1))
    call.record((tap,), (), _bias_rows, {"bias": parameter}, axis=1, label=label)
    return torch.cat([value, repeated])


def _projections(call: Call, module: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    width, bias = module.embed_dim, module.in_proj_bias
    if module._qkv_same_embed_dim and query is key and key is value:
        joint = tapped_linear(call, query, module.in_proj_weight, bias, axis=1, label="joint")
        q, k, v = joint.chunk(3, -1)
        return q, k, v
    out = []
    for number, (name, source) in enumerate((("q", query), ("k", key), ("v", value))):
        rows = slice(number * width, (number + 1) * width)
        if module._qkv_same_embed_dim:
            out.append(tapped_linear(call, source, module.in_proj_weight, bias, axis=1, label=name, rows=rows))
            continue
        projected = tapped_linear(call, source, getattr(module, f"{name}_proj_weight"), None, axis=1, label=name)
        out.append(projected if bias is None else _shift(call, projected, bias, rows, name))
    return out[0], out[1], out[2]


def _shift(call: Call, value: Tensor, bias: Tensor, rows: slice, label: str) -> Tensor:
    """Add some rows of a bias that stands beside weights of other shapes."""
    out, tap = call.tap(value + bias.detach()[rows])

    def gradient(
        saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str]
    ) -> Mapping[str, Tensor | Rows]:
        return {"bias": grads[0].flatten(1, -2).sum(1)}

    call.record((tap,), (), gradient, {"bias": bias}, axis=1, label=f"{label} bias", rows=rows)
    return out


def _mask(module: Any, q: Tensor, keys: int, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return one additive mask (entries, heads, queries, keys) or None."""

    def additive(value: Tensor) -> Tensor:
        if value.dtype != torch.bool:
            return value.to(q.dtype)
        return torch.zeros_like(value, dtype=q.dtype).masked_fill_(value, float("-inf"))

    entries, heads = q.shape[1], module.num_heads
    total: Tensor | None = None
    if mask is not None:
        grown = F.pad(additive(mask), (0, keys - mask.shape[-1]))
        total = grown[None, None] if mask.dim() == 2 else grown.view(entries, heads, *grown.shape[-2:])
    if padding is not None:
        grown = F.pad(additive(padding), (0, keys - padding.shape[-1]))[:, None, None]
        total = grown if total is None else total + grown
    return total


@register(nn.MultiheadAttention)
def attention(
    call: Call,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """nn.MultiheadAttention, every option of its constructor and its call."""
    single = query.dim() == 2
    same_key, same_value = key is query, value is key

    def arrange(x: Tensor) -> Tensor:
        return x.unsqueeze(1) if single else (x.transpose(0, 1) if module.batch_first else x)

    query = arrange(query)
    key = query if same_key else arrange(key)
    value = key if same_value else arrange(value)
    if single and key_padding_mask is not None:
        key_padding_mask = key_padding_mask[None]
    q, k, v = _projections(call, module, query, key, value)
    if module.bias_k is not None:
        k, v = _append(call, k, module.bias_k, "bias_k"), _append(call, v, module.bias_v, "bias_v")
    if module.add_zero_attn:
        zero = k.new_zeros(1, *k.shape[1:])
        k, v = torch.cat([k, zero]), torch.cat([v, zero])
    mask = _mask(module, q, len(k), key_padding_mask, attn_mask)
    heads, width = module.num_heads, module.head_dim

    def split(x: Tensor) -> Tensor:
        return x.reshape(len(x), x.shape[1], heads, width).permute(1, 2, 0, 3)

    drop = module.dropout if module.training else 0.0
    weights: Tensor | None = None
    if need_weights:
        scores = split(q) @ split(k).transpose(-1, -2) / width**0.5
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, drop) if drop else weights
        mixed = weights @ split(v)
    else:
        mixed = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=mask, dropout_p=drop)
    joined = mixed.permute(2, 0, 1, 3).flatten(2)
    out = tapped_linear(call, joined, module.out_proj.weight, module.out_proj.bias, axis=1, label="out")
    out = out.squeeze(1) if single else (out.transpose(0, 1) if module.batch_first else out)
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights.squeeze(0) if single else weights
    return out, weights
