"""Ablations of the training recipe at equal compute: one option changed at a time, then the error of x_0.

    python tests/benchmarks/recipes.py [--rows "baseline,loss simple"] [--seeds 0,1] [--updates 600]

Each row trains a 16 px model on the 120 foods in 3-D. Then its EMA weights predict x_0 of every image from four noised
copies at each of some noise levels (sigma / alpha), clipped to [-1, 1]; squared errors are in thousandths. The last
column swaps each image's caption for another's: the increase is the information in the caption. So small a task shows
what is learnt first, not what is best after days. Rows of other shapes take as many steps as fit into the baseline's
training time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from glide_jax.data import DataConfig
from glide_jax.diffusion.forward import Level, Readout
from glide_jax.images import from_uint8
from glide_jax.models import Conditioning
from glide_jax.sample import LoadedModel
from glide_jax.tokenizer import GlideTokenizer
from tests.benchmarks.quality import Pictures, read

SIGMAS = (0.3, 1.0, 3.0, 10.0)
NOISES = 4
BASE = {
    "data.path": "datasets/emoji/train-food-3d.tar", "data.validation_path": "",
    "model.image_size": 16, "model.channel_mult": "(1,2,4)",
    "train.optimizer.warmup_steps": 50, "train.optimizer.ema_decay": 0.98,
    "train.sample_every": 0, "train.validate_every": 0, "train.save_every": 0, "train.preview.count": 1,
}  # fmt: skip
_NOISE = {"diffusion.prediction_type": "epsilon", "train.loss.velocity_cap": 100.0}
_ADAMW = {"train.optimizer.kind": "adamw", "train.optimizer.learning_rate": 1e-3}
# The changed options, and by what factor a step then takes longer.
ROWS: dict[str, tuple[dict[str, object], float]] = {
    "baseline": ({}, 1),
    "AdamW": (_ADAMW, 0.85),
    "noise, not v": (_NOISE, 1),
    "32 groups": ({"model.norm_groups": 32}, 1),
    "noise, 32 groups, AdamW": ({**_NOISE, "model.norm_groups": 32, **_ADAMW}, 0.85),
    "rate 1e-3": ({"train.optimizer.learning_rate": 1e-3}, 1),
    "rate 4e-3": ({"train.optimizer.learning_rate": 4e-3}, 1),
    "batches of 16": ({"train.batch_size": 16}, 0.6),
    "logit-normal timesteps": ({"train.loss.timesteps": "logit_normal"}, 1),
    "loss simple": ({"train.loss.kind": "simple"}, 1),
    "min-SNR 5": ({"train.loss.min_snr_gamma": 5.0}, 1),
    "linear schedule": ({"diffusion.noise_schedule": "linear"}, 1),
    "flipped half the time": ({"data.hflip_p": 0.5}, 1),
    "random squares": ({"data.crop": "random"}, 1),
    "caption: the noun alone": ({"data.caption_key": "json:thing"}, 1),
    "captions dropped at 0.2": ({"data.uncond_p": 0.2}, 1),
    "EMA 0.9": ({"train.optimizer.ema_decay": 0.9}, 1),
    "width 64": ({"model.num_channels": 64}, 2.9),
    "text 64 x 1": ({"model.xf_width": 64, "model.xf_layers": 1, "model.xf_heads": 2}, 1),
}


def main() -> None:
    """Trains, evaluates and prints a row of a table for each recipe."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--rows", default=",".join(ROWS), help="names of rows, commas between (default: all)")
    parse.add_argument("--seeds", default="0", help="a training each, commas between (default: %(default)s)")
    parse.add_argument("--updates", type=int, default=300, help="of the baseline (default: %(default)s)")
    parse.add_argument("--output", type=Path, default=Path("out/recipes"), help="folder for runs and grids")
    args = parse.parse_args()
    sigmas = " | ".join(f"{sigma:g}" for sigma in SIGMAS)
    print(f"| recipe | seed | steps | seconds | {sigmas} | {SIGMAS[-1]:g}, other caption |")
    print("|---" * (len(SIGMAS) + 5) + "|")
    for name in args.rows.split(","):
        for seed in args.seeds.split(","):
            print(f"| {name} | {seed} | {row(name, int(seed), args.updates, args.output)} |", flush=True)


def row(name: str, seed: int, updates: int, output: Path) -> str:
    changes, slower = ROWS[name]
    run_dir = output / f"{name.replace(' ', '_')}-{seed}"
    options = {**BASE, **changes, "train.seed": seed, "run_dir": run_dir, "train.max_steps": round(updates / slower)}
    command = ["train.py", "--config=configs/emoji.py", *(f"--config.{key}={value}" for key, value in options.items())]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    log = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in log if "images_per_second" in line]
    seconds = log[-1]["step"] * int(str(options.get("train.batch_size", 32))) / np.mean(rates)
    caption_key = str(changes.get("data.caption_key", ""))
    true = read(DataConfig(validation_path=str(BASE["data.path"]), caption_key=caption_key), 16)
    model = LoadedModel.from_checkpoint(run_dir)
    errors = [error(model, true, sigma) for sigma in SIGMAS]
    exchanged = error(model, Pictures(true.pixels, true.captions[1:] + true.captions[:1]), SIGMAS[-1])
    cells = " | ".join(f"{1000 * value:.0f}" for value in [*errors, exchanged])
    return f"{options['train.max_steps']} | {seconds:.0f} | {cells}"


def error(model: LoadedModel, pictures: Pictures, sigma: float) -> float:
    """Mean squared error of x_0 predicted at the timestep whose sigma / alpha is nearest to `sigma`."""
    network, schedule = model.stage.model, model.stage.schedule
    t = int(np.abs(np.log(schedule.sigmas / sigma)).argmin())
    level = Level.table(schedule).at(jnp.int32(t))

    @jax.jit
    def predict(x_t, tokens, mask):
        text = network.encode_text(model.params, tokens, mask)
        at = jnp.full(len(x_t), float(t))
        predicted = network(model.params, x_t, at, Conditioning(text))[..., :3]
        return jnp.clip(Readout(schedule.prediction_type, x_t, level).x_0(predicted), -1, 1)

    x_0 = from_uint8(pictures.pixels)
    padded = [GlideTokenizer().padded(caption, network.config.text_ctx) for caption in pictures.captions]
    tokens, mask = (np.concatenate(column) for column in zip(*padded, strict=True))
    rng = np.random.default_rng(0)
    noises = rng.standard_normal((NOISES, *x_0.shape)).astype(np.float32)
    noised = (level.alpha * x_0 + level.sigma * noise for noise in noises)
    return float(np.mean([np.square(predict(x_t, tokens, mask) - x_0) for x_t in noised]))


if __name__ == "__main__":
    main()
