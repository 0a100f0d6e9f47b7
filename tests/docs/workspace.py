"""A folder in which the commands of the pages find what they speak of, in miniature."""

import json
import shutil
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from convert.architecture import clip_architecture, glide_architecture
from convert.state_dict import write_tensors
from glide_jax.checkpoint import CheckpointStore
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import ClipImageConfig, ClipTextConfig
from tests.convert.state_dicts import COSINE, LINEAR, state_dict
from tests.programs import ROOT
from tests.tiny.models import BASE, INPAINT, UPSAMPLER, save_clip, save_lora, save_model
from tests.tiny.training import MODEL, make_config, make_params, make_state

FOOD = ROOT / "datasets/emoji/train-food-3d.tar"
_PROGRAMS = ("train.py", "sample.py", "evaluate.py", "configs", "convert", "datasets", "glide_jax", "tests")
# Files that did not come from the published address.
FROM_ELSEWHERE = ("glide-ft-0x60000", "wide")
_CLIP_TEXT = ClipTextConfig(n_vocab=11, max_text_len=5, n_embd=4, n_head_text=1, n_xf_blocks_text=1)
_CLIP_IMAGE = ClipImageConfig(image_size=8, n_timesteps=1000, n_embd=4, n_head_image=1, n_xf_blocks_image=1)


def make_models(folder: Path) -> Path:
    """The folders that the converter makes of published files, and what a run of the small upsampler starts from."""
    save_model(folder / "v", MODEL, prediction_type="v_prediction")
    save_model(folder / "base", MODEL)
    save_model(folder / "base-inpaint", INPAINT)
    save_model(folder / "upsample", UPSAMPLER, noise_schedule="linear")
    save_model(folder / "parts", replace(UPSAMPLER, resblock_updown=False), noise_schedule="linear")
    for name, path in zip(("clip-text", "clip-image"), save_clip(folder), strict=True):
        Path(path).rename(folder / name)
    return folder


def make_run(folder: Path) -> Path:
    """A run of one update from the command line, but for its log."""
    state = make_state(make_config(), make_params())
    record = {"model": asdict(MODEL), "diffusion": asdict(DiffusionConfig()), "position": 8, "step": 1}
    with CheckpointStore(folder / "checkpoints") as store:
        store.save(1, state, record)
    return folder


def make_torch_files(folder: Path) -> Path:
    """The published files, and two from elsewhere, as PyTorch saves them."""
    # Of GLIDE's heads of 64 channels, as a file does not tell how wide its heads are.
    base, upsampler = (replace(model, num_channels=64, num_head_channels=64) for model in (BASE, UPSAMPLER))
    kinds = {
        "base": (base, COSINE),
        "upsample": (upsampler, LINEAR),
        "base_inpaint": (replace(base, inpaint=True), COSINE),
    }
    tensors = {name: state_dict(glide_architecture(*kind)) for name, kind in kinds.items()}
    tensors |= {"clip_text_enc": state_dict(clip_architecture(_CLIP_TEXT))}
    tensors |= {"clip_image_enc": state_dict(clip_architecture(_CLIP_IMAGE))}
    tensors |= dict.fromkeys(FROM_ELSEWHERE, tensors["base"])
    for name, arrays in tensors.items():
        write_tensors(folder / f"{name}.pt", arrays)
    return folder


def make_workspace(folder: Path, models: Path, run: Path) -> None:
    """Links to what is only read, copies of what a command may write to."""
    for name in _PROGRAMS:
        (folder / name).symlink_to(ROOT / name)
    (folder / "models").mkdir()
    for model in models.iterdir():
        (folder / "models" / model.name).symlink_to(model)
    for name in ("emoji", "emoji_finetune", "glide_base", "mine"):
        shutil.copytree(run, folder / "runs" / name)
    save_lora(folder / "runs" / "mine-lora", models / "base", MODEL)
    (folder / "checkpoints" / "emoji").mkdir(parents=True)
    shutil.copytree(models / "upsample", folder / "runs" / "emoji_upsample")
    shutil.copytree(models / "parts", folder / "runs" / "emoji_upsample_parts")
    for name in ("captions.txt", "model_index.json"):
        shutil.copy(ROOT / "checkpoints/emoji" / name, folder / "checkpoints" / "emoji")
    (folder / "checkpoints" / "emoji" / "base").symlink_to(run)
    (folder / "checkpoints" / "emoji" / "upsample").symlink_to(models / "upsample")
    (folder / "wide.json").write_text(json.dumps({"options": {"image_size": 128, "noise_schedule": "linear"}}))
    for name in ("house.jpg", "sofa.jpg", "popcorn-3d.webp"):
        Image.new("RGB", (50, 40), (200, 80, 40)).save(folder / name)
    Image.new("L", (50, 40), 255).save(folder / "sofa-mask.png")
    for name, samples in {"my-images": 12, "my-held-out": 12, "my-kite": 3}.items():
        _unpack(folder / name, samples=samples)
    for number in range(2):
        (folder / "laion").mkdir(exist_ok=True)
        (folder / "laion" / f"{number:05}.tar").symlink_to(FOOD)


def _unpack(folder: Path, samples: int) -> None:
    with tarfile.open(FOOD) as shard:
        members = [member for member in shard.getmembers() if not member.name.endswith(".json")]
        shard.extractall(folder, members[: 2 * samples], filter="data")
