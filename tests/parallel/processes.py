"""Python programs in processes of their own: other device counts, several processes, and sudden deaths."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests.programs import ROOT


def start(
    program: str, *arguments: object, devices: int = 1, within: Sequence[str] = (), **environment: object
) -> subprocess.Popen[str]:
    """Starts `program` (source text) on so many simulated CPU devices, warnings as errors.

    `within` is a command that runs the command given after it.
    """
    flags = [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={devices}"]
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags).strip()}
    return subprocess.Popen(
        [*within, sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | variables | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a program that must succeed and returns what it printed."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def run(program: str, *arguments: object, devices: int = 1, **environment: object) -> str:
    """Runs a program that must succeed and returns what it printed."""
    return finish(start(program, *arguments, devices=devices, **environment))


def free_port() -> int:
    """A TCP port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
