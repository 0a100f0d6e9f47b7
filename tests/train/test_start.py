"""Where a run starts: fresh, from other weights, resumed; and what is refused."""

import json
from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.checkpoint import save_weights
from glide_jax.data import DataConfig
from glide_jax.data.config import FilterConfig
from glide_jax.errors import GlideError
from glide_jax.images import save_png
from glide_jax.models import Conditioning, Glide, LoraConfig, ModelConfig
from glide_jax.options import nested, to_json
from glide_jax.train.config import RunConfig
from glide_jax.train.start import StartPoint, load_starting_weights, training_data
from glide_jax.train.state import split
from tests.tiny.models import BASE, random_weights
from tests.tiny.training import MODEL, make_config, make_params, make_program


def config(run_dir, init_from="", **changes):
    return RunConfig(run_dir=str(run_dir), init_from=str(init_from), model=MODEL, train=make_config(**changes))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_only_the_trained_part_is_made_anew(tmp_path):
    program = make_program(make_config(trainable="text", reinitialize=True))
    given = make_params(1)
    state, fresh = map(program.packing.unpack_state, (program.state_from(given), program.fresh_state()))
    trained, frozen = split(state["params"], "text")
    assert same(frozen, split(given, "text")[1])
    assert same(trained, split(fresh["params"], "text")[0])
    assert same(state["ema"], state["params"])


def test_starting_weights_are_read_and_their_source_is_kept(tmp_path):
    run = config(tmp_path / "run", tmp_path / "weights")
    params = make_params(1)
    record = {"model": asdict(run.model), "diffusion": asdict(run.diffusion), "source": {"file": "base.pt"}}
    save_weights(tmp_path / "weights", params, record)
    start = StartPoint.of(run)
    assert (start.step, start.position, start.source) == (None, 0, {"source": {"file": "base.pt"}})
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_noise_may_learn_v_but_not_forget_it(tmp_path):
    """Records from before there was the choice have no entry for it, nor for the number of norm groups."""
    old = {"diffusion_steps": 1000, "noise_schedule": "squaredcos_cap_v2"}
    model = {name: value for name, value in asdict(MODEL).items() if name != "norm_groups"}
    run = config(tmp_path / "run", tmp_path / "weights")
    as_v = replace(run, diffusion=replace(run.diffusion, prediction_type="v_prediction"))
    save_weights(tmp_path / "weights", make_params(1), {"model": model, "diffusion": old})
    assert StartPoint.of(run) == StartPoint.of(as_v)
    save_weights(tmp_path / "v", make_params(1), {"model": model, "diffusion": asdict(as_v.diffusion)})
    with pytest.raises(GlideError, match="prediction_type is v_prediction there, epsilon here"):
        StartPoint.of(replace(run, init_from=str(tmp_path / "v")))
    with pytest.raises(GlideError, match="prediction_type is epsilon there, v_prediction here"):  # its base stays
        StartPoint.of(replace(as_v, train=replace(run.train, lora=LoraConfig(rank=1))))


def test_weights_of_the_other_kind_are_called_that(tmp_path):
    run = config(tmp_path / "run", tmp_path / "weights")
    other = replace(MODEL, super_res=True, image_size=2 * MODEL.image_size)
    save_weights(tmp_path / "weights", make_params(1), {"model": asdict(other), "diffusion": asdict(run.diffusion)})
    with pytest.raises(GlideError, match=r"this run trains a base model, and .*weights is an upsampler"):
        StartPoint.of(run)


