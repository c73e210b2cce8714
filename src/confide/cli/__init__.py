"""The ``confide`` command.

Exit codes: 0 done, 1 the run failed, 2 wrong input, 3 refused by a budget, 4 a verification contradicts the claim.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default ``sys.argv[1:]``.

    Returns
    -------
    int
        The exit code; the console script passes it to the shell.
    """
    import typer

    from confide.cli.app import command
    from confide.errors import ConfideError

    try:
        result = command().main(
            args=list(argv) if argv is not None else None, prog_name="confide", standalone_mode=False
        )
        code = result if isinstance(result, int) else 0
    except typer.Exit as stop:
        code = stop.exit_code
        if code == 130:  # newer typer turns Ctrl-C into this before it arrives here
            code = _interrupted()
    except typer.Abort:
        print("stopped: nothing was started", file=sys.stderr)
        code = 1
    except ConfideError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        # the reader of a pipe (head, less) went away: not an error of ours, and nothing more can be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        # wrong words on the command line: typer brings its own copy of click since 0.26, so the class has two homes
        if not hasattr(error, "format_message") or not hasattr(error, "show"):
            raise
        error.show(sys.stderr)
        code = 2
    if argv is None:
        sys.exit(code)
    return code


def _interrupted() -> int:
    print(
        "\ninterrupted: what was reserved stays counted; the same command with --resume goes on from the last "
        "checkpoint",
        file=sys.stderr,
    )
    return 1
