"""Images per second of the data pipeline and of the usual webdataset + Pillow + DataLoader one, on the same shards.

    python tests/benchmarks/data.py [--samples 800] [--seconds 6] [--repeats 3]

Shards of 512 px JPEGs are made from four photographs. Every measurement is a process of its own, pinned to that
many cores; the two sides alternate and the best run of each counts, because other work on the machine only slows down.
The baseline is what trainers of this model family do: a webdataset stream with a shuffle buffer, full decoding, bicubic
resizing of the whole image, tokens and float tensors made in DataLoader workers. Both use the same tokenizer.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from glide_jax.data import DataConfig, open_data, transforms
from glide_jax.data.index_file import Index
from glide_jax.data.order import Order, generator
from glide_jax.data.shards.index import ROW, Selection
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.tokenizer import GlideTokenizer

PHOTOGRAPHS = Path(__file__).parents[1] / "golden" / "photographs"
CAPTION = "a photograph of a thing number {} on a table, with soft light from the left side"
BATCH, SIZE = 64, transforms.Size.square(64)
SHARDS = 4


def make_shards(folder: Path, samples: int) -> None:
    """Shards of images whose shorter side is 512 pixels: the photographs, cropped a little differently each time."""
    rng = np.random.default_rng(0)
    photographs = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    for shard in range(SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for i in range(samples // SHARDS):
                image = photographs[i % len(photographs)]
                left, top = rng.integers(0, 16, 2)
                image = image.crop((left, top, image.width, image.height))
                scale = 512 / min(image.size)
                image = image.resize((round(image.width * scale), round(image.height * scale)))
                file = io.BytesIO()
                image.save(file, "JPEG", quality=90)
                writer.write({"__key__": f"{shard:05d}{i:04d}", "jpg": file.getvalue(), "txt": CAPTION.format(i)})


def ours(folder: Path, pairs: bool, cores: int) -> Iterator[int]:
    config = DataConfig(path=str(folder), cache_mb=0, workers=cores)
    sizes = {"image_size": 256, "low_res_size": 64} if pairs else {"image_size": 64}
    with open_data(config, **sizes, text_ctx=128, batch_size=BATCH, seed=0) as stream:
        for batch in stream:
            yield len(batch.captions)


def baseline(folder: Path, pairs: bool, cores: int) -> Iterator[int]:
    import torch

    tokenizer = GlideTokenizer()

    def tensor(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1

    def example(sample: dict) -> tuple:
        image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        tokens, mask = tokenizer.padded([sample["txt"].decode()], 128)
        small = image.resize((64, 64), Image.Resampling.BICUBIC)
        large = [tensor(image.resize((256, 256), Image.Resampling.BICUBIC))] if pairs else []
        return torch.from_numpy(tokens[0]), torch.from_numpy(mask[0]), tensor(small), *large

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(200).map(example)
    for batch in torch.utils.data.DataLoader(dataset, BATCH, num_workers=cores, prefetch_factor=4):
        yield len(batch[0])


def measure(side: str, folder: Path, cores: int, seconds: float) -> dict[str, float]:
    """Images a second after the first two batches, seconds to the first, and memory of the process and its workers."""
    name, kind = side.split("-")
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    begun = time.perf_counter()
    batches = {"ours": ours, "baseline": baseline}[name](folder, kind == "pairs", cores)
    next(batches)
    first = time.perf_counter() - begun
    next(batches)
    begun, images = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        images += next(batches)
    rate = images / (time.perf_counter() - begun)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batches.close()
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (cores if name == "baseline" else 0)
    return {"images_per_second": rate, "first_batch_seconds": first, "memory_mb": (memory + workers) / 1000}


def profile(folder: Path) -> dict[str, float]:
    """Microseconds an image of each stage, one after the other on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    source, tokenizer = WebDataset(DataConfig(path=str(folder))), GlideTokenizer()
    samples = [source[i] for i in range(200)]
    reduced = [transforms.decode(sample.image, (128, 128)) for sample in samples]
    boxes = [transforms.center_box(decoded.width, decoded.height, SIZE) for decoded in reduced]
    order = Order(len(source), 0)
    stages: dict[str, Callable[[int], object]] = {
        "order": lambda i: order[i],
        "read image and caption": lambda i: source[i],
        "decode in full (for comparison)": lambda i: transforms.decode(samples[i].image),
        "decode at reduced scale": lambda i: transforms.decode(samples[i].image, (128, 128)),
        "crop and resize to 64": lambda i: transforms.resize_crop_reduced(reduced[i], boxes[i], SIZE),
        "squash from full size (for comparison)": lambda i: full[i % 20].resize((64, 64), Image.Resampling.BICUBIC),
        "tokens": lambda i: tokenizer.padded(samples[i].captions, 128),
        "one keyed random number": lambda i: generator(0, "uncond", i).random(),
    }
    full = [transforms.decode(sample.image).image for sample in samples[:20]]
    return {name: min(_microseconds(stage, len(samples)) for _ in range(3)) for name, stage in stages.items()}


