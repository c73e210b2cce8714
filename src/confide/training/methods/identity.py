"""What a value is, in words that are the same in every process: two functions of one name and different code differ.

>>> double, treble = (lambda x: 2 * x), (lambda x: 3 * x)
>>> in_words(double) == in_words(treble), in_words(double) == in_words(lambda x: 2 * x)
(False, True)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))


def in_words(value: Any) -> str:
    """Describe a value so that it is known again: in other processes and later, with the same version of Python.

    A function is known by its name and by a hash of its byte code, constants, names, defaults and of the values that
    it closes over, and by those of the functions of its own module that it names; where it stands in a file, comments
    and the words of its docstring do not matter. An object is known by its class, its ``__call__`` or ``forward``, and
    its attributes, or by what it prints as where it has none; a module of torch by its weights too; arrays and tensors
    by shape, type and content.

    What cannot be told apart: functions that differ only in what they read at run time, such as values of their
    module, other methods of their class, functions of other modules, files and the clock; functions of one
    name that are written in C; and objects that have no attributes and print as their class alone (generators of random
    numbers). Other versions of Python have other byte code and take an unchanged function for a
    changed one.
    """
    return _Words().of(value)


class _Words:
    """Remembers where it is, so that what refers to itself is described once."""

    def __init__(self) -> None:
        self._inside: list[Any] = []
        self._known: dict[FunctionType, str] = {}

    def of(self, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return repr(value)
        for depth, other in enumerate(self._inside):
            if other is value:
                return f"<up {len(self._inside) - depth}>"
        self._inside.append(value)
        try:
            return self._of(value)
        finally:
            self._inside.pop()

    def _of(self, value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"{type(value).__name__}[{self._all(value)}]"
        if isinstance(value, set | frozenset):
            return f"set[{', '.join(sorted(map(self.of, value)))}]"
        if isinstance(value, dict):
            return f"dict[{', '.join(sorted(f'{self.of(k)}: {self.of(v)}' for k, v in value.items()))}]"
        if isinstance(value, Tensor):
            whole = value.detach().cpu().contiguous().flatten()
            return f"tensor {tuple(value.shape)} {value.dtype} {_hash(whole.view(torch.uint8).numpy().tobytes())}"
        if isinstance(value, np.ndarray | np.generic):
            array = np.ascontiguousarray(value)
            content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            return f"array {array.shape} {array.dtype} {_hash(content)}"
        if isinstance(value, type | BuiltinFunctionType | np.ufunc):
            return _name(value)
        if isinstance(value, functools.partial):
            return f"partial[{self._all((value.func, value.args, value.keywords))}]"
        if isinstance(value, MethodType):
            return f"method[{self._all((value.__func__, value.__self__))}]"
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, CodeType):
            return self._code(value)
        return self._object(value)

    def _all(self, values: Any) -> str:
        return ", ".join(map(self.of, values))

    def _object(self, value: Any) -> str:
        if dataclasses.is_dataclass(value):
            parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif isinstance(value, nn.Module):
            # hooks and flags of torch aside: settings as the module prints them, weights, and what was added by hand
            added = {k: v for k, v in vars(value).items() if not k.startswith("_") and not isinstance(v, nn.Module)}
            parts = {"printed": _without_addresses(repr(value)), "state": dict(value.state_dict()), "added": added}
        elif hasattr(value, "__dict__"):
            parts = {**_slots(value), **vars(value)}
        elif _prints(value):  # ranges, paths, dtypes, patterns, dates
            parts = {"printed": _without_addresses(repr(value))}
        else:
            parts = _slots(value)
        called = getattr(type(value), "forward" if isinstance(value, nn.Module) else "__call__", None)
        if isinstance(called, FunctionType):
            parts["called"] = called
        return f"{_name(type(value))}({', '.join(f'{k}={self.of(v)}' for k, v in sorted(parts.items()))})"

    def _function(self, value: FunctionType) -> str:
        code = value.__code__
        compiled = getattr(value, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return f"compiled[{self.of(compiled)}]"
        if value in self._known:
            return self._known[value]
        closed = [_content(cell) for cell in value.__closure__ or ()]
        near = [
            other
            for name in sorted(_names(code))
            if isinstance(other := value.__globals__.get(name), FunctionType) and other.__module__ == value.__module__
        ]
        parts = (self._code(code, value.__doc__), value.__defaults__, value.__kwdefaults__, closed, near)
        self._known[value] = f"{_name(value)} {_hash(self._all(parts).encode())}"
        return self._known[value]

    def _code(self, code: CodeType, documentation: str | None = None) -> str:
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        steps = (code.co_code, code.co_exceptiontable, code.co_names, code.co_freevars, code.co_cellvars)
        values = code.co_consts
        if documentation is not None and values[:1] == (documentation,):
            values = (None, *values[1:])
        return self._all((shape, steps, values))


def _prints(value: Any) -> bool:
    """Whether it prints as more than its address."""
    printed: Any = type(value).__repr__
    return printed is not object.__repr__


def _slots(value: Any) -> dict[str, Any]:
    """Return the attributes that are kept in slots."""
    found = {}
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            hidden = name.startswith("__") and not name.endswith("__")
            held = f"_{base.__name__.lstrip('_')}{name}" if hidden else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, held):
                found[held] = getattr(value, held)
    return found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _names(code: CodeType) -> set[str]:
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__))
    # the script that is run has another name in a process that it starts
    return name if module in (None, "__main__", "__mp_main__") else f"{module}.{name}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
