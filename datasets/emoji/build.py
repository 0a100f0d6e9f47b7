"""Builds the bundled captioned emoji images: `python datasets/emoji/build.py --output datasets/emoji`.

It needs Python 3.11+, Pillow, webdataset and `npm`; README.md beside it says what comes out.
Run again with the same version of Pillow, it writes the same bytes.
"""

import argparse
import hashlib
import io
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
import webdataset
from colours import main_colour
from packages import FLUENT, GOOGLE, LABELS, TWITTER, Package, fetch, read_members
from PIL import Image, features
from things import GROUPS, Thing, hold_out, normalise, read_things

HERE = Path(__file__).resolve().parent
PREVIEW = (
    "1f98a",
    "1f422",
    "1f9a9",
    "1f33b",
    "1f352",
    "1f354",
    "1f369",
    "1f695",
    "1f680",
    "1f3f0",
    "26bd",
    "1f511",
)


@dataclass(frozen=True)
class Style:
    """One style: the opening words of its captions, and where its images are."""

    key: str
    words: str
    package: Package
    folder: str  # inside the package
    side: int  # pixels
    webp: dict[str, Any]  # Pillow's options


LOSSLESS = {"lossless": True, "quality": 100, "method": 4}
STYLES = (
    Style("3d", "a 3d render of", FLUENT, "package/assets/", 256, {"quality": 90, "method": 6}),
    Style("flat", "a flat icon of", TWITTER, "package/img/twitter/64/", 64, LOSSLESS),
    Style("drawing", "a shaded drawing of", GOOGLE, "package/img/google/64/", 64, LOSSLESS),
)


def read_images(style: Style, tarball: Path) -> dict[str, bytes]:
    """Returns a style's image files by normalised code points."""
    files = read_members(tarball, lambda name: name.startswith(style.folder))
    return {normalise(Path(name).stem): data for name, data in files.items()}


def open_rgba(encoded: bytes) -> Image.Image:
    """Decodes an image file, whatever its mode, to RGBA."""
    return Image.open(io.BytesIO(encoded)).convert("RGBA")


def on_white(image: Image.Image, side: int) -> Image.Image:
    """Returns the RGBA image on a pure white square of `side` pixels, RGB, centred and never cropped."""
    longest = max(image.size)
    square = Image.new("RGBA", (longest, longest), "white")
    square.alpha_composite(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.LANCZOS)
    return square.convert("RGB")


def encode_webp(image: Image.Image, options: dict[str, Any]) -> bytes:
    """Returns the image as a WebP file."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", **options)
    return stream.getvalue()


def make_sample(thing: Thing, style: Style, split: str, encoded: bytes) -> dict[str, Any]:
    """Returns one WebDataset sample, its values as bytes."""
    image = open_rgba(encoded)
    colour, share = main_colour(image)
    record = {
        "thing": thing.name,
        "style": style.key,
        "group": thing.group,
        "subgroup": thing.subgroup,
        "split": split,
        "colour": colour,
        "colour_share": share,
        "width": style.side,
        "height": style.side,
        "label": thing.label,
        "codepoints": thing.codepoints,
        "tags": thing.tags,
        "source": style.package.spec,
        "licence": style.package.licence,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", thing.name.lower().replace("'", ""))
    return {
        "__key__": f"{slug}-{style.key}",
        "webp": encode_webp(on_white(image, style.side), style.webp),
        "txt": f"{style.words} {thing.phrase}".encode(),
        "json": json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode(),
    }


def pack_shard(samples: list[dict[str, Any]]) -> bytes:
    """Returns the samples as a tar, in the order of their keys' sha256, so that neighbours are unlike."""
    stream = io.BytesIO()
    with webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer:
        for sample in sorted(samples, key=lambda s: hashlib.sha256(s["__key__"].encode()).digest()):
            writer.write(sample)
    return stream.getvalue()


def caption_lines(samples: list[dict[str, Any]], style: Style) -> bytes:
    """Returns a JSON line a sample, sorted by key: its caption, and the same without the style's words."""
    lines = []
    for sample in sorted(samples, key=lambda s: s["__key__"]):
        caption = sample["txt"].decode()
        captions = [caption, caption.removeprefix(f"{style.words} ")]
        lines.append(json.dumps({"key": sample["__key__"], "captions": captions}) + "\n")
    return "".join(lines).encode()


def build_shards(
    things: list[Thing], images: dict[str, dict[str, bytes]]
) -> Iterator[tuple[str, Style, list[dict[str, Any]]]]:
    """Yields (file name, style, samples) for every style, group and split."""
    members = {group: [t.codepoints for t in things if t.group == group] for group in GROUPS.values()}
    held = hold_out(members, [style.key for style in STYLES])
    for style in STYLES:
        for group in members:
            samples: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
            for thing in (t for t in things if t.group == group):
                split = "val" if held.get(thing.codepoints) == style.key else "train"
                samples[split].append(make_sample(thing, style, split, images[style.key][thing.codepoints]))
            for split, chosen in samples.items():
                yield f"{split}-{group}-{style.key}.tar", style, chosen


def draw_preview(images: dict[str, dict[str, bytes]], side: int = 96) -> Image.Image:
    """Returns a grid of a dozen things, one row a style."""
    grid = Image.new("RGB", (side * len(PREVIEW), side * len(STYLES)), "white")
    for row, style in enumerate(STYLES):
        for column, codepoints in enumerate(PREVIEW):
            image = on_white(open_rgba(images[style.key][codepoints]), style.side)
            small = image.resize((side - 16, side - 16), Image.Resampling.LANCZOS)
            grid.paste(small, (side * column + 8, side * row + 8))
    return grid


def write(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that a broken run leaves no half file."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def build(output: Path, work: Path) -> None:
    """Fetches the packages into `work`; writes shards, captions.jsonl, index.json and preview.webp to `output`."""
    for folder in (output, work):
        folder.mkdir(parents=True, exist_ok=True)
    images = {style.key: read_images(style, fetch(style.package, work)) for style in STYLES}
    wording = tomllib.loads((HERE / "wording.toml").read_text(encoding="utf-8"))
    things = read_things(fetch(LABELS, work), wording, set.intersection(*map(set, images.values())))
    shards: list[dict[str, Any]] = []
    captions = b""
    for name, style, samples in build_shards(things, images):
        data = pack_shard(samples)
        write(output / name, data)
        captions += caption_lines(samples, style)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"file": name, "samples": len(samples), "bytes": len(data), "sha256": digest})
        print(f"{name:28s} {len(samples):4d} samples {len(data) / 2**20:6.2f} MiB")
    write(output / "captions.jsonl", captions)
    index = {
        "things": len(things),
        "samples": sum(shard["samples"] for shard in shards),
        "sources": [
            {"package": p.spec, "sha256": p.sha256, "licence": p.licence, "origin": p.origin}
            for p in (FLUENT, TWITTER, GOOGLE, LABELS)
        ],
        "encoded_with": {"pillow": PIL.__version__, "libwebp": features.version("webp")},
        "shards": sorted(shards, key=lambda shard: shard["file"]),
    }
    write(output / "index.json", (json.dumps(index, indent=1) + "\n").encode())
    write(output / "preview.webp", encode_webp(draw_preview(images), {"quality": 90, "method": 6}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE, help="where the shards go (default: %(default)s)")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".cache/emoji"),
        help="where npm packs to, 155 MB (default: %(default)s)",
    )
    arguments = parser.parse_args()
    build(arguments.output, arguments.work)


if __name__ == "__main__":
    main()
