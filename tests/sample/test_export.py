"""A sampler as a program of its own: the same images, for any number of prompts, without the model's code."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.export import load
from glide_jax.export.write import write
from glide_jax.sample import Pipeline, SampleOptions, upsampling
from tests.programs import ROOT, call
from tests.tiny.models import INPAINT, UPSAMPLER, random_model

pytest.importorskip("flatbuffers")
OPTIONS = SampleOptions.of(sampler="euler_a", num_steps=3, guidance_scale=2.0)
UP_OPTIONS = upsampling({"num_steps": 4, "strength": 0.5})
PROMPTS = ["a cat", "a dog", "a cat"]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(random_model(), random_model(UPSAMPLER, noise_schedule="linear"))


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    """As the command writes it of a pipeline with settings, of which a flag goes before one."""
    path = tmp_path_factory.mktemp("export")
    settings = {
        "sampler": "euler_a", "num_steps": 9, "guidance_scale": 2.0, "upsampler_num_steps": 4, "upsampler_strength": 0.5
    }  # fmt: skip
    Pipeline(pipeline.base, pipeline.upsampler, settings=settings).save_pretrained(path / "mine")
    given = ["--checkpoint", path / "mine", "--num_steps", 3, "--output", path / "program"]
    with redirect_stdout(io.StringIO()) as said:
        assert call("-m", "glide_jax.export", *given) == 0
    assert f"MB written to {path / 'program'}" in said.getvalue()
    return path / "program"


def assert_same(pipeline, found):
    asked = {"options": OPTIONS, "upsampler_options": UP_OPTIONS, "seed": 5, "negative_prompt": "grey"}
    expected = pipeline(PROMPTS, **asked).images
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != expected) < 1e-3


def test_it_draws_what_the_pipeline_draws(pipeline, folder):
    program = load(folder)
    assert Path(program.about["checkpoint"]).parts[-2:] == ("mine", "base")
    assert program.about["platforms"] == ["cpu", "cuda", "tpu"]
    assert (program.about["options"]["sampler"], program.about["options"]["num_steps"]) == ("euler_ancestral", "3")
    assert_same(pipeline, program(PROMPTS, seed=5, negative_prompt="grey"))


def test_it_runs_without_the_code_of_models(pipeline, folder, tmp_path):
    code = (
        "import sys, numpy as np; from glide_jax.export import load\n"
        f"images = load({str(folder)!r})({PROMPTS}, seed=5, negative_prompt='grey')\n"
        f"np.save({str(tmp_path / 'images.npy')!r}, images)\n"
        "print([name for name in sys.modules if name.startswith(('glide_jax.models', 'glide_jax.diffusion', 'flax'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
    assert_same(pipeline, np.load(tmp_path / "images.npy"))


def test_what_cannot_be_exported_or_loaded_is_one_line(pipeline, folder, tmp_path):
    with pytest.raises(GlideError, match="a base model that does not inpaint"):
        write(Pipeline(random_model(INPAINT)), tmp_path / "x", OPTIONS, UP_OPTIONS)
    with pytest.raises(GlideError, match="exists already"):
        write(pipeline, folder, OPTIONS, UP_OPTIONS)
    with pytest.raises(GlideError, match="clip_guidance_scale needs the noised CLIP"):
        write(pipeline, tmp_path / "x", SampleOptions.of(clip_guidance_scale=1.0), UP_OPTIONS)
    with pytest.raises(GlideError, match=r"cannot read the program's .*nowhere/program\.json"):
        load(tmp_path / "nowhere")
    with pytest.raises(GlideError, match="at least one prompt, and a seed"):
        load(folder)([])
    index = json.loads((folder / "program.json").read_text())
    (tmp_path / "program.json").write_text(json.dumps(index | {"format": 2}))
    with pytest.raises(GlideError, match="has format 2; this version knows 1"):
        load(tmp_path)
    (tmp_path / "program.json").write_text(json.dumps(index))
    (tmp_path / "base.stablehlo").write_bytes(b"no code at all, but long enough")
    with pytest.raises(GlideError, match="is not an exported program, or is damaged"):
        load(tmp_path)
