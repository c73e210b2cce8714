"""Uses of parameters that become pieces only after the backward pass, and how.

A recurrent layer uses its weights once in every step of time: its output gradients arrive one after the other, and are
then further rows of one product. A module without a rule is run again by `torch.func`, which must not happen while the
pass itself runs modules again (activation checkpointing).
"""

from __future__ import annotations

from confide.training.engine import functional, linear
from confide.training.engine.fast import layers
from confide.training.engine.tape import Site


def _again(site: Site) -> bool:
    """True for a module without a rule, which `torch.func` runs again for its gradients."""
    return getattr(site.gradient, "__module__", "") == functional.__name__


def is_late(site: Site) -> bool:
    """True for uses of many outputs, and for modules that run again."""
    return len(site.taps) > 1 or _again(site)


def handler_for(site: Site) -> layers.Handler | None:
    """Return what handles a site, or None."""
    if _again(site):
        return layers._by_rule
    if len(site.taps) > 1:
        return layers._linear if site.gradient is linear.linear_gradient else None
    return layers.handler_for(site)
