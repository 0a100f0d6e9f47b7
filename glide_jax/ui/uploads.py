"""Pictures that people upload, and masks that they paint: opened with care, whatever a client sends."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from glide_jax.errors import GlideError
from glide_jax.ui.opening import open_apart

FILE_SIZE = "20mb"
# What the folder of uploads and pictures may hold; a small file takes space and an entry too.
FOLDER_BYTES = 2_000_000_000
_SMALL_FILE = 65536
# What editors have sent ahead of a request, in memory.
_AHEAD_BYTES, _AHEAD, _LAYERS = 200_000_000, 100, 10


def uploaded(path: str | None, folder: str) -> Path:
    """The file at a path that a client names, if it is one that was uploaded.

    Gradio checks paths only in what calls itself a file of its own; a client need not.

    Args:
        path: anything.
        folder: where uploads are.

    Raises:
        GlideError: the path leads elsewhere, or to what is no regular file and might never end.
    """
    try:
        real = Path(path or "").resolve(strict=True)
        if real.is_relative_to(Path(folder).resolve()) and real.is_file():
            return real
    except (OSError, ValueError, RuntimeError):  # not there, a zero byte, links in a circle
        pass
    raise GlideError("upload the image as a file")


def check_files(sent: Any, folder: str) -> None:
    """Raises `GlideError` unless each file named anywhere in what a client sent was uploaded: see `uploaded`.

    Gradio would fetch one from an address before anybody looks at it.
    """
    if isinstance(sent, Mapping):
        if isinstance(sent.get("path"), str):
            uploaded(sent["path"], folder)
        sent = list(sent.values())
    for each in sent if isinstance(sent, list) else ():
        check_files(each, folder)


def bound_folder(folder: Path, most: int = FOLDER_BYTES) -> None:
    """Removes the oldest files until the rest have at most so many bytes, and the emptied folders of single uploads."""
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


def from_editor(value: Mapping[str, Any] | None) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture in an editor, and its mask: black where something is painted over it, white elsewhere."""
    picture = None if value is None else value["background"]
    if value is None or picture is None:
        return None, None
    painted = Image.new("L", picture.size, 0)
    for layer in value["layers"]:
        painted = ImageChops.lighter(painted, layer.resize(picture.size).getchannel("A"))
    return picture, painted.point(lambda alpha: 0 if alpha > 32 else 255)


def picture_input(most_pixels: int, **options: Any) -> Any:
    """A `gr.Image` whose value is an RGBA picture of at most so many pixels."""
    import gradio as gr  # noqa: PLC0415

    component = gr.Image(type="pil", **options)
    # Not a subclass: Gradio writes a .pyi file beside the source of each.
    component.preprocess = lambda sent: None if sent is None else _opened(sent, component.GRADIO_CACHE, most_pixels)
    return component


def mask_editor(most_pixels: int, **options: Any) -> Any:
    """A `gr.ImageEditor` to paint on a picture; its value has RGBA pictures of the same limits."""
    import gradio as gr  # noqa: PLC0415

    component = gr.ImageEditor(type="pil", format="png", layers=False, **options)

    def preprocess(sent: Any) -> dict[str, Any] | None:
        if sent is not None and sent.id is not None:
            sent = component.blob_storage.pop(sent.id, None)
        if sent is None or sent.background is None:
            return None
        # The page sends one layer; a client might send thousands.
        layers = [layer for layer in sent.layers if layer is not None][:1]
        background, *layers = [
            _opened(file, component.GRADIO_CACHE, most_pixels) for file in (sent.background, *layers)
        ]
        return {"background": background, "layers": layers}

    component.preprocess = preprocess
    component.accept_blobs = _bounded(component.accept_blobs, component.blob_storage)
    return component


def _bounded(accept: Callable[[Any], None], storage: dict[str, Any]) -> Callable[[Any], None]:
    """What takes an editor's images ahead of the request that uses them; gradio takes any number and keeps them."""
    from starlette.exceptions import HTTPException  # noqa: PLC0415

    def accept_blobs(data: Any) -> None:
        try:
            if data.data["type"] == "composite":  # nobody needs it
                return
            if data.data["type"] == "layer" and not 0 <= int(data.data["index"]) < _LAYERS:
                raise ValueError
            accept(data)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise HTTPException(400, "this is not what an editor sends") from error
        while len(storage) > _AHEAD or sum(map(_bytes_ahead, storage.values())) > _AHEAD_BYTES:
            storage.pop(next(iter(storage)))

    accept_blobs._is_server_fn = True  # type: ignore[attr-defined]
    return accept_blobs


def _bytes_ahead(sent: Any) -> int:
    return sum(len(each) for each in (sent.background, *sent.layers) if each is not None)


def _opened(payload: Any, folder: str, most_pixels: int) -> Image.Image:
    """What a client sent of a file it uploaded."""
    import gradio as gr  # noqa: PLC0415

    try:
        return open_apart(payload if isinstance(payload, bytes) else uploaded(payload.path, folder), most_pixels)
    except GlideError as error:
        raise gr.Error(str(error), print_exception=False) from error
