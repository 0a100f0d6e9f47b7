"""A pipeline as one folder: written, read, chosen on command lines, fetched from a stand-in for the Hub."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.architecture import glide_architecture
from convert.cli import main as convert
from convert.to_torch import convert_params
from glide_jax import sample
from glide_jax.checkpoint import save_weights
from glide_jax.checkpoint.safetensors_file import HEADER
from glide_jax.errors import GlideError
from glide_jax.sample import (
    LoadedClip,
    LoadedModel,
    Pipeline,
    Pretrained,
    SampleOptions,
    base_options,
    choose,
    upsampler_options,
    upsampling,
)
from glide_jax.sample.options import upsampler_named
from glide_jax.sample.pretrained import INDEX, new_folder, with_recorded, write_index
from glide_jax.train.config import DistillConfig
from glide_jax.train.distill import student_settings
from tests.programs import ROOT
from tests.sample.hub import COMMIT, served
from tests.tiny.models import UPSAMPLER, random_model

SETTINGS = {"sampler": "ddpm", "num_steps": 4, "upsampler_num_steps": 3, "upsampler_strength": 0.5}


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(random_model(), random_model(UPSAMPLER, noise_schedule="linear"), settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained") / "tiny"
    pipeline.save_pretrained(path)
    return path


def test_it_comes_back_with_its_settings_and_draws_the_same(pipeline, folder):
    back = Pipeline.from_pretrained(folder)
    assert back.settings == SETTINGS
    drawn, again = (each(["a cat"], seed=3) for each in (pipeline, back))
    np.testing.assert_array_equal(drawn.images, again.images)
    np.testing.assert_array_equal(drawn.small, again.small)
    alone = Pipeline.from_checkpoints(folder / "base", folder / "upsampler")
    asked = alone("a cat", seed=3, sampler="ddpm", num_steps=4, upsampler_options={"num_steps": 3, "strength": 0.5})
    np.testing.assert_array_equal(asked.images, drawn.images)


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        ({"timestep_respacing": "fast27"}, {"num_steps": 9}, {"num_steps": 9}),
        ({"num_steps": 25}, {"timestep_respacing": "fast27"}, {"timestep_respacing": "fast27"}),
        ({"eta": 0.5, "num_steps": 7}, {"sampler": "dpmpp_2m"}, {"sampler": "dpmpp_2m", "num_steps": 7}),
        ({"eta": 0.5}, {"guidance_scale": 2.0}, {"eta": 0.5, "guidance_scale": 2.0}),
        ({"schedule": "karras", "rho": 5.0}, {"schedule": "leading"}, {"schedule": "leading"}),
        ({"guidance": "apg", "apg_eta": 0.5, "guidance_scale": 2.0}, {"guidance": "cfg"},
         {"guidance": "cfg", "guidance_scale": 2.0}),
    ],
)  # fmt: skip
def test_what_is_given_comes_before_settings_and_what_they_chose_along_with_it(settings, changes, expected):
    assert base_options(changes, settings) == SampleOptions.of(**expected)
    own = {f"upsampler_{name}": value for name, value in settings.items()}
    given = {f"upsampler_{name}": value for name, value in changes.items()}
    assert upsampler_options(given, own) == upsampling(expected)


def test_a_call_changes_settings(pipeline):
    seen = []
    pipeline("a cat", num_steps=2, upsampler_options={"num_steps": 2}, on_steps=lambda done, _: seen.append(done))
    assert sum(seen) == pipeline.count_evaluations(1, SampleOptions.of(sampler="ddpm", num_steps=2), {"num_steps": 2})
    assert sum(seen) < pipeline.count_evaluations(1)


def test_its_index_says_what_differs_from_the_usual(folder):
    index = json.loads((folder / INDEX).read_text())
    assert (index["base"], index["upsampler"], index["settings"]) == ("base", "upsampler", SETTINGS)


def test_an_interval_without_end_is_json_that_others_can_read(tmp_path):
    settings = {"guidance_interval": (0.5, math.inf), "num_steps": 4}
    write_index(tmp_path, {"base": "base"}, settings)
    index = json.loads((tmp_path / INDEX).read_text(), parse_constant=pytest.fail)
    assert index["settings"]["guidance_interval"] == [0.5, "inf"]
    assert Pretrained.open(tmp_path).settings == settings


FEW = student_settings(DistillConfig(num_steps=4))


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "dpmpp_2m", "schedule": "karras", "rho": 5.0},
        {"timestep_respacing": "ddim50"},
        {"eta": 1.0, "guidance": "apg", "guidance_interval": (0.5, 3.0)},
    ],
)
def test_what_needs_few_steps_overrules_its_pipeline(settings, monkeypatch):
    monkeypatch.setattr(sample, "recorded_sampling", lambda path: FEW if path == "few" else {})
    kept = {"upsampler_strength": 0.5}
    usual = SampleOptions.of(num_steps=4, schedule="trailing", guidance_scale=1.0)
    for base, lora in (("few", ()), ("base", ["few:0.5"])):
        found = with_recorded(settings | kept, base, "up", lora)
        assert base_options({}, found) == usual
        assert upsampler_options({}, found) == upsampling({"strength": 0.5})
    assert with_recorded(settings | kept, "base", "up") == settings | kept
    assert with_recorded(settings, None, "up", ["few"]) == settings | upsampler_named(FEW)


@pytest.mark.parametrize(
    "sampling", [3, ["num_steps"], {"upsampler_num_steps": 3}, {"num_steps": -1}, {"strength": 0.1}]
)
def test_a_record_that_says_something_else_is_one_line(sampling, tmp_path):
    save_weights(tmp_path / "bad", {"w": np.zeros(1, np.float32)}, {"sampling": sampling})
    with pytest.raises(GlideError, match="bad: the sampling entry of its record cannot be used: "):
        choose(str(tmp_path / "bad"), None)


def test_no_more_is_laid_out_than_is_there(tmp_path):
    """A million blocks would take hours."""
    weights = {tower: {"blocks": {"0": {"w": np.zeros(1, np.float32)}}} for tower in ("text", "image")}
    much = {"num_res_blocks": 10**6}, {"n_xf_blocks_text": 10**6}, {"n_xf_blocks_image": 10**6}
    record = dict(zip(("model", "clip_text", "clip_image"), much, strict=True)) | {"diffusion": {}}
    save_weights(tmp_path / "much", weights, record)
    small, path = str(tmp_path / "small"), str(tmp_path / "much")
    save_weights(tmp_path / "small", weights, {"clip_text": {"n_xf_blocks_text": 1}})
    for load in (
        lambda: Pipeline.from_checkpoints(path),
        lambda: LoadedClip.from_checkpoints(path, path),
        lambda: LoadedClip.from_checkpoints(small, path),
        lambda: convert(["merge", path, "--output", str(tmp_path / "merged")]),
    ):
        with pytest.raises(GlideError, match=r"much does not match its record: it has . of .*, not "):
            load()


def test_bfloat16_takes_half_the_room(folder, tmp_path, capsys):
    command = ["bundle", "--checkpoint", folder / "base", "--dtype", "bfloat16", "--sampler", "dpm++"]
    convert([*map(str, command), "--output", str(tmp_path / "half")])
    assert "written to" in capsys.readouterr().out
    half = Pretrained.open(tmp_path / "half")
    assert (half.upsampler, half.settings) == (None, {"sampler": "dpmpp_2m", "num_steps": 4})
    size = lambda path: sum(file.stat().st_size for file in Path(path).glob("state/d/*"))  # noqa: E731
    assert size(half.base) < 0.7 * size(folder / "base")


def test_steps_that_a_model_does_not_have_are_not_handed_on(folder, tmp_path):
    with pytest.raises(GlideError, match="1000"):
        convert(
            ["bundle", "--checkpoint", str(folder / "base"), "--num_steps", "1001", "--output", str(tmp_path / "b")]
        )
    assert not (tmp_path / "b").exists()


def test_of_a_folder_that_could_not_be_written_nothing_is_left(tmp_path):
    def write():
        with new_folder(tmp_path / "pipeline"):
            (tmp_path / "pipeline" / "base").mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not (tmp_path / "pipeline").exists()


def test_models_bring_the_settings_of_their_pipeline(folder, tmp_path):
    base, upsampler = str(folder / "base"), str(folder / "upsampler")
    of_base = {"sampler": "ddpm", "num_steps": 4}
    everything = Pretrained.open(folder).settings
    assert choose(str(folder), None) == (base, upsampler, everything)
    assert choose(base, None) == (base, None, of_base)
    assert choose(base, upsampler) == (base, upsampler, everything)
    assert choose("elsewhere", str(folder)) == ("elsewhere", upsampler, {
        name: value for name, value in everything.items() if name not in of_base})  # fmt: skip
    assert choose(str(folder), "elsewhere") == (base, "elsewhere", of_base)
    (tmp_path / "link").symlink_to(folder / "base")
    assert choose(str(tmp_path / "link"), None) == (str(tmp_path / "link"), None, of_base)


def test_an_index_that_nobody_asked_for_is_no_hindrance(folder, tmp_path):
    (tmp_path / INDEX).write_text('{"unet": ["diffusers", "UNet"]}')
    (tmp_path / "mine").symlink_to(folder.parent)
    assert choose(str(tmp_path / "mine"), None) == (str(tmp_path / "mine"), None, {})


def test_a_part_that_is_missing_is_named(folder, tmp_path):
    Pipeline(random_model()).save_pretrained(tmp_path / "alone")
    with pytest.raises(GlideError, match="alone has no upsampler"):
        choose(None, str(tmp_path / "alone"))
    with pytest.raises(GlideError, match="alone exists already"):
        Pipeline(random_model()).save_pretrained(tmp_path / "alone")
    with pytest.raises(GlideError, match=f"no pipeline at nowhere: it has no {INDEX}$"):
        Pipeline.from_pretrained("nowhere")
    with pytest.raises(GlideError, match="of the Hugging Face Hub is hf://someone/glide"):
        Pipeline.from_pretrained("someone/glide")
    with pytest.raises(GlideError, match=f"it has no {INDEX}; models of their own are for Pipeline.from_checkpoints"):
        Pipeline.from_pretrained(tmp_path / "alone" / "base")
    with pytest.raises(GlideError, match=r"one that you mean: base; it is a whole pipeline, which Pipeline\.from_pre"):
        Pipeline.from_checkpoints(tmp_path / "alone")
    with pytest.raises(GlideError, match=r"^base cannot be given: from_checkpoints combines models$"):
        Pipeline.from_pretrained(tmp_path / "alone", base=tmp_path / "alone" / "base")
    with pytest.raises(GlideError, match=r"torch_dtype is unknown; did you mean dtype\?"):
        Pipeline.from_pretrained(tmp_path / "alone", torch_dtype="float16")
    with pytest.raises(GlideError, match="dtype 'float16' is not supported: use float32 or bfloat16"):
        Pipeline.from_pretrained(tmp_path / "alone", dtype="float16")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]}', "it is from another library"),
        ('{"base": "../../etc"}', "base must be the name of a folder or file beside it, not '../../etc'"),
        ('{"base": ["a"]}', "base must be the name of a folder or file beside it"),
        ('{"base": "base", "settings": {"sampeler": "ddim"}}', "'sampeler' is not a setting of a pipeline"),
        ('{"base": "base", "settings": {"strength": 0.1}}', "'strength' is not a setting of a pipeline"),
        ('{"base": "base", "settings": [1]}', r"its settings are \[1\], not an object"),
        ('{"base": "base", "settings": {"num_steps": "many"}}', "its settings cannot be used: num_steps cannot be"),
        ('{"base": "base", "settings": {"upsampler_strength": 2}}', "its settings cannot be used: .*strength must be"),
        ('{"base": "base", "settings": {"guidance_interval": [1]}}', "its settings cannot be used: guidance_interval"),
        ('{"base": "base", "settings": {"guidance_scale": 1%s}}' % ("0" * 400), "guidance_scale is too large"),
        ('{"base": "base", "settings": {"clip_guidance_scale": 1}}', "'clip_guidance_scale' is not a setting"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_line(index, message, tmp_path):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(GlideError, match=message):
        choose(str(tmp_path), None)


@pytest.fixture(scope="module")
def fetched(folder, tmp_path_factory):
    """What comes of names, in a process that takes a stand-in for the Hub; all it fetched.

    someone/tiny has a pipeline there, someone/models models without an index.
    """
    pytest.importorskip("huggingface_hub")
    root, cache = (tmp_path_factory.mktemp(name) for name in ("hub", "cache"))
    tiny, models = root / "someone" / "tiny", root / "someone" / "models"
    shutil.copytree(folder, tiny)
    (tiny / "base").rename(tiny / "mine")
    (tiny / "training.log").write_text("long")
    index = tiny / INDEX
    index.write_text(index.read_text().replace('"base": "base"', '"base": "mine"'))
    shutil.copytree(folder / "base", models / "all" / "base")
    shutil.copy(write_file(random_model(), models.parent / "base.safetensors"), models)
    names = ["someone/tiny", *ALONE, "someone/else", f"someone/tiny@{COMMIT}/mine", "someone/tiny@v7", "tiny",
             "someone/../x", "someone/models", "someone/models/none.safetensors"]  # fmt: skip
    with served(root) as (address, files):
        found = opened(names, HF_ENDPOINT=address, HF_HUB_CACHE=str(cache))
    offline = opened(names[:4], HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    return found | {f"offline {name}": told for name, told in offline.items()}, files


ALONE = ["someone/models/base.safetensors", "someone/models/all/base"]


def write_file(model, path):
    """The model as one safetensors file, as `python -m convert to-torch` writes it, which needs torch."""
    config, diffusion = model.stage.model.config, asdict(model.stage.diffusion)
    architecture = glide_architecture(config, diffusion)
    names = {entry.torch: "/".join(entry.path) for entry in architecture.keymap}
    header = json.dumps({"record": {"model": asdict(config), "diffusion": diffusion}, "names": names})
    save_file(convert_params(dict(model.params), architecture), path, {HEADER: header})
    return path


def opened(names, **environment):
    """The base model that each name means and where it is, or the error; in a process of its own environment."""
    program = """
