"""Uses of parameters that become pieces only after the backward pass, and how.

A recurrent layer uses its weights once in every step of time: its output gradients arrive one after the other, and are
then further rows of one product. A module without a rule is run again by `torch.func`, which must not happen while the
pass itself runs modules again (activation checkpointing).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from confide.training.engine import functional, linear
from confide.training.engine.fast import layers
from confide.training.engine.fast.pieces import Piece
from confide.training.engine.tape import Site


def _again(site: Site) -> bool:
    """True for a module without a rule, which `torch.func` runs again for its gradients."""
    return getattr(site.gradient, "__module__", "") == functional.__name__


def is_late(site: Site) -> bool:
    """True for uses of many outputs, and for modules that run again."""
    return len(site.taps) > 1 or _again(site)


def _run_again(use: layers.Use) -> dict[str, Piece]:
    """Gradients by `torch.func`: in the precision of the parameters, whatever the pass itself rounded to."""

    def lift(value: Tensor) -> Tensor:
        return use.wide(value) if value.is_floating_point() else value

    use = replace(use, inputs=tuple(map(lift, use.inputs)), grad=lift(use.grad))
    if use.blocks.known:
        return layers._by_rule(use)
    found = use.site.gradient(use.inputs, (use.grad,), frozenset(use.site.parameters))
    out: dict[str, Piece] = {}
    for name, value in found.items():
        assert isinstance(value, Tensor)
        out[name] = use.kept(use.blocks.sums(value))
    return out


def handler_for(site: Site) -> layers.Handler | None:
    """Return what handles a site, or None."""
    if _again(site):
        return _run_again
    if len(site.taps) > 1:
        return layers._linear if site.gradient is linear.linear_gradient else None
    return layers.handler_for(site)
