"""Errors for users: one line, no traceback."""

import io
import sys
from collections.abc import Callable


class GlideError(Exception):
    """Bad input or a broken environment; the message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def install(extra: str) -> str:
    """How to install one of the project's extras, as the end of an error message; what is installed stays."""
    return f"install it by `uv sync --inexact --extra {extra}` (without uv: `pip install -e '.[{extra}]'`)"


def run_cli(main: Callable[[], int | None]) -> None:
    """Runs an entry point, then exits: 0 or its result, 2 and one line for `GlideError`, 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the terminal's encoding may lack characters of captions and paths
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except GlideError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
