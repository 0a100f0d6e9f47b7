"""Our programs as a user starts them: in a process of their own, or in this one, which saves their start."""

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest import mock

from glide_jax.errors import run_cli

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a script of ours to its end in a process of its own."""
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def call(*words: object, folder: Path = ROOT) -> int:
    """Runs a script of ours, or `-m` and a module, in this process and in `folder`; returns its exit code."""
    first, *arguments = map(str, words)
    with chdir(folder), as_a_program():
        try:
            if (first, arguments[:1]) == ("-m", ["convert"]):
                from convert.cli import main

                run_cli(lambda: main(arguments[1:]))  # what else is around it concerns the whole process
            elif first == "-m":
                sys.argv = arguments
                # Else runpy keeps what jaxtyping's import hook compiled as the module's ordinary bytecode.
                with mock.patch.object(sys, "dont_write_bytecode", new=True):
                    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [first, *arguments]
                runpy.run_path(str(ROOT / first), run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@contextmanager
def as_a_program() -> Iterator[None]:
    """Warnings as a user gets them, and what a program changes of `sys` put back."""
    with (
        warnings.catch_warnings(),
        mock.patch.object(sys, "argv", []),
        mock.patch.object(sys, "path", [*sys.path]),
    ):
        warnings.simplefilter("default")
        yield