def test_starting_weights_may_be_of_another_size(tmp_path):
    run = config(tmp_path / "run", tmp_path / "weights")
    half = tuple(side // 2 for side in MODEL.attention_resolutions)
    small = replace(MODEL, image_size=MODEL.image_size // 2, attention_resolutions=half)
    save_weights(tmp_path / "weights", make_params(1), {"model": asdict(small), "diffusion": asdict(run.diffusion)})
    assert StartPoint.of(run).step is None
    save_weights(tmp_path / "run" / "checkpoints" / "1", make_params(1), {"model": asdict(small), "position": 8})
    with pytest.raises(GlideError, match=r"image_size is 4 there, 8 here"):
        StartPoint.of(run)


@pytest.mark.parametrize(
    ("changes", "init_from", "message"),
    [
        ({"trainable": "unet"}, "", r"train.trainable=unet freezes the rest, but there are no weights"),
        ({"reinitialize": True}, "weights", "train.reinitialize leaves nothing of init_from"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, init_from, message):
    with pytest.raises(GlideError, match=message):
        StartPoint.of(config(tmp_path, init_from, **changes))


@pytest.mark.parametrize("part", [{"trainable": "text"}, {"lora": LoraConfig(rank=1)}])
def test_a_mask_is_not_learnt_by_layers_that_do_not_see_it(tmp_path, part):
    run = config(tmp_path / "run", tmp_path / "weights", **part)
    save_weights(tmp_path / "weights", make_params(1), {"model": asdict(MODEL), "diffusion": asdict(run.diffusion)})
    assert StartPoint.of(run).step is None
    with pytest.raises(GlideError, match=r"train\.(trainable=text|lora\.rank=1) cannot teach inpainting"):
        StartPoint.of(replace(run, model=replace(MODEL, inpaint=True)))


def test_a_run_that_trains_another_part_is_refused_with_both(tmp_path):
    run = config(tmp_path, "weights", trainable="text")
    record = {"model": asdict(run.model), "diffusion": asdict(run.diffusion), "config": asdict(run), "position": 8}
    save_weights(tmp_path / "checkpoints" / "1", {"kernel": np.zeros(2, np.float32)}, record)
    assert StartPoint.of(run).position == 8
    with pytest.raises(GlideError, match=r"train.trainable is text there, all here"):
        StartPoint.of(config(tmp_path, "weights"))


SIDE = BASE.image_size
UPSAMPLER = replace(BASE, super_res=True, low_res_size=SIDE // 2)


@pytest.mark.parametrize("plain", [BASE, UPSAMPLER], ids=["base", "upsampler"])
def test_update_0_equals_the_plain_model(plain, tmp_path):
    weights = random_weights(Glide(plain).abstract_params())
    save_weights(tmp_path / "plain", weights, {"model": asdict(plain)})
    wide = Glide(replace(plain, inpaint=True))
    params = load_starting_weights(str(tmp_path / "plain"), wide.config, wide.abstract_params())
    random = np.random.RandomState(0)
    x, image = (jnp.asarray(random.standard_normal((2, SIDE, SIDE, 3)), jnp.float32) for _ in range(2))
    low_res = (
        jnp.asarray(random.standard_normal((2, SIDE // 2, SIDE // 2, 3)), jnp.float32) if plain.super_res else None
    )
    mask = jnp.asarray(random.randint(0, 2, (2, SIDE, SIDE, 1)), jnp.float32)
    t = jnp.array([7.0, 700.0])

    @partial(jax.jit, static_argnums=0)
    def output(model, params, *known):
        text = model.encode_text(params, jnp.ones((2, 8), jnp.int32), jnp.ones((2, 8), bool))
        return model(params, x, t, Conditioning(text, low_res, *known))

    expected = output(Glide(plain), weights)
    np.testing.assert_allclose(output(wide, params, image, mask), expected, atol=1e-5)
    changed = jax.tree.map(jnp.asarray, params)
    kernel = changed["unet"]["input_conv"]["kernel"]
    changed["unet"]["input_conv"]["kernel"] = kernel.at[:, :, 3:7].set(0.1)
    assert np.abs(output(wide, changed, image, mask) - expected).max() > 1e-3


def test_a_model_of_another_size_starts_from_the_same_weights(tmp_path):
    weights = random_weights(Glide(UPSAMPLER).abstract_params())
    save_weights(tmp_path / "small", weights, {"model": asdict(UPSAMPLER)})
    doubled = tuple(2 * side for side in UPSAMPLER.attention_resolutions)
    large = Glide(replace(UPSAMPLER, image_size=2 * SIDE, low_res_size=SIDE, attention_resolutions=doubled))
    params = load_starting_weights(str(tmp_path / "small"), large.config, large.abstract_params())
    jax.tree.map(np.testing.assert_array_equal, params, weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low_res_size": 8}, r"it needs attention_resolutions \(16,\), not \(8,\)$"),
        ({"attention_resolutions": (16,)}, "it needs low_res_size 8, not 4$"),
    ],
    ids=["attention at another level", "another factor"],
)
def test_another_size_has_the_same_fractions(change, message, tmp_path):
    save_weights(tmp_path / "small", random_weights(Glide(UPSAMPLER).abstract_params()), {"model": asdict(UPSAMPLER)})
    large = Glide(replace(UPSAMPLER, image_size=2 * SIDE, **change))
    with pytest.raises(GlideError, match=message):
        load_starting_weights(str(tmp_path / "small"), large.config, large.abstract_params())


def test_other_differences_are_refused(tmp_path):
    save_weights(tmp_path / "plain", random_weights(Glide(BASE).abstract_params()), {"model": asdict(BASE)})
    deeper = Glide(replace(BASE, inpaint=True, xf_layers=2))
    with pytest.raises(GlideError, match="xf_layers is 1 there, 2 here"):
        load_starting_weights(str(tmp_path / "plain"), deeper.config, deeper.abstract_params())


def test_an_inpainting_checkpoint_starts_no_plain_model(tmp_path):
    wide: ModelConfig = replace(BASE, inpaint=True)
    save_weights(tmp_path / "wide", random_weights(Glide(wide).abstract_params()), {"model": asdict(wide)})
    with pytest.raises(GlideError, match="inpaint is True there, False here"):
        load_starting_weights(str(tmp_path / "wide"), BASE, Glide(BASE).abstract_params())


@pytest.mark.parametrize(
    ("min_size", "told"),
    [
        (8, []),
        (9, ["8 samples to train on; left out: too small: 3"]),
        (10, ["warning: only 2 samples to train on; left out: too small: 9; change --config.data.filters.min_size"]),
    ],
)
def test_what_the_filters_leave_out_is_told_at_the_start(min_size, told, tmp_path, capsys):
    for i, side in enumerate([8] * 3 + [9] * 6 + [20] * 2):
        save_png(tmp_path / "images" / f"{i}.png", np.zeros((side, side, 3), np.uint8))
    filters = FilterConfig(min_size=min_size)
    data = DataConfig(source="folder", path=str(tmp_path / "images"), caption_key="filename", filters=filters)
    with training_data(replace(config(tmp_path / "run"), data=data), StartPoint({})):
        assert [line.partition(" (now")[0] for line in capsys.readouterr().err.splitlines()] == told


def test_a_resumed_run_s_other_options_are_named(tmp_path):
    before = config(tmp_path / "run", max_steps=5)
    record = json.loads(json.dumps({"config": to_json(nested(before))}))
    changed = replace(config(tmp_path / "moved", max_steps=5, seed=3), data=DataConfig(path="elsewhere", hflip_p=0.5))
    assert StartPoint(record, step=3).changed(before) == []
    assert StartPoint(record, step=3).changed(changed) == ["data.hflip_p: 0.0 -> 0.5", "train.seed: 0 -> 3"]
    assert StartPoint(record).changed(changed) == []  # a new run


@pytest.fixture
def buckets_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(tmp_path / "cache"))
    for i, width in enumerate([8] * 9 + [12] * 7):
        save_png(tmp_path / "images" / f"{i}.png", np.zeros((8, width, 3), np.uint8))
    (tmp_path / "images" / "damaged.png").write_bytes(b"damaged")
    given = {"source": "folder", "path": str(tmp_path / "images"), "caption_key": "filename"}
    return replace(config(tmp_path / "run"), data=DataConfig(**given, buckets=("8x8", "8x12", "12x8")))


def test_the_images_of_each_size_are_told_and_a_resume_says_if_they_are_others(buckets_run, capsys):
    def told(record):
        with training_data(buckets_run, StartPoint(record, step=3)) as data:
            return data.buckets.fingerprint, capsys.readouterr().err.splitlines()

    fingerprint, lines = told({})
    *lines, warning = lines
    assert lines == [
        "data.buckets 12x8: 0 images",
        "data.buckets 8x8: 9 images",
        "data.buckets 8x12: 7 images, fewer than a batch",
        "images in no bucket: corrupt image: 1",
    ]
    assert warning.startswith("warning: data.buckets or the images in them are others than before")
    assert told({"buckets": json.loads(json.dumps(fingerprint))})[1] == lines
    swapped = fingerprint | {"crc32": fingerprint["crc32"] ^ 1}  # as many of each, but others
    assert told({"buckets": swapped})[1] == [*lines, warning]
    with training_data(buckets_run, StartPoint({})):  # a new run
        assert capsys.readouterr().err.splitlines() == lines
