"""A sampler as a program of its own: the same images, for any number of prompts, without the model's code."""

import json
import subprocess
import sys

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


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(random_model(), random_model(UPSAMPLER, noise_schedule="linear"))


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "program"
    write(pipeline, path, OPTIONS, UP_OPTIONS, about={"checkpoint": "tiny"})
    return path


def assert_same(pipeline, prompts, found):
    asked = {"options": OPTIONS, "upsampler_options": UP_OPTIONS, "seed": 5, "negative_prompt": "grey"}
    expected = pipeline(prompts, **asked).images
    assert (found.dtype, found.shape) == (np.uint8, expected.shape)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.mean(found != expected) < 1e-3


def test_it_draws_what_the_pipeline_draws(pipeline, folder):
    program, prompts = load(folder), ["a cat", "a dog", "a cat"]
    assert (program.about["checkpoint"], program.about["platforms"]) == ("tiny", ["cpu", "cuda", "tpu"])
    assert_same(pipeline, prompts, program(prompts, seed=5, negative_prompt="grey"))


def test_it_runs_without_the_code_of_models(pipeline, folder, tmp_path):
    code = (
        "import sys, numpy as np; from glide_jax.export import load\n"
        f"images = load({str(folder)!r})('a fox', seed=5, negative_prompt='grey')\n"
        f"np.save({str(tmp_path / 'images.npy')!r}, images)\n"
        "print([name for name in sys.modules if name.startswith(('glide_jax.models', 'glide_jax.diffusion', 'flax'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
    assert_same(pipeline, ["a fox"], np.load(tmp_path / "images.npy"))


def test_the_command_takes_a_pipeline_with_its_settings(pipeline, tmp_path, capsys):
    pipeline.settings = {"sampler": "ddpm", "num_steps": 3, "upsampler_num_steps": 2}
    pipeline.save_pretrained(tmp_path / "mine")
    given = [
        "--checkpoint",
        tmp_path / "mine",
        "--num_steps",
        2,
        "--platforms",
        "cpu",
        "--output",
        tmp_path / "program",
    ]
    assert call("-m", "glide_jax.export", *given) == 0
    assert "written to" in capsys.readouterr().out
    program = load(tmp_path / "program")
    assert program.about["options"]["sampler"] == "ddpm"
    expected = pipeline("a cat", num_steps=2, seed=0).images
    assert np.abs(program("a cat").astype(int) - expected).max() <= 1


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
    with pytest.raises(GlideError, match="is no exported program, or is damaged"):
        load(tmp_path)
