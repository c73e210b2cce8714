"""Which rule runs which layer.

>>> rule_for(nn.ReLU()) is None                   # no parameters, no rule needed
True

A rule is one function ``rule(call, module, *inputs) -> outputs``: it runs the layer with detached parameters, taps the
output and records a site. A new layer kind is one small function with `register` above it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Rule = Callable[..., Any]
_RULES: dict[type[nn.Module], tuple[Rule, Callable[[Any], bool]]] = {}


def register(*kinds: type[nn.Module], supports: Callable[[Any], bool] = lambda module: True) -> Callable[[Rule], Rule]:
    """Register a rule for module classes; `supports` may decline single modules, which then take the general way."""

    def keep(rule: Rule) -> Rule:
        for kind in kinds:
            _RULES[kind] = (rule, supports)
        return rule

    return keep


def rule_for(module: nn.Module) -> Rule | None:
    """Return the rule of a module, or None.

    A subclass shares its parent's rule only if it did not write a `forward` of its own, and only while its parameters
    are plain ones (a parametrised or weight-normalised layer computes its weight from others).
    """
    for kind in type(module).__mro__:
        found = _RULES.get(kind)
        if found is not None:
            rule, supports = found
            own = getattr(type(module), "forward", None)
            same = own is getattr(kind, "forward", None) and "forward" not in vars(module)
            return rule if same and not hasattr(module, "parametrizations") and supports(module) else None
    return None


def kinds() -> tuple[type[nn.Module], ...]:
    """Return the module classes that have a rule."""
    return tuple(_RULES)
