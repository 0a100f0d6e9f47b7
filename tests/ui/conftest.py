"""Small random models in a folder, as the page finds them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from glide_jax.ui.models import Models
from tests.parallel.processes import ROOT, free_port
from tests.tiny.models import INPAINT, UPSAMPLER, save_clip, save_lora, save_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two of the models bring settings; the adapters are of the first."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "base")
    save_settings(folder, base="base", settings={"num_steps": 3})
    save_lora(folder / "lora", folder / "base")
    save_model(folder / "inpaint", INPAINT)
    save_model(folder / "more" / "up", UPSAMPLER, noise_schedule="linear")
    save_settings(folder / "more", upsampler="up", settings={"upsampler_num_steps": 2})
    save_clip(folder / "clip")
    (folder / "notes").mkdir()
    return folder


@pytest.fixture(scope="session")
def models(folder):
    return Models([], [folder], batch_size=2)


@pytest.fixture(scope="session")
def app(folder, tmp_path_factory):
    """`app.py` as a process of its own, with one model more that cannot be loaded; its address."""
    if find_spec("gradio") is None:
        pytest.skip("needs gradio: uv sync --inexact --extra app")
    copies = tmp_path_factory.mktemp("copies")
    models = shutil.copytree(folder, copies / "models")
    cut_arrays(shutil.copytree(folder / "base", models / "broken"))
    shutil.rmtree(models / "lora")
    save_lora(models / "lora", models / "base")
    log = copies / "log.txt"
    command = [
        sys.executable, "app.py", "--checkpoint", models / "base", "--models", models, "--port", str(free_port()),
        "--clip", models / "clip" / "text", models / "clip" / "image", "--clip_model", "noised", "--batch_size", "1",
        "--max_queue", "4",
    ]  # fmt: skip
    environment = os.environ | {"GRADIO_TEMP_DIR": str(copies / "gradio")}
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(20)


def save_settings(folder, **index):
    """Writes the index of a pipeline: its models and settings."""
    (folder / "model_index.json").write_text(json.dumps(index))


def cut_arrays(model):
    """Takes the end off a checkpoint's files of arrays."""
    for path in (model / "state").rglob("*/d/*"):
        path.write_bytes(path.read_bytes()[:-10])


def _address(process, log):
    for _ in range(600):
        if found := re.search(r"open (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())