def _microseconds(stage: Callable[[int], object], count: int) -> float:
    begun = time.perf_counter()
    for i in range(count):
        stage(i)
    return (time.perf_counter() - begun) / count * 1e6


def resume(folder: Path, shards: int = 1100, rows: int = 10_000) -> dict[str, float]:
    """Seconds to the first batch at sample 10 million of an index of 11 million, and the memory it takes."""
    first = WebDataset(DataConfig(path=str(folder)))._rows[0][:1]
    many = folder / "many"
    many.mkdir()
    selection = Selection(DataConfig())
    for shard in range(shards):
        path = many / f"{shard:05d}.tar"
        path.hardlink_to(folder / "00000.tar")
        selection.index_file(path).save(Index(np.broadcast_to(first, rows).astype(ROW), {}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    config = DataConfig(path=str(many))
    with open_data(config, image_size=64, text_ctx=128, batch_size=BATCH, seed=0, position=10_000_000) as stream:
        next(stream)
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"samples": stream.examples_per_epoch, "first_batch_seconds": seconds, "more_memory_mb": memory / 1000}


def in_a_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, cores: int, seconds: float, repeats: int) -> None:
    for kind in ("64", "pairs"):
        runs: dict[str, list[dict[str, float]]] = {"baseline": [], "ours": []}
        for _ in range(repeats):
            for side, results in runs.items():
                options = ["--measure", f"{side}-{kind}", "--cores", str(cores), "--seconds", str(seconds)]
                results.append(in_a_process("--folder", str(folder), *options))
        best = {side: max(results, key=lambda result: result["images_per_second"]) for side, results in runs.items()}
        ratio = best["ours"]["images_per_second"] / best["baseline"]["images_per_second"]
        for side, result in best.items():
            print(f"{kind:6} {cores} cores {side:9}", *(f"{name} {value:.4g}" for name, value in result.items()))
        print(f"{kind:6} {cores} cores ratio {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=800)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--measure", help="one of ours-64, ours-pairs, baseline-64, baseline-pairs, profile, resume")
    args = parser.parse_args()
    if args.measure in ("profile", "resume"):
        print(json.dumps({"profile": profile, "resume": resume}[args.measure](args.folder)))
    elif args.measure:
        print(json.dumps(measure(args.measure, args.folder, args.cores, args.seconds)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GLIDE_JAX_CACHE"] = f"{folder}/cache"
            shards = Path(folder, "shards")
            shards.mkdir()
            make_shards(shards, args.samples)
            for cores in (1, 2):
                compare(shards, cores, args.seconds, args.repeats)
            for name in ("profile", "resume"):
                print(name, json.dumps(in_a_process("--folder", folder + "/shards", "--measure", name), indent=1))


if __name__ == "__main__":
    main()
