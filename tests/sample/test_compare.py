"""Which options a labelled grid varies, and what its cells are generated with."""

import pytest

from glide_jax.errors import GlideError
from glide_jax.sample.cli import parser
from glide_jax.sample.compare import Axis, cells


def made(*given, axes, settings=None):
    flags = vars(parser().parse_args(["--checkpoint", "base", *given])) | {"strength": None}
    return cells([Axis.parse(text) for text in axes], flags, settings or {})


def test_the_first_option_runs_along_a_row():
    axes = ["num_steps=10,20", "upsample_temp=0.9,1"]
    found = made("--upsampler", "up", "--eta", "0.5", axes=axes, settings={"timestep_respacing": "fast27"})
    assert [cell.label for cell in found] == [
        "num_steps 10\nupsample_temp 0.9", "num_steps 20\nupsample_temp 0.9",
        "num_steps 10\nupsample_temp 1.0", "num_steps 20\nupsample_temp 1.0",
    ]  # fmt: skip
    assert [cell.options.levels.num_steps for cell in found] == [10, 20, 10, 20]
    assert [cell.upsampler_options.temperature for cell in found] == [0.9, 0.9, 1.0, 1.0]
    assert {(cell.options.solver.eta, cell.options.levels.timestep_respacing) for cell in found} == {(0.5, "")}
    assert [cell.seed for cell in made("--seed", "4", axes=["seed=7,8", "sampler=ddim"])] == [7, 8]
    assert [cell.seed for cell in made("--seed", "4", axes=["sampler=ddim,dpm++"])] == [4, 4]


@pytest.mark.parametrize(
    ("given", "axes", "said"),
    [
        ([], ["sampler"], "as guidance_scale=1,3,5"),
        ([], ["sampler="], "as guidance_scale=1,3,5"),
        ([], ["smapler=ddim"], "cannot vary smapler; did you mean sampler"),
        ([], ["guidance_interval=0,1"], "cannot vary guidance_interval; did you mean "),
        ([], ["eta=much"], "--xy eta cannot be 'much'"),
        ([], ["sampler=ddmi"], "did you mean"),
        ([], ["eta=0,2"], r"eta must be in \[0, 1\]"),
        ([], ["eta=0", "eta=1"], "one option or two different ones"),
        ([], ["eta=0", "seed=1", "num_steps=2"], "one option or two different ones"),
        ([], ["strength=0.1,0.5"], "give --init_image FILE"),
        (["--timestep_respacing", "ddim10"], ["num_steps=2"], "leave out --timestep_respacing"),
        (["--timestep_respacing", "ddim10"], ["schedule=karras"], "leave out --timestep_respacing"),
        ([], ["timestep_respacing=10,10"], "cannot vary timestep_respacing"),
        ([], ["clip_guidance_scale=0,1"], "give --clip TEXT IMAGE"),
        ([], ["upsample_temp=1"], "upsample_temp is about the upsampler: give --upsampler DIR"),
        (["--num_samples", "2"], ["eta=0"], "leave out --num_samples"),
    ],
)
def test_what_cannot_be_varied_is_one_line(given, axes, said):
    with pytest.raises(GlideError, match=said):
        made(*given, axes=axes)
