"""All four GLIDE models against the live PyTorch reference: weights, every block, the text transformer, the whole."""

import copy
from itertools import takewhile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.architecture import glide_architecture, parse_options
from convert.download import open_source
from convert.state_dict import read_state_dict
from convert.to_flax import to_flax
from convert.to_torch import to_torch
from glide_jax.models import Conditioning, Glide, LoraConfig
from glide_jax.models.layers import timestep_embedding
from glide_jax.models.lora import GROUP, abstract_adapters, with_adapters
from tests.convert.state_dicts import assert_same_state_dict
from tests.parity.live import DIFFUSION, SKIP, glide_pair, to_nhwc, torch_weights
from tests.parity.recipe import KINDS, draw, inpaint_mask, manifest

pytest.importorskip("glide_text2im", reason=SKIP)
torch = pytest.importorskip("torch", reason=SKIP)

TOLERANCE = 1e-5
# Everything the published models leave out.
OTHER = {"resblock_updown": False, "use_scale_shift_norm": False, "xf_final_ln": False, "xf_padding": False}
OTHER |= {"num_head_channels": -1, "num_heads": 2, "num_heads_upsample": 4}
CASES = [("tiny", kind, {}) for kind in KINDS] + [("tiny", "base", OTHER)]
CASES = [pytest.param(case, id="-".join(case[:2]) + ("-other" if case[2] else "")) for case in CASES]
CASES += [pytest.param(("full", kind, {}), id=f"full-{kind}", marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    size, kind, changes = request.param
    return glide_pair(kind, size, tmp_path_factory.mktemp("live"), **changes)


def inputs(pair):
    """Pictures, timesteps and texts, for us and for them."""
    config, batch = pair.ours.config, 2 if pair.size == "tiny" else 1
    side = config.image_size
    theirs = {"x": torch.from_numpy(draw(f"live/{pair.kind}/x", (batch, 3, side, side)))}
    if config.super_res:
        theirs["low_res"] = torch.from_numpy(np.tanh(draw("live/low_res", (batch, 3, 64, 64))))
    if config.inpaint:
        theirs["inpaint_image"] = torch.from_numpy(np.tanh(draw("live/image", (batch, 3, side, side))))
        theirs["inpaint_mask"] = torch.from_numpy(inpaint_mask(batch, side).transpose(0, 3, 1, 2).copy())
    encoder, ctx = pair.theirs.tokenizer, config.text_ctx
    padded = [encoder.padded_tokens_and_mask(encoder.encode(text), ctx) for text in ("a corgi in a hat", "")[:batch]]
    tokens, mask = (torch.tensor(column) for column in zip(*padded, strict=True))
    timesteps = torch.tensor([431.5, 7.0][:batch])
    return theirs | {"timesteps": timesteps, "tokens": tokens, "mask": mask}


def forward(model, params, given):
    """Our output in PyTorch's layout, for what the reference is given."""

    @jax.jit
    def run(params, x, t, tokens, mask, pictures):
        return model(params, x, t, Conditioning(model.encode_text(params, tokens, mask), **pictures))

    pictures = {name: to_nhwc(given[name]) for name in ("low_res", "inpaint_image", "inpaint_mask") if name in given}
    t, tokens, mask = (given[name].numpy() for name in ("timesteps", "tokens", "mask"))
    return run(params, to_nhwc(given["x"]), t, tokens, mask, pictures).transpose(0, 3, 1, 2)


def test_the_whole_model(pair, comparison):
    given = inputs(pair)
    with torch.no_grad():
        theirs = pair.theirs(**given)
    ours = forward(pair.ours, pair.params, given)
    comparison.check(f"whole model, {pair.kind}", pair.size, ours, theirs, TOLERANCE)


def test_adapters_merged(pair, comparison, tmp_path):
    """Ours runs them beside frozen weights, the reference has them in its own."""
    if pair.size != "tiny":
        pytest.skip("adapters have the same place at any width")
    lora = LoraConfig(rank=2, alpha=6.0, targets=("unet/*/attn/*", "unet/*/*conv", "text/*"))
    model, architecture = Glide(pair.ours.config, lora=lora), glide_architecture(pair.ours.config, DIFFUSION)
    adapters = jax.tree.map(lambda leaf: 0.1 * draw(f"live/lora/{leaf.shape}", leaf.shape), abstract_adapters(
        lora, pair.ours.abstract_params()))  # fmt: skip
    merged = jax.device_get(jax.jit(with_adapters)(pair.params, adapters, lora.scale))
    given, before = inputs(pair), copy.deepcopy(pair.theirs.state_dict())
    with torch.no_grad():
        plain = pair.theirs(**given)
        pair.theirs.load_state_dict(torch_weights(architecture, merged, tmp_path), strict=True)
        theirs = pair.theirs(**given)
    pair.theirs.load_state_dict(before)
    assert (theirs - plain).abs().max() > 0.01 * plain.abs().max()
    ours = forward(model, pair.params | {GROUP: adapters}, given)
    comparison.check(f"adapters merged, {pair.kind}", pair.size, ours, theirs, TOLERANCE)


def test_the_text_transformer(pair, comparison):
    given = inputs(pair)
    with torch.no_grad():
        theirs = pair.theirs.get_text_emb(given["tokens"], given["mask"])
    ours = jax.jit(pair.ours.text_features)(pair.params, given["tokens"].numpy(), given["mask"].numpy())
    comparison.check("text transformer, last position", pair.size, ours.summary, theirs["xf_proj"], TOLERANCE)
    tokens = ours.tokens.transpose(0, 2, 1)
    comparison.check("text transformer, all positions", pair.size, tokens, theirs["xf_out"], TOLERANCE)


def test_every_block_on_its_own(pair, comparison):
    """Each block of ours gets the reference's input of that block, so that errors do not add up."""
    calls, given = {}, inputs(pair)
    blocks = {name: module for name, module in pair.theirs.named_modules() if label(pair, name, module)}
    for name, module in blocks.items():
        module.register_forward_hook(lambda _, args, out, name=name: calls.update({name: (args, out)}))
    with torch.no_grad():
        pair.theirs(**given)
    arguments = {name: [to_ours(x) for x in args if x is not None] for name, (args, _) in calls.items()}

    @jax.jit
    def run(params, arguments):
        net = pair.ours.bind(params)
        return {name: call(our_module(pair, net, name), *args) for name, args in arguments.items()}

    ours = run(pair.params, arguments)
    assert len(ours) == len(blocks) > 20
    for name, (_, theirs) in calls.items():
        output = ours[name].transpose(0, 3, 1, 2) if ours[name].ndim == 4 else ours[name]
        comparison.check(label(pair, name, blocks[name]), pair.size, output, theirs, TOLERANCE)


def label(pair, name, module):
    """The row of the table that a module of the reference belongs to; none for those without parameters."""
    kind = type(module).__name__
    if kind == "ResBlock":
        way = type(module.h_upd).__name__
        return f"{kind}, {way.lower()}" if module.updown else kind
    return kind if our_path(pair, name) and kind in CALLS else ""


CALLS = {
    "ResidualAttentionBlock": "xf.ResidualAttentionBlock",
    "AttentionBlock": "AttentionBlock",
    "Upsample": "Upsample",
    "Downsample": "Downsample",
}


def our_path(pair, name):
    """Where the parameters below a module of the reference are in ours."""
    paths = [entry.path for entry in pair.keymap if entry.torch.startswith(f"{name}.")]
    shared = list(takewhile(lambda steps: len(set(steps)) == 1, zip(*paths, strict=False)))
    path = tuple(steps[0] for steps in shared)
    return path[:-1] if path[-1:] == ("conv",) else path  # of a resampler, which has nothing else


def our_module(pair, net, name):
    for step in our_path(pair, name):
        net = net[int(step)] if step.isdecimal() else getattr(net, step)
    return net


def call(module, x, *others):
    match type(module).__name__, others:
        case "ResBlock", (embedding,):
            return module(x, embedding, None)
        case "AttentionBlock", (text,):
            return module(x, module.text_keys_values(text.transpose(0, 2, 1)))
        case _:
            return module(x)


def to_ours(tensor):
    return to_nhwc(tensor) if tensor.ndim == 4 else tensor.numpy()


def test_time_embedding(comparison):
    reference = pytest.importorskip("glide_text2im.nn", reason=SKIP).timestep_embedding
    t = np.array([0, 0.25, 13, 431.5, 998.75, 999], np.float32)
    for dim in (32, 33, 192):
        theirs = reference(torch.from_numpy(t), dim)
        # Angles near 1000 are rounded to 6e-5.
        comparison.check("timestep_embedding", "full", timestep_embedding(jnp.asarray(t), dim), theirs, 4e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_references_own_state_dict_goes_through_flax_unchanged(kind, tmp_path):
    """With the mixture of dtypes that its fp16 mode leaves."""
    creation = pytest.importorskip("glide_text2im.model_creation", reason=SKIP)
    options = manifest("tiny", kind)["options"]
    left_out = ("diffusion_steps", "noise_schedule", "timestep_respacing")
    reference = creation.create_model(**{name: value for name, value in options.items() if name not in left_out})
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_()
    reference.convert_to_fp16()
    torch.save(reference.state_dict(), tmp_path / "reference.pt")
    assert {str(tensor.dtype) for tensor in reference.state_dict().values()} == {"torch.float16", "torch.float32"}
    to_flax(open_source(str(tmp_path / "reference.pt")), tmp_path / "flax", parse_options(options))
    to_torch(tmp_path / "flax", tmp_path / "back.pt")
    assert_same_state_dict(read_state_dict(tmp_path / "back.pt"), read_state_dict(tmp_path / "reference.pt"))
    reference.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True), strict=True)
