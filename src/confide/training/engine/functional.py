"""Modules without a rule: their own parameters by `torch.func`, or any parameter through the whole graph.

`module`: the module is run again for each entry with its own parameters alone as variables (vmap of vjp). Exact for
modules that treat entries separately and draw no random numbers; the rehearsal on random inputs checks that before it
is used. `whole_graph`: one backward row for each unit on the graph that the losses came from. Exact for everything that
autograd can do, random numbers included; its cost grows with the number of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from confide.training.engine.tape import Call, Rows, Tape
from confide.training.engine.units import Segments

# Units whose backward rows are formed at the same time.
ROWS = 32


@dataclass(frozen=True)
class Batching:
    """Which of the flattened tensor arguments of a module run over entries (axis 0)."""

    arguments: tuple[bool, ...]


def bind(tape: Tape, path: str, module: nn.Module, batching: Batching) -> Callable[..., Any]:
    """Return a runner that records the module's own parameters by the `module` way."""

    def run(*args: Any, **kwargs: Any) -> Any:
        own = {name: value for name, value in module._parameters.items() if value is not None}
        call = Call(tape, path)
        flat, spec = tree_flatten((args, kwargs))
        tensors = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
        output = _with(module, {name: value.detach() for name, value in own.items()}, args, kwargs)
        if not isinstance(output, Tensor) or len(tensors) != len(batching.arguments):
            return module_forward(module)(*args, **kwargs)  # another signature: parameters stay live and are seen
        output, tap = call.tap(output)
        moving = [i for i, batched in zip(tensors, batching.arguments, strict=True) if batched]
        constants = {name: value.detach() for name, value in module.state_dict(keep_vars=True).items()}

        def gradient(
            saved: tuple[Tensor, ...], grads: tuple[Tensor, ...], wanted: frozenset[str]
        ) -> Mapping[str, Tensor | Rows]:
            variables = {name: own[name].detach() for name in wanted}

            def one(g: Tensor, *entry: Tensor) -> dict[str, Tensor]:
                values = list(flat)
                for i, value in zip(moving, entry, strict=True):
                    values[i] = value.unsqueeze(0)
                for i in set(tensors) - set(moving):
                    values[i] = flat[i].detach()
                arguments, named = tree_unflatten(values, spec)
                rest = {name: value for name, value in constants.items() if name not in variables}
                pull = vjp(lambda own: functional_call(module, {**rest, **own}, arguments, named), variables)[1]
                found: dict[str, Tensor] = pull(g.unsqueeze(0))[0]
                return found

            n, r = grads[0].shape[:2]
            each = vmap(one, randomness="different")(grads[0].flatten(0, 1), *(s.flatten(0, 1) for s in saved))
            return {name: value.reshape(n, r, *value.shape[1:]).sum(1) for name, value in each.items()}

        call.record((tap,), [flat[i] for i in moving], gradient, own, axis=0)
        return output

    return run


def module_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward that the module's class defines, past any recording."""
    bound: Callable[..., Any] = type(module).forward.__get__(module)
    return bound


def _with(module: nn.Module, values: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    """Run the module's own forward with other values of its own parameters; children run as they are."""
    kept = dict(module._parameters)
    try:
        for name, value in values.items():
            module._parameters[name] = value  # type: ignore[assignment]
        return module_forward(module)(*args, **kwargs)
    finally:
        module._parameters.update(kept)


def whole_graph(losses: Tensor, parameters: Sequence[Tensor], segments: Segments) -> list[Tensor]:
    """Return the gradient of every unit for each parameter, (units, *shape), by one backward row for each unit.

    Parameters
    ----------
    losses : tensor, shape (entries,)
        Weighted losses; their graph must still be there.
    """
    out = [value.new_zeros((segments.count, *value.shape)) for value in parameters]
    indicator = torch.zeros((segments.count, len(losses)), dtype=losses.dtype, device=losses.device)
    indicator[segments.units, torch.arange(len(losses), device=losses.device)] = 1.0
    for low in range(0, segments.count, ROWS):
        rows = indicator[low : low + ROWS]
        for store, value in zip(out, _rows(losses, parameters, rows), strict=True):
            if value is not None:
                store[low : low + ROWS] = value.detach()
    return out


def _rows(losses: Tensor, parameters: Sequence[Tensor], rows: Tensor) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(
            losses, list(parameters), grad_outputs=rows, is_grads_batched=True, retain_graph=True, allow_unused=True
        )
    except RuntimeError:
        # Some operations have no batched backward; one backward for each unit gives the same.
        each = [
            torch.autograd.grad(losses, list(parameters), grad_outputs=row, retain_graph=True, allow_unused=True)
            for row in rows
        ]
        return [None if column[0] is None else torch.stack(list(column)) for column in zip(*each, strict=True)]
