"""What a command line costs before it does anything: `--help` and mistakes in flags come at once."""

import subprocess
import sys

import pytest

from tests.programs import ROOT

# Each of them takes a good part of a second to import, some many.
SLOW = {"jax", "flax", "optax", "orbax", "scipy", "torch", "webdataset", "gradio", "tensorflow_datasets", "tensorstore"}


@pytest.mark.parametrize("script", ["sample.py", "train.py"])
def test_help_imports_nothing_that_takes_long(script):
    command = [sys.executable, "-X", "importtime", script, "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    imported = {
        line.rpartition("|")[2].strip() for line in shown.stderr.splitlines() if line.startswith("import time:")
    }
    assert "config" in shown.stdout or "--prompt" in shown.stdout
    assert "glide_jax.errors" in imported
    assert not imported & SLOW
