"""Architectures inferred from names and shapes of tensors, and the bijective table of names, equal to the reference."""

import json
from dataclasses import asdict

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.architecture import glide_architecture, infer, parse_options, read_options
from convert.keymap import Entry
from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from tests.convert.state_dicts import ALL_KINDS, COSINE, LINEAR, TOWERS, architecture, manifests, options
from tests.parity.recipe import KINDS

PARAMETERS = {
    "base": 385_030_726,
    "upsample": 398_361_286,
    "base-inpaint": 385_037_638,
    "upsample-inpaint": 398_368_198,
}


@st.composite
def configs(draw):
    levels = draw(st.integers(1, 3))
    text = draw(st.sampled_from([0, 8]))
    return ModelConfig(
        image_size=16,
        num_channels=draw(st.sampled_from([32, 64])),
        num_res_blocks=draw(st.integers(1, 2)),
        channel_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels))),
        attention_resolutions=tuple(16 >> level for level in range(levels) if draw(st.booleans())),
        num_head_channels=16,
        use_scale_shift_norm=draw(st.booleans()),
        resblock_updown=draw(st.booleans()),
        text_ctx=draw(st.integers(1, 9)),
        xf_width=text,
        xf_layers=draw(st.integers(1, 2)),
        xf_heads=draw(st.sampled_from([1, 2])),
        xf_final_ln=draw(st.booleans()),
        xf_padding=draw(st.booleans()),
        inpaint=draw(st.booleans()),
        super_res=draw(st.booleans()),
        low_res_size=4,
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(configs())
def test_what_the_tensors_tell_is_read_from_them(config):
    model = glide_architecture(config, COSINE)
    untold = {name: getattr(config, name) for name in ("image_size", "num_head_channels", "xf_heads", "low_res_size")}
    if not config.xf_width:
        untold |= {name: getattr(config, name) for name in ("text_ctx", "xf_layers", "xf_final_ln", "xf_padding")}
    if len(config.channel_mult) == 1:
        untold["resblock_updown"] = config.resblock_updown
    found, _ = infer(model.torch_shapes, untold | COSINE)
    assert found.record == model.record


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_models_need_no_options(kind):
    options, shapes = manifests()[f"full/{kind}"]
    found, assumed = infer(shapes, {})
    assert found.record["model"] == asdict(ModelConfig.published(kind))
    assert found.record["diffusion"] == (LINEAR if kind.startswith("upsample") else COSINE)
    heads = {"num_heads": 1, "num_head_channels": 64, "num_heads_upsample": -1, "xf_heads": 8, "dropout": 0.1}
    size = {"image_size": 256, "low_res_size": 64} if kind.startswith("upsample") else {"image_size": 64}
    assert assumed == heads | size | {"norm_groups": 32} | found.record["diffusion"]
    assert infer(shapes, parse_options(options))[0].record == found.record

    assert found.kind == kind
    assert list(found.torch_shapes.items()) == list(shapes.items())
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) == PARAMETERS[kind]


def test_the_image_size_goes_with_the_widths_of_the_levels():
    model = architecture("upsample", image_size=128, channel_mult=(1, 1, 2, 3, 4), attention_resolutions=(16, 8))
    found, assumed = infer(model.torch_shapes, {"num_head_channels": 16})
    assert found.record["model"]["attention_resolutions"] == (16, 8)
    assert assumed["image_size"] == 128


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_one_tensor_less_leaves_the_architecture_as_it_is(data):
    kind = data.draw(st.sampled_from(["base", "upsample-inpaint", "clip/text-enc", "clip/image-enc"]))
    model = architecture(kind)
    # A model without this one is another, complete model.
    keys = [key for key in model.torch_shapes if key != "padding_embedding"]
    shapes = dict(model.torch_shapes)
    del shapes[data.draw(st.sampled_from(keys))]
    assert infer(shapes, options(model))[0].record == model.record


