"""Which module runs by which rule, and which parameters take the general way.

A rule may serve a parameter only if every use of the parameter runs through modules that have rules; whatever is left
is *slow*: its unit gradients come from the whole graph, one backward row for each unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from confide.training.engine import functional
from confide.training.engine.registry import rule_for
from confide.training.engine.tape import Call, Tape

Runner = Callable[..., Any]


class Routes:
    """The way of each trainable parameter of a model.

    Attributes
    ----------
    runners : list of (module, runner)
        Modules that run with detached parameters and record sites.
    slow : list of int
        Positions of the parameters that take the general way.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], tape: Tape) -> None:
        self._model, self._parameters, self._tape = model, parameters, tape
        self._demoted: set[int] = set()
        self._functional: dict[str, functional.Batching] = {}
        self._refresh()

    def settle(
        self, *, demote: Iterable[int] = (), functional: Mapping[str, functional.Batching] | None = None
    ) -> None:
        """Send parameters the general way, or take modules without a rule by `torch.func`.

        Parameters
        ----------
        demote : iterable of int
            Parameters whose rule does not hold for all their uses.
        functional : dict
            Module path to its batched arguments; own parameters of these modules leave the general way.
        """
        self._demoted |= {id(self._parameters[i]) for i in demote}
        for path, batching in (functional or {}).items():
            own = self._model.get_submodule(path)._parameters.values()
            self._demoted -= {id(value) for value in own}
            self._functional[path] = batching
        self._refresh()

    def snapshot(self) -> tuple[set[int], dict[str, functional.Batching]]:
        """Return what `settle` changes, for `restore`."""
        return set(self._demoted), dict(self._functional)

    def restore(self, state: tuple[set[int], dict[str, functional.Batching]]) -> None:
        """Undo `settle`."""
        self._demoted, self._functional = set(state[0]), dict(state[1])
        self._refresh()

    def _refresh(self) -> None:
        while True:
            self.runners = list(self._choose())
            covered = {id(value) for module, _ in self.runners for value in _owned(module)}
            running = {id(module) for module, _ in self.runners}
            for module, _ in self.runners:
                running |= {id(child) for child in module.children()} if uses_children(module) else set()
            # A parameter that several modules share counts as covered only if all of them run by a rule.
            for module in self._model.modules():
                if id(module) not in running:
                    covered -= {id(value) for value in module._parameters.values()}
            self.slow = [i for i, value in enumerate(self._parameters) if id(value) not in covered]
            slow = {id(self._parameters[i]) for i in self.slow}
            if slow <= self._demoted:
                return
            self._demoted |= slow

    def _choose(self) -> Iterator[tuple[nn.Module, Runner]]:
        for path, module in self._model.named_modules():
            own = _owned(module)
            if not any(value.requires_grad for value in own) or any(id(value) in self._demoted for value in own):
                continue
            rule = rule_for(module)
            if rule is not None:
                yield module, _bind(rule, self._tape, path, module)
            elif path in self._functional:
                yield module, functional.bind(self._tape, path, module, self._functional[path])


def uses_children(module: nn.Module) -> bool:
    """Return True for modules that compute with their children's parameters without calling the children."""
    return isinstance(module, nn.MultiheadAttention)


def _owned(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a runner of this module takes out of autograd."""
    if uses_children(module):
        return list(module.parameters())
    return [value for value in module._parameters.values() if value is not None]


def _bind(rule: Runner, tape: Tape, path: str, module: nn.Module) -> Runner:
    return lambda *args, **kwargs: rule(Call(tape, path), module, *args, **kwargs)
