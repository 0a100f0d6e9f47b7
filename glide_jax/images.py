"""Image files and picture grids: the uint8 edge of the system."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from glide_jax.errors import GlideError

Pixels = UInt8[np.ndarray, "_ _ 3"]

_JPEG_QUALITY = 95
_PADDING = 4
_LINE_HEIGHT = 12
_CAPTION_LINES = 2


def to_uint8(images: Float[np.ndarray, "*batch height width channels"]) -> UInt8[np.ndarray, "..."]:
    """Rounds images in [-1, 1] to the 8-bit grid, clipping values outside, as the reference's previews do."""
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(pixels: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Maps 8-bit values to float32 in [-1, 1]: x / 127.5 - 1."""
    return np.asarray(pixels).astype(np.float32) / 127.5 - 1.0


def save_png(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Writes one picture atomically, with `metadata` as PNG text entries.

    Raises:
        GlideError: the folder cannot be written to.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    _save(path, pixels, format="PNG", pnginfo=info)


def save_jpeg(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Writes one picture atomically at quality 95, with `metadata` as a JSON comment; errors as for `save_png`."""
    comment = json.dumps(dict(metadata)).encode() if metadata else b""
    _save(path, pixels, format="JPEG", quality=_JPEG_QUALITY, comment=comment)


def _save(path: Path, pixels: Pixels, **options: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(temporary, **options)
        temporary.replace(path)
    except OSError as error:
        raise GlideError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


def grid(
    pictures: Sequence[Pixels],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 0,
) -> Pixels:
    """Lays pictures of any size out in rows on white; drops none.

    Args:
        pictures: at least one uint8 picture.
        captions: text under each picture, shortened to two lines.
        columns: pictures a row; by default the squarest layout.
        cell: width of a cell in pixels; smaller pictures are enlarged by whole factors (nearest neighbour).
    """
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    cell = max(cell, *(picture.shape[1] for picture in pictures))
    height = max(picture.shape[0] * (cell // picture.shape[1]) for picture in pictures)
    rows = -(-len(pictures) // columns)
    step_x, step_y = cell + _PADDING, height + _PADDING + (_CAPTION_LINES * _LINE_HEIGHT + 2 if captions else 0)
    sheet = Image.new("RGB", (columns * step_x + _PADDING, rows * step_y + _PADDING), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left, top = _PADDING + i % columns * step_x, _PADDING + i // columns * step_y
        factor = cell // picture.shape[1]
        sheet.paste(
            Image.fromarray(picture).resize((picture.shape[1] * factor, picture.shape[0] * factor), 0),
            (left, top),
        )
        for number, line in enumerate(_wrap(draw, captions[i], cell) if captions else ()):
            draw.text((left, top + height + number * _LINE_HEIGHT), line, fill="black", font=_font())
    return np.asarray(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=10)


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=_font()) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _CAPTION_LINES:
        lines = [*lines[: _CAPTION_LINES - 1], " ".join(lines[_CAPTION_LINES - 1 :])]
    return [_shorten(draw, line, width) for line in lines]


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if draw.textlength(text, font=_font()) <= width:
        return text
    while text and draw.textlength(text + "…", font=_font()) > width:
        text = text[:-1]
    return text + "…"