@pytest.mark.parametrize("kind", ["upsample-inpaint", "clip/text-enc", "clip/image-enc"])
def test_damaged_tensors_do_not_mislead(kind):
    """The first of each group of tensors that tell the same."""
    model = architecture(kind)
    damaged = [
        "input_blocks.1.0.emb_layers.1.weight",
        "middle_block.0.emb_layers.1.weight",
        *(f"output_blocks.{i}.0.out_layers.0.weight" for i in range(4)),
        "transformer.resblocks.0.ln_1.weight",
        "blocks.block_0.f_attn.ln.g",
    ]
    shapes = {
        key: tuple(length + 8 for length in shape) if key in damaged else shape
        for key, shape in model.torch_shapes.items()
    }
    assert shapes != model.torch_shapes
    assert infer(shapes, options(model))[0].record == model.record


def test_towers_of_clip_take_heads_from_the_options():
    for tower in ("text", "image"):
        model = architecture(f"clip/{tower}-enc")
        for chosen in (
            {f"n_head_{tower}": 2},
            {f"n_head_state_{tower}": 4},
            {f"n_head_{tower}": 2, f"n_head_state_{tower}": 4},
        ):
            found, assumed = infer(model.torch_shapes, chosen)
            assert found.record == model.record
            assert not assumed


BASE = {"num_head_channels": 16, "xf_heads": 2, "image_size": 16}


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        ("base", {"num_head_channels": 48}, r"64 channels at 32 px; give what the tensors do not tell with --options"),
        ("base", BASE | {"num_channels": 64, "xf_layers": 3}, r"num_channels is 32 in .*, 64 in .*; xf_layers is"),
        ("base", BASE | {"attention_resolutions": "8,16"}, r"attention_resolutions is \(8,\) in .*, \(16, 8\)"),
        ("base", BASE | {"channel_mult": "1,3"}, r"channel_mult is \(1, 2\) in .*, \(1, 3\) in"),
        ("base", BASE | {"inpaint": True}, r"inpaint is False in the tensors, True in the options"),
        ("base", {"heads": 1, "dropout": "0"}, r"--options: heads is unknown; there are image_size, num_channels, "),
        ("base", {"dropout": "0"}, r"--options: dropout cannot be '0': it takes float"),
        ("base", {"image_size": "64"}, r"image_size cannot be '64': it takes int"),
        ("base", {"noise_schedule": "sigmoid"}, r"noise_schedule must be one of linear or squared\w+, not 'sigmoid'"),
        ("base", {"channel_mult": "1;2"}, r"channel_mult cannot be \('1;2',\): it takes tuple\[int"),
        ("clip/text-enc", {}, r"n_head_text must be at least 1, not 0; give what the tensors do not tell"),
        ("clip/text-enc", {"n_head_text": 2, "n_head_state_text": 5}, r"n_head_text is 1 in .*, 2 in the"),
        ("clip/image-enc", {"n_head_image": 0}, r"n_head_image is 1 in the tensors, 0 in the options"),
        ("clip/image-enc", {"xf_width": 8}, r"xf_width is unknown"),
    ],
)  # fmt: skip
def test_bad_options_get_one_line(kind, chosen, message):
    with pytest.raises(GlideError, match=message):
        infer(architecture(kind).torch_shapes, parse_options(chosen))


def test_options_that_repeat_the_reference_defaults_do_not_contradict():
    found, _ = infer(
        architecture("base").torch_shapes,
        parse_options(BASE | {"channel_mult": "", "attention_resolutions": "32,8", "use_fp16": True, "dropout": 0}),
    )
    assert found.record == architecture("base").record


def test_other_tensors_are_refused():
    with pytest.raises(GlideError, match=r"not GLIDE or noised CLIP tensors: conv1.weight, fc.bias"):
        infer({"conv1.weight": (1,), "fc.bias": (2,)}, {})
    for key in ("output_blocks.0.foo", "blocks.block_0.foo"):
        with pytest.raises(GlideError, match="the architecture cannot be read"):
            infer({key: (1,)}, {})


NUMBERED = {
    "base": ["output_blocks.{}.0.in_layers.0.weight", "output_blocks.{}.1.qkv.weight", "output_blocks.{}.2.conv.bias",
             "transformer.resblocks.{}.ln_1.weight", "input_blocks.{}.0.emb_layers.1.weight"],
    "clip/text-enc": ["blocks.block_{}.f_attn.ln.g"],
}  # fmt: skip


