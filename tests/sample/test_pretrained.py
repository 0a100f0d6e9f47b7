"""A pipeline as one folder: written, read, chosen on command lines, fetched from a stand-in for the Hub."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from convert.cli import main as convert
from glide_jax.errors import GlideError
from glide_jax.sample import Pipeline, Pretrained, SampleOptions, Settings, choose, upsampling
from glide_jax.sample.pretrained import INDEX
from tests.programs import ROOT
from tests.sample.hub import COMMIT, served
from tests.tiny.models import UPSAMPLER, random_model

SETTINGS = Settings(SampleOptions.of(sampler="ddpm", num_steps=4), upsampling({"num_steps": 3, "strength": 0.5}))


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
    asked = alone("a cat", seed=3, options=SETTINGS.options, upsampler_options=SETTINGS.upsampler_options)
    np.testing.assert_array_equal(asked.images, drawn.images)


def test_its_index_says_what_differs_from_the_usual(folder):
    index = json.loads((folder / INDEX).read_text())
    assert (index["base"], index["upsampler"]) == ("base", "upsampler")
    assert index["settings"] == {
        "sampler": "ddpm", "num_steps": 4, "upsampler_num_steps": 3, "upsampler_timestep_respacing": "",
        "upsampler_strength": 0.5,
    }  # fmt: skip


def test_bfloat16_takes_half_the_room(folder, tmp_path, capsys):
    command = ["bundle", "--checkpoint", folder / "base", "--dtype", "bfloat16", "--sampler", "plms"]
    convert([*map(str, command), "--output", str(tmp_path / "half")])
    assert "written to" in capsys.readouterr().out
    half = Pretrained.open(tmp_path / "half")
    assert (half.upsampler, half.settings) == (None, {"sampler": "plms"})
    whole, small = (
        sum(file.stat().st_size for file in path.glob("state/d/*")) for path in (folder / "base", half.base)
    )
    assert small < 0.7 * whole


def test_models_bring_the_settings_of_their_pipeline(folder):
    base, upsampler = str(folder / "base"), str(folder / "upsampler")
    of_base = {"sampler": "ddpm", "num_steps": 4}
    everything = Pretrained.open(folder).settings
    assert choose(str(folder), None) == (base, upsampler, everything)
    assert choose(base, None) == (base, None, of_base)
    assert choose(base, upsampler) == (base, upsampler, everything)
    assert choose("elsewhere", str(folder)) == ("elsewhere", upsampler, {
        name: value for name, value in everything.items() if name not in of_base})  # fmt: skip
    assert choose(str(folder), "elsewhere") == (base, "elsewhere", of_base)


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


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet"]}', "it is of another library"),
        ('{"base": "../../etc"}', "base must be the name of a folder beside it, not '../../etc'"),
        ('{"base": ["a"]}', "base must be the name of a folder beside it"),
        ('{"base": "base", "settings": {"sampeler": "ddim"}}', "its settings are unknown 'sampeler'"),
        ('{"base": "base", "settings": {"strength": 0.1}}', "its settings are unknown 'strength'"),
        ('{"base": "base", "settings": [1]}', r"its settings are \[1\], not an object"),
        ('{"base": "base", "settings": {"num_steps": "many"}}', "its settings cannot be used: num_steps cannot be"),
        ('{"base": "base", "settings": {"upsampler_strength": 2}}', "its settings cannot be used: .*strength must be"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_line(index, message, tmp_path):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(GlideError, match=message):
        choose(str(tmp_path), None)


@pytest.fixture(scope="module")
def fetched(folder, tmp_path_factory):
    """What comes of names, in a process that takes a stand-in for the Hub, where someone/tiny is; all it fetched."""
    pytest.importorskip("huggingface_hub")
    (folder / "training.log").write_text("long")
    names = ["someone/tiny", f"someone/tiny@{COMMIT}", "someone/else", "someone/tiny@v7", "tiny"]
    cache = tmp_path_factory.mktemp("hub")
    with served(folder, "someone/tiny") as (address, files):
        found = opened(names, HF_ENDPOINT=address, HF_HUB_CACHE=str(cache))
        (folder / INDEX).rename(folder / "renamed.json")
        found["another library"] = opened(names[:1], HF_ENDPOINT=address, HF_HUB_CACHE=str(cache / "2"))[names[0]]
        (folder / "renamed.json").rename(folder / INDEX)
    offline = opened(names[:3], HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache))
    return found | {f"offline {name}": told for name, told in offline.items()}, files


def opened(names, **environment):
    """The folder of each name, or the error, in a process with an environment of its own: the library reads it once."""
    program = """
import json, sys
from glide_jax.errors import GlideError
from glide_jax.sample.pretrained import Pretrained

found = {}
for name in sys.argv[1:]:
    try:
        found[name] = str(Pretrained.open("hf://" + name).folder)
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
    assert found["someone/tiny"] == found[f"someone/tiny@{COMMIT}"] == found["offline someone/tiny"]
    assert files.count(INDEX) == 1
    assert not any("training.log" in name for name in files)
    back = Pipeline.from_pretrained(found["someone/tiny"])
    np.testing.assert_array_equal(back("a cat", seed=3).images, pipeline("a cat", seed=3).images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/else", "cannot get hf://someone/else: there is no such repository, or it is private"),
        ("someone/tiny@v7", "cannot get hf://someone/tiny@v7: the repository has no such revision"),
        ("tiny", "hf://tiny is no repository: it must be hf://USER/NAME"),
        ("another library", f"it has no {INDEX}, so it is of another library"),
        ("offline someone/else", "the Hub cannot be reached, and it was not downloaded before"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(name, message, fetched):
    assert message in fetched[0][name]


def test_without_the_library_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(GlideError, match="uv sync --extra hub"):
        choose("hf://someone/tiny", None)