import argparse, json, sys
from glide_jax.checkpoint import resolve
from glide_jax.errors import GlideError
from glide_jax.sample.pretrained import choose, parse_with_settings

command = argparse.ArgumentParser()
for flag in ("--checkpoint", "--upsampler"):
    command.add_argument(flag)
command.add_argument("--lora", action="append")
found = {}
for name in sys.argv[1:]:
    name_on_the_hub = "hf://" + name
    try:
        args = parse_with_settings(command, ["--checkpoint", name_on_the_hub])
        found[name] = [args.checkpoint, args.upsampler, args.settings, str(resolve(args.checkpoint))]
        if name.endswith(".safetensors"):
            given = ["--checkpoint", "elsewhere", "--lora", name_on_the_hub, "--lora", name_on_the_hub + ":0.5"]
            found[name].append(parse_with_settings(command, given).lora)
    except GlideError as error:
        found[name] = f"error: {error}"
print(json.dumps(found))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
        timeout=300, check=True,
    )  # fmt: skip
    return json.loads(result.stdout.splitlines()[-1])


def test_a_repository_of_the_hub_is_fetched_once_and_in_part(fetched, pipeline):
    found, files = fetched
    base, upsampler, settings, step = found["someone/tiny"]
    pinned = f"hf://someone/tiny@{COMMIT}"
    assert (base, upsampler, settings) == (f"{pinned}/mine", f"{pinned}/upsampler", SETTINGS)
    assert found["offline someone/tiny"] == found["someone/tiny"]
    of_base = {name: value for name, value in SETTINGS.items() if not name.startswith("upsampler")}
    assert found[f"someone/tiny@{COMMIT}/mine"] == [base, None, of_base, step]
    assert files.count(f"someone/tiny/{INDEX}") == 1
    assert {name.split("/")[2] for name in files if "/tiny/" in name} == {INDEX, "mine"}
    loaded = Pipeline.from_checkpoints(step)
    drawn = loaded("a cat", seed=3, sampler="ddpm", num_steps=4).images
    np.testing.assert_array_equal(drawn, pipeline("a cat", seed=3).small)


