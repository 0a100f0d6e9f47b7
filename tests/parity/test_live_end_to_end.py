"""Models taken back to PyTorch draw the same there: a converted one after fine-tuning, and the shipped ones."""

import json

import numpy as np
import pytest

from glide_jax.images import to_uint8
from glide_jax.sample import Inputs, LoadedModel, SampleOptions
from tests.parity.live import SKIP
from tests.parity.recipe import draw, manifest
from tests.programs import ROOT, run

creation = pytest.importorskip("glide_text2im.model_creation", reason=SKIP)
nn = pytest.importorskip("glide_text2im.nn", reason=SKIP)
torch = pytest.importorskip("torch", reason=SKIP)
torch_files = pytest.importorskip("safetensors.torch", reason=SKIP)

PROMPT = "a 3d render of a banana"
PAGE = """
from glide_jax.config import default_config

def get_config():
    config = default_config()
    config.run_dir = {run!r}
    config.init_from = {start!r}
    config.model.update({model!r})
    config.data.path = "datasets/emoji/train-food-3d.tar"
    config.train.batch_size = 4
    config.train.max_steps = 20
    config.train.sample_every = 0
    config.train.preview.count = 1
    config.train.preview.options.num_steps = 2
    config.train.optimizer.learning_rate = 1e-3
    config.train.optimizer.ema_decay = 0.9
    return config
"""


def succeed(*command):
    result = run(*command)
    assert result.returncode == 0, result.stderr


def test_a_checkpoint_is_fine_tuned_here_and_draws_the_same_there(tmp_path, comparison):
    options = manifest("tiny", "base")["options"] | {"num_channels": 64}
    not_models = ("diffusion_steps", "noise_schedule", "timestep_respacing")
    theirs = creation.create_model(**{name: value for name, value in options.items() if name not in not_models})
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Some of the reference's parameters begin as whatever was in memory.
            parameter.nan_to_num_(0.0).clamp_(-1, 1).add_(0.02 * torch.randn_like(parameter))
    torch.save(theirs.state_dict(), tmp_path / "before.pt")
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}

    (tmp_path / "options.json").write_text(json.dumps({"options": options}))
    succeed("-m", "convert", "to-flax", tmp_path / "before.pt", "--output", tmp_path / "start", "--options",
        tmp_path / "options.json")  # fmt: skip
    model = LoadedModel.from_checkpoint(tmp_path / "start").stage.model.config
    values = {name: getattr(model, name) for name in model.__slots__}
    page = tmp_path / "page.py"
    page.write_text(PAGE.format(run=str(tmp_path / "run"), start=str(tmp_path / "start"), model=values))
    succeed("train.py", f"--config={page}")
    succeed("-m", "convert", "to-torch", tmp_path / "run", "--output", tmp_path / "after.pt")

    after = torch.load(tmp_path / "after.pt", weights_only=True)
    assert list(after) == list(before)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    theirs.load_state_dict(after, strict=True)

    x_t = draw("end-to-end/x_T", (1, 3, 64, 64))
    assert_same_picture(
        LoadedModel.from_checkpoint(tmp_path / "run"), theirs, x_t, comparison, "fine-tuned, then drawn"
    )


@pytest.mark.parametrize("name", ["base", "upsample"])
def test_the_shipped_model_draws_the_same_there(name, tmp_path, comparison, monkeypatch):
    """The reference is given their number of norm groups, and the noise that their v means."""
    shipped = ROOT / "checkpoints" / "emoji" / name
    succeed("-m", "convert", "to-torch", shipped, "--output", tmp_path / "shipped.safetensors")
    ours = LoadedModel.from_checkpoint(shipped)
    config = ours.stage.model.config
    monkeypatch.setattr(
        "glide_text2im.unet.normalization",
        lambda channels, swish=0.0: nn.GroupNorm32(num_channels=channels, num_groups=config.norm_groups, swish=swish),
    )
    options = {name: getattr(config, name) for name in manifest("tiny", "base")["options"] if hasattr(config, name)}
    # create_model allows one size for a number of levels, and takes only the levels of attention from it.
    size = 2 ** (len(config.channel_mult) + 2)
    attention = [side * size // config.image_size for side in config.attention_resolutions]
    options |= {"image_size": size, "attention_resolutions": attention, "cache_text_emb": False, "use_fp16": False}
    for listed in ("channel_mult", "attention_resolutions"):
        options[listed] = ",".join(map(str, options[listed]))
    theirs = creation.create_model(**options)
    theirs.load_state_dict(torch_files.load_file(tmp_path / "shipped.safetensors"), strict=True)
    x_t = draw("shipped/x_T", (1, 3, config.image_size, config.image_size))
    small = (1, 3, config.low_res_size, config.low_res_size)
    low_res = np.tanh(draw("shipped/low_res", small)) if config.super_res else None
    assert_same_picture(ours, theirs, x_t, comparison, f"shipped model, {name}", low_res)


def assert_same_picture(ours, theirs, x_t, comparison, title, low_res=None):
    drawn = ours.stage.sample(
        ours.params,
        Inputs([PROMPT], [0], low_res=None if low_res is None else nhwc(low_res), x_t=nhwc(x_t)),
        SampleOptions.of(timestep_respacing="ddim10", guidance_scale=1.0),
    )
    text_ctx = ours.stage.model.config.text_ctx
    tokens, mask = theirs.tokenizer.padded_tokens_and_mask(theirs.tokenizer.encode(PROMPT), text_ctx)
    more = {} if low_res is None else {"low_res": torch.from_numpy(low_res)}
    diffusion = creation.create_gaussian_diffusion(1000, ours.stage.diffusion.noise_schedule, "ddim10")
    abar = torch.tensor(ours.stage.schedule.alphas_cumprod, dtype=torch.float32)

    def network(x, t, **given):
        output = theirs(x, t, **given)
        if ours.stage.diffusion.prediction_type == "v_prediction":
            level = abar[t.long()][:, None, None, None]
            output = torch.cat([level.sqrt() * output[:, :3] + (1 - level).sqrt() * x, output[:, 3:]], dim=1)
        return output

    theirs.eval()
    with torch.no_grad():
        reference = diffusion.ddim_sample_loop(
            network, x_t.shape, noise=torch.from_numpy(x_t), device="cpu",
            model_kwargs={"tokens": torch.tensor([tokens]), "mask": torch.tensor([mask]), **more},
        )  # fmt: skip
    comparison.check(title, "tiny", np.asarray(drawn).transpose(0, 3, 1, 2), reference, 3e-4)
    grey = [to_uint8(image).astype(int) for image in (np.asarray(drawn), nhwc(reference.numpy()))]
    assert np.abs(grey[0] - grey[1]).max() <= 1
    assert grey[0].std() > 10


def nhwc(images):
    return images.transpose(0, 2, 3, 1)