@pytest.mark.parametrize("number", ["99999999", "9" * 5000, "٣٣٣", "300"], ids=["large", "long", "arabic", "300"])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NUMBERED.items() for name in names])
def test_numbers_that_no_block_can_have_are_left_out(kind, name, number):
    model = architecture(kind)
    shapes = model.torch_shapes | {name.format(number): (8, 8)}
    assert infer(shapes, options(model))[0].record == model.record


@pytest.mark.parametrize(
    ("kind", "name"),
    [("base", "output_blocks.{}.a"), ("base", "transformer.resblocks.{}.a"), ("clip/text-enc", "blocks.block_{}.a")],
)
def test_more_blocks_than_can_be_traced_are_refused(kind, name):
    shapes = architecture(kind).torch_shapes | {name.format(number): (8,) for number in range(5000)}
    with pytest.raises(GlideError, match=r"the tensors have names like .* up to 5\d\d: at most 100 are read"):
        infer(shapes, {})


def test_an_image_tower_without_tokens_is_refused():
    model = architecture("clip/image-enc")
    with pytest.raises(GlideError, match="image_size"):
        infer(model.torch_shapes | {"blocks.input.w_pos": (0, 8)}, {})


def test_option_files_have_the_manifests_shape_or_are_bare(tmp_path):
    path = tmp_path / "options.json"
    for content in ({"options": BASE, "parameters": 3}, {"config": BASE}, BASE):
        path.write_text(json.dumps(content))
        assert read_options(path) == BASE
    path.write_text("[1]")
    with pytest.raises(GlideError, match="holds no JSON object"):
        read_options(path)


UNREADABLE = {
    "no JSON": (b"{", "cannot read --options .*options.json: Expecting"),
    "nested too deep": (b"[" * 100_000, "cannot read --options .*options.json: maximum recursion"),
    "another encoding": ('{"dropout": 0}'.encode("utf-16"), "cannot read --options .*: it is not UTF-8 text"),
    "an endless number": (b'{"channel_mult": [1e999]}', r"channel_mult cannot be \(inf,\): it takes tuple\[int"),
    "a fraction": (b'{"channel_mult": [1, 2.5]}', r"channel_mult cannot be \(1, 2.5\): it takes tuple\[int"),
    "missing": (None, "cannot read --options .*options.json: No such file"),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_option_files_that_cannot_be_read_get_one_line(tmp_path, content, message):
    path = tmp_path / "options.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GlideError, match=message) as caught:
        read_options(path)
    assert "\n" not in str(caught.value)


def test_option_files_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "options.json").write_text(json.dumps(BASE), "utf-8-sig")
    assert read_options(tmp_path / "options.json") == BASE


# The published sizes of the four kinds are compared above.
MANIFESTS = (
    "tiny/base",
    "tiny/upsample-inpaint",
    *(f"{size}/{tower}" for size in ("tiny", "full") for tower in TOWERS),
)


@pytest.mark.parametrize("name", MANIFESTS)
def test_keys_order_and_shapes_equal_the_reference(name):
    options, shapes = manifests()[name]
    model, _ = infer(shapes, parse_options(options))
    assert list(model.torch_shapes.items()) == list(shapes.items())
    assert model.kind == name.split("/", 1)[1]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_parameter_has_exactly_one_entry(kind):
    model = architecture(kind)
    assert len({entry.torch for entry in model.keymap}) == len(model.keymap)
    assert sorted(entry.path for entry in model.keymap) == sorted(flatten_dict(model.params))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_layouts_there_and_back(kind):
    rng = np.random.default_rng(0)
    model = architecture(kind)
    params = flatten_dict(model.params)
    for entry in model.keymap:
        array = rng.standard_normal(model.torch_shapes[entry.torch])
        ours = entry.to_flax(array)
        assert ours.shape == params[entry.path].shape
        np.testing.assert_array_equal(entry.to_torch(ours), array)


def test_layouts_move_the_right_axes():
    weight = np.arange(24.0).reshape(4, 3, 1, 2)
    assert Entry("", (), "conv").to_flax(weight)[0, 1, 2, 3] == weight[3, 2, 0, 1]
    assert Entry("", (), "dense").to_flax(weight[:, :, 0, 0])[2, 3] == weight[3, 2, 0, 0]
    assert Entry("", (), "pointwise").to_flax(weight[:, :, 0, :1])[2, 3] == weight[3, 2, 0, 0]
