"""How often a generated picture is recognisably of what was asked: nearest pictures of the data set, and main colour.

    python tests/benchmarks/retrieval.py --checkpoint runs/emoji32 --data 'datasets/emoji/train-food-3d.tar'

For each caption one picture is drawn; every picture of the data set is ranked by its distance, and the rank of the
first one of the same thing (in any style) counts. Feature space: the plain pixels, averaged down to 16 x 16 RGB, so
that a shift of a pixel matters little. Chance is the same measure with the drawn pictures dealt out to the captions
at random.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from glide_jax.data import DataConfig, open_validation
from glide_jax.sample import Pipeline

sys.path.insert(0, str(Path(__file__).parents[2] / "datasets" / "emoji"))

from colours import main_colour

_SIDE = 16
_SHUFFLES = 200


def main() -> None:
    """Draws, ranks, and prints one line a measure."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--checkpoint", required=True)
    parse.add_argument("--data", required=True, help="shards that the captions and the ranked pictures come from")
    parse.add_argument("--captions", type=int, default=64)
    parse.add_argument("--num_steps", type=int, default=50)
    parse.add_argument("--sampler", default="ddim")
    parse.add_argument("--guidance_scale", type=float, default=3.0)
    args = parse.parse_args()

    pipeline = Pipeline.from_checkpoints(args.checkpoint, batch_size=32)
    pictures, captions = _read(args.data, pipeline.base.stage.model.config.image_size)
    chosen = np.random.default_rng(0).permutation(len(captions))[: args.captions]
    prompts = [captions[i] for i in chosen]
    options = {name: getattr(args, name) for name in ("num_steps", "sampler", "guidance_scale")}
    drawn = pipeline(prompts, seed=0, **options).images

    distances = np.linalg.norm(_features(drawn)[:, None] - _features(pictures)[None], axis=-1)
    order = np.argsort(distances, axis=1)
    things = np.array([_thing(caption) for caption in captions])
    for top in (1, 5):
        hits = things[order[:, :top]]
        _print(f"top-{top} of {len(set(things))} things", hits, things[chosen])
    colours = np.array([_colour(picture) for picture in drawn])
    _print("main colour", colours[:, None], np.array([_colour(pictures[i]) for i in chosen]))


def _read(path: str, image_size: int) -> tuple[np.ndarray, list[str]]:
    config = DataConfig(validation_path=path, cache_mb=0)
    batches = open_validation(config, image_size=image_size, text_ctx=1, batch_size=64)
    pictures, captions = [], []
    for batch in batches:
        real = batch.arrays["weight"] > 0
        pictures.append(batch.arrays["image"][real])
        captions += [caption for caption, keep in zip(batch.captions, real, strict=True) if keep]
    return np.concatenate(pictures), captions


def _features(pictures: np.ndarray) -> np.ndarray:
    small = [Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(picture, np.float32).ravel() for picture in small])


def _thing(caption: str) -> str:
    return caption.split(" of ", 1)[1]


def _colour(picture: np.ndarray) -> str:
    # White is the background of every picture.
    alpha = np.where((picture >= 235).all(axis=-1), 0, 255).astype(np.uint8)
    return main_colour(Image.fromarray(np.dstack([picture, alpha])))[0]


def _print(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    share = (found == wanted[:, None]).any(axis=1).mean()
    rng = np.random.default_rng(1)
    chance = np.mean([(found == rng.permutation(wanted)[:, None]).any(axis=1).mean() for _ in range(_SHUFFLES)])
    print(f"{name}: {share:.1%} of {len(wanted)} captions, by chance {chance:.1%}")


if __name__ == "__main__":
    main()
