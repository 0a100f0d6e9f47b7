"""Uploaded images and painted masks, opened with care, whatever a client sends.

A file of 100 KB can keep a decoder busy for minutes and decode to a gigabyte. This module is therefore also a program:
it opens an image in a separate process, which can be killed and returns its memory.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from glide_jax.errors import GlideError, run_cli
from glide_jax.images import UnreadableImage, decode, eight_bits

FILE_SIZE = "20mb"
MAX_PIXELS = 25_000_000
SECONDS = 20.0
# Models take 256 pixels; images with a shorter side of at least twice this are reduced by an integer factor.
SIDE = 1024
# Limits for the folder of uploads and images; even a small file takes space and a directory entry.
FOLDER_BYTES = 2_000_000_000
_SMALL_FILE = 65536
# Limits for what editors send ahead of a request, in memory.
_AHEAD_BYTES, AHEAD, _LAYERS = 200_000_000, 100, 10


def uploaded(path: str | None, folder: str) -> Path:
    """The file at a path sent by a client, if it is an uploaded one.

    Gradio checks only paths that are labelled as its files, which a client need not do.

    Args:
        path: anything.
        folder: where uploads are.

    Raises:
        GlideError: the path leads elsewhere, or to something other than a regular file, which might never end.
    """
    try:
        real = Path(path or "").resolve(strict=True)
        if real.is_relative_to(Path(folder).resolve()) and real.is_file():
            return real
    except (OSError, ValueError, RuntimeError):  # not there, a zero byte, links in a circle
        pass
    raise GlideError("upload the image as a file")


def check_files(sent: Any, folder: str) -> None:
    """Raises `GlideError` unless every file named in a client's message was uploaded: see `uploaded`.

    Gradio would otherwise fetch files from URLs before they are checked.
    """
    if isinstance(sent, Mapping):
        if isinstance(sent.get("path"), str):
            uploaded(sent["path"], folder)
        sent = list(sent.values())
    for each in sent if isinstance(sent, list) else ():
        check_files(each, folder)


def bound_folder(folder: Path, most: int = FOLDER_BYTES) -> None:
    """Removes the oldest files until the rest are within the limits, and the folders of removed uploads."""
    found = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(OSError):  # gone by now
                status = path.lstat()
                found.append((status.st_mtime, max(status.st_size, _SMALL_FILE), path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > most:
            with contextlib.suppress(OSError):
                path.unlink()
                if len(path.relative_to(folder).parts) > 2:
                    path.parent.rmdir()


def open_uploaded(sent: Mapping[str, Any] | bytes | None, folder: str) -> Image.Image | None:
    """The image in a client's uploaded file or message, by `open_in_child`; None if there is none."""
    if sent is None:
        return None
    return open_in_child(sent if isinstance(sent, bytes) else uploaded(sent["path"], folder))


def open_edited(sent: Mapping[str, Any] | None, ahead: MutableMapping[str, Any], folder: str) -> dict[str, Image.Image]:
    """The "image" in a `gr.ImageEditor` and the "mask" painted over it; empty if there is none.

    Args:
        sent: the editor's value from a client: files, or the id of data sent ahead.
        ahead: data sent ahead, by id; used entries are removed.
        folder: where uploads are.
    """
    if sent is not None and sent["id"] is not None:
        blobs = ahead.pop(sent["id"], None)
        sent = None if blobs is None else {"background": blobs.background, "layers": blobs.layers}
    image = None if sent is None else open_uploaded(sent["background"], folder)
    if sent is None or image is None:
        return {}
    # The page sends one layer; other clients might send thousands.
    painted = next((layer for layer in sent["layers"] if layer is not None), None)
    return {"image": image, "mask": mask_of(image, open_uploaded(painted, folder))}


def mask_of(image: Image.Image, painted: Image.Image | None) -> Image.Image:
    """A mask of the image's size: black (inpainted) where a layer is painted, white (kept) elsewhere."""
    if painted is None:
        return Image.new("L", image.size, 255)
    return painted.resize(image.size).getchannel("A").point(lambda alpha: 0 if alpha > 32 else 255)


def bound_ahead(editor: Any) -> None:
    """Limits what clients may send to a `gr.ImageEditor` ahead of requests: gradio accepts and keeps any amount."""
    # Gradio looks this method up by name on the component, and has no setting for it. A subclass would not do, because
    # gradio writes a .pyi file next to its source.
    accept, ahead = editor.accept_blobs, editor.blob_storage

    def accept_blobs(data: Any) -> None:
        from starlette.exceptions import HTTPException  # noqa: PLC0415

        try:
            if data.data["type"] == "composite":  # nobody needs it
                return
            if data.data["type"] == "layer" and not 0 <= int(data.data["index"]) < _LAYERS:
                raise ValueError
            accept(data)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise HTTPException(400, "this is not what an editor sends") from error
        while len(ahead) > AHEAD or sum(map(_bytes_ahead, ahead.values())) > _AHEAD_BYTES:
            ahead.pop(next(iter(ahead)))

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    editor.accept_blobs = accept_blobs


def _bytes_ahead(sent: Any) -> int:
    return sum(len(each) for each in (sent.background, *sent.layers) if each is not None)


def open_in_child(source: Path | bytes, most_pixels: int = MAX_PIXELS, seconds: float = SECONDS) -> Image.Image:
    """`open_upload` in a process of its own.

    Raises:
        GlideError: as for `open_upload`, or it takes longer than `seconds`.
    """
    name, content = ("", source) if isinstance(source, bytes) else (str(source.resolve()), b"")
    command = [sys.executable, "-m", "glide_jax.ui.uploads", name, str(most_pixels)]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=seconds, cwd=Path(__file__).parents[2], check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GlideError(f"not a readable image: it takes longer than {seconds:g} s") from error
    if done.returncode == 0:
        return Image.fromarray(np.load(io.BytesIO(done.stdout)))
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == 2 and said.startswith("error: "):
        raise GlideError(said.removeprefix("error: "))
    print(f"{said}\nopening an image ended with {done.returncode}", file=sys.stderr, flush=True)
    raise GlideError("not a readable image: it is damaged")


def open_upload(source: str | Path | bytes, most_pixels: int) -> Image.Image:
    """An image file as RGBA, upright, with its shorter side below 2 `SIDE`.

    Raises:
        GlideError: it is not an image, is damaged, or has too many pixels, in which case it is not decoded.
    """
    try:
        image = eight_bits(decode(source, most_pixels, (SIDE, SIDE)).image)
    except UnreadableImage as error:  # clients must not learn the file's path
        raise GlideError(f"not a readable image: {error.why}") from error
    factor = min(image.size) // SIDE
    return (image.reduce(factor) if factor > 1 else image).convert("RGBA")


def main() -> None:
    """Writes the image in a file, or on standard input, to standard output as an array.

    Raises:
        GlideError: as `open_upload`.
    """
    name, most_pixels = sys.argv[1:]
    image = open_upload(Path(name) if name else sys.stdin.buffer.read(), int(most_pixels))
    np.save(sys.stdout.buffer, np.asarray(image))


if __name__ == "__main__":
    run_cli(main)
