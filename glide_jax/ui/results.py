"""Finished pictures as files to show and to take home, each with what made it inside."""

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path

from glide_jax.images import save_png
from glide_jax.sample.cli import picture_metadata
from glide_jax.ui.drawing import Drawn
from glide_jax.ui.request import Request


def save(folder: Path, request: Request, drawn: Sequence[Drawn]) -> list[Path]:
    """Writes PNG files in order, with the entries that sample.py writes; raises `GlideError` if it cannot."""
    paths = []
    for rank, each in enumerate(drawn, 1):
        ranked = f"-rank{rank}" if each.score is not None else ""
        path = folder / f"glide-{request.seed}-{each.index:02d}{ranked}.png"
        save_png(path, each.pixels, metadata(request, each))
        paths.append(path)
    return paths


def bundle(folder: Path, request: Request, pictures: Sequence[Path]) -> Path:
    """One file to download: the picture, or an archive of several."""
    if len(pictures) == 1:
        return pictures[0]
    path = folder / f"glide-{request.seed}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for picture in pictures:
            archive.write(picture, picture.name)
    return path


def metadata(request: Request, drawn: Drawn) -> dict[str, str]:
    """What tells how a picture was made."""
    own = {"prompt": request.prompt, "seed": str(request.seed), "index": str(drawn.index)}
    if drawn.score is not None:
        own["clip_score"] = f"{drawn.score:.6f}"
    uploads = {"inpaint": ("image", "mask"), "enlarge": ("image",), "redraw": ("init_image",)}.get(request.task, ())
    named = argparse.Namespace(
        **vars(request.settings), checkpoint=request.base, upsampler=request.upsampler,
        negative_prompt=request.negative_prompt, **dict.fromkeys(uploads, "uploaded"),
    )  # fmt: skip
    made = picture_metadata(named, request.options)
    if request.task == "enlarge":
        # The base model's settings had no part in it.
        made = {name: value for name, value in made.items() if name.startswith("upsample") or name == "image"}
    return own | made
