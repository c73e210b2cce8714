"""Errors that say what is wrong, where, what was expected and what to do.

>>> raise InputError("unknown column 'chool'", where="study.toml line 12", expected="a column of pbcseq.csv",
...                  remedy="did you mean 'chol'?")          # doctest: +SKIP

The command turns each class into the exit code of the design: 1 the run failed, 2 the input or the study is wrong,
3 refused by a budget, 4 a verification or an audit contradicts the claim.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfideError(Exception):
    """Base of every error that confide raises on purpose.

    Parameters
    ----------
    what : str
        What is wrong, in the user's words.
    where : str, optional
        File and line, column and row, module path: where it was found.
    expected : str, optional
        What would have been right.
    remedy : str, optional
        What to do next.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | None = None, expected: str | None = None, remedy: str | None = None
    ) -> None:
        self.what, self.where, self.expected, self.remedy = what, where, expected, remedy
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:    {self.where}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.remedy:
            lines.append(f"  remedy:   {self.remedy}")
        return "\n".join(lines)


class RunError(ConfideError):
    """The run failed: disk, damaged checkpoint, interruption (exit code 1)."""

    exit_code = 1


class InputError(ConfideError, ValueError):
    """The input or the study is wrong (exit code 2). Nothing was spent."""

    exit_code = 2


class UnreachableError(InputError):
    """No plan or parameter can meet the target; the message names the reachable range (exit code 2)."""


class MissingExtraError(InputError, ImportError):
    """An optional extra is not installed; the message is the install command (exit code 2)."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(what, remedy=f"pip install 'confide[{extra}]'")


class BudgetError(ConfideError):
    """Refused by a budget in the ledger (exit code 3). Nothing was spent."""

    exit_code = 3


class VerificationError(ConfideError):
    """A verification or an audit contradicts the claim (exit code 4)."""

    exit_code = 4


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice closest to `word`, or None when nothing is close: for "did you mean"."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.55)
    return close[0] if close else None
