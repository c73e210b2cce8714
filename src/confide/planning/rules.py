"""A budget as a declared rule of a contributor's own number of entries, read without ``eval``.

>>> rule = BudgetRule("4 if k <= 10 else 2")
>>> rule(3), rule(11)
(4.0, 2.0)

The rule is one public expression of ``k`` (own number of entries) and ``epsilon`` (the price of the release). Only
numbers, ``+ - * / // %``, comparisons, ``and or not``, ``a if b else c`` and ``min max sqrt log`` are read; whatever
else stands there is refused, so a study file can never run code.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from confide.errors import InputError, nearest

__all__ = ["BudgetRule"]

_NAMES = ("k", "epsilon")
_MAX_LENGTH = 300
# power is left out on purpose: 9**9**9 would keep a machine busy for ever
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_CALLS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "sqrt": math.sqrt, "log": math.log}


def _refuse(text: str, what: str, remedy: str | None = None) -> InputError:
    return InputError(
        f"the budget rule {text!r} {what}",
        where="budget rule",
        expected="an expression of k (own number of entries) and epsilon, such as '4 if k <= 10 else 2', with numbers, "
        "+ - * / // %, comparisons, and/or/not, if/else, min, max, sqrt, log",
        remedy=remedy,
    )


@dataclass(frozen=True)
class BudgetRule:
    """A public rule from a contributor's own number of entries to their budget.

    Parameters
    ----------
    text : str
        The expression, for example ``"epsilon if k <= 10 else epsilon / 2"``.
    epsilon : float, optional
        Value of the name ``epsilon``; a rule that does not use the name needs none.

    Raises
    ------
    InputError
        A name, call or operator that is not allowed, or text that is no expression.
    """

    text: str
    epsilon: float | None = None
    _tree: ast.expr = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.text) > _MAX_LENGTH:
            raise _refuse(self.text[:40] + "...", f"is longer than {_MAX_LENGTH} characters")
        try:
            tree = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise _refuse(self.text, "is not an expression") from error
        self._check(tree)
        object.__setattr__(self, "_tree", tree)

    def _check(self, node: ast.AST) -> None:
        """Walk the whole tree once, so that a branch that is never taken is refused too."""
        for part in ast.walk(node):
            if isinstance(part, ast.Constant):
                if isinstance(part.value, bool) or not isinstance(part.value, int | float):
                    raise _refuse(self.text, f"holds {part.value!r}, which is not a number")
            elif isinstance(part, ast.Name):
                if part.id not in _NAMES and part.id not in _CALLS:
                    close = nearest(part.id, [*_NAMES, *_CALLS])
                    raise _refuse(
                        self.text, f"uses the unknown name {part.id!r}", f"did you mean {close!r}?" if close else None
                    )
                if part.id == "epsilon" and self.epsilon is None:
                    raise _refuse(self.text, "uses epsilon, but no epsilon was given")
            elif isinstance(part, ast.Call):
                if not isinstance(part.func, ast.Name) or part.func.id not in _CALLS or part.keywords or not part.args:
                    raise _refuse(self.text, "calls something that is not min, max, sqrt or log")
            elif not isinstance(
                part,
                ast.BinOp
                | ast.UnaryOp
                | ast.BoolOp
                | ast.Compare
                | ast.IfExp
                | ast.operator
                | ast.unaryop
                | ast.boolop
                | ast.cmpop
                | ast.expr_context,
            ) or (
                isinstance(part, ast.operator | ast.cmpop | ast.unaryop)
                and type(part) not in _BINARY
                and type(part) not in _COMPARE
                and not isinstance(part, ast.USub | ast.UAdd | ast.Not)
            ):
                raise _refuse(self.text, f"uses {type(part).__name__}, which is not allowed")

    def closed(self) -> BudgetRule:
        """Return the same rule with the name ``epsilon`` replaced by its number, so that its text says everything."""

        class Fill(ast.NodeTransformer):
            def visit_Name(_, node: ast.Name) -> ast.expr:
                return ast.Constant(self.epsilon) if node.id == "epsilon" else node

        return BudgetRule(ast.unparse(Fill().visit(ast.parse(self.text.strip(), mode="eval").body)))

    def _value(self, node: ast.expr, k: int) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return k if name == "k" else self.epsilon
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](self._value(left, k), self._value(right, k))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, k)
            case ast.UnaryOp(op=op, operand=operand):
                value = self._value(operand, k)
                return -value if isinstance(op, ast.USub) else value
            case ast.BoolOp(op=op, values=values):
                test = all if isinstance(op, ast.And) else any
                return test(bool(self._value(v, k)) for v in values)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                sides = [self._value(v, k) for v in (left, *rest)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
            case ast.IfExp(test=test_, body=body, orelse=orelse):
                return self._value(body if self._value(test_, k) else orelse, k)
            case ast.Call(func=ast.Name(id=name), args=args):
                values_ = [self._value(a, k) for a in args]
                # min(4) of one number is that number, which the built-in min refuses
                return values_[0] if name in ("min", "max") and len(values_) == 1 else _CALLS[name](*values_)
        raise _refuse(self.text, f"uses {type(node).__name__}, which is not allowed")

    def __call__(self, k: int) -> float:
        """Return the budget of a contributor with `k` entries.

        Raises
        ------
        InputError
            If the rule gives no positive finite number at this k.
        """
        try:
            value = self._value(self._tree, k)
            number = float("nan") if isinstance(value, bool) else float(value)
        except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
            raise _refuse(self.text, f"fails at k = {k}: {error}") from error
        if not (math.isfinite(number) and number > 0):
            raise _refuse(
                self.text, f"gives {value} at k = {k}, which is no budget", "make it a positive number for every k"
            )
        return number