@pytest.mark.parametrize("name", ALONE)
def test_a_model_alone_on_the_hub_is_named_with_its_commit(name, fetched, pipeline):
    found, files = fetched
    base, upsampler, settings, step, *lora = found[name]
    assert base == "hf://" + name.replace("models", f"models@{COMMIT}")
    assert (upsampler, settings) == (None, {})
    assert found[f"offline {name}"] == found[name]
    assert lora == ([[base, f"{base}:0.5"]] if name.endswith(".safetensors") else [])
    assert files.count("someone/models/base.safetensors") == 1
    theirs, ours = LoadedModel.from_checkpoint(step).params, pipeline.base.params
    assert jax.tree.all(jax.tree.map(np.array_equal, theirs, ours))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/else", "cannot get hf://someone/else: there is no such repository, or it is private"),
        ("someone/tiny@v7", "cannot get hf://someone/tiny@v7: the repository has no such revision"),
        ("tiny", "hf://tiny is not the name of a repository: it must be hf://USER/NAME"),
        ("someone/../x", "hf://someone/../x is not the name of a repository: it must be hf://USER/NAME"),
        ("someone/models", f"it has no {INDEX}, so it is from another library"),
        ("someone/models/none.safetensors", "it has no none.safetensors"),
        ("offline someone/else", "the Hub cannot be reached, and it was not downloaded before"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(name, message, fetched):
    assert message in fetched[0][name]


def test_without_the_library_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(GlideError, match="uv sync --inexact --extra hub"):
        choose("hf://someone/tiny", None)
