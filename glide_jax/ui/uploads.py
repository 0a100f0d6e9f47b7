"""Pictures that people upload, and masks that they paint: opened with care, whatever a client sends."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from glide_jax.errors import GlideError
from glide_jax.images import UnreadableImage, decode, eight_bits

FILE_SIZE = "20mb"


def open_picture(source: str | Path | bytes, most_pixels: int) -> Image.Image:
    """A picture file as RGBA, upright.

    Raises:
        GlideError: no image, a damaged one, or one of too many pixels, which is not decoded then.
    """
    try:
        return eight_bits(decode(source, most_pixels).image).convert("RGBA")
    except UnreadableImage as error:  # where the file lies is not for everyone to know
        raise GlideError(f"cannot read this image: {error.why}") from error


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
    return component


def _opened(payload: Any, folder: str, most_pixels: int) -> Image.Image:
    """What a client sent of a file it uploaded."""
    import gradio as gr  # noqa: PLC0415

    try:
        return open_picture(payload if isinstance(payload, bytes) else uploaded(payload.path, folder), most_pixels)
    except GlideError as error:
        raise gr.Error(str(error), print_exception=False) from error
