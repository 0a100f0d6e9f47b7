"""Image files and image grids in uint8; all images enter the system here."""

import importlib.util
import io
import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from glide_jax.errors import GlideError, install
from glide_jax.files import valid_unicode, written

Pixels = UInt8[np.ndarray, "_ _ 3"]
# A path, a file's content, a Pillow image, or an array (see `open_image`).
ImageSource = str | Path | bytes | Image.Image | np.ndarray

# Suffixes of image files, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 80_000_000
MOST_SIDE = 4096  # pixels, of images that a model generates or is trained on
# Only formats of photographs and web images: Pillow's other formats include programs (EPS) and videos.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # these exchange width and height; unknown numbers count as 1

_JPEG_QUALITY = 95
_VIDEO = ".mp4"
_ANIMATIONS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", _VIDEO: "mp4"}
_FRAME_MS, _LAST_FRAME_MS = 200, 2000
_PADDING = 4
_LINE_HEIGHT = 12
_CAPTION_LINES = 2


class UnreadableImage(GlideError):
    """An image that cannot be used.

    Attributes:
        reason: two or three words, under which such images are counted.
        why: what is wrong, to end a sentence with.
    """

    def __init__(self, reason: str, why: str, name: str = "") -> None:
        super().__init__(f"cannot read the image{name and f' {name}'}: {why}")
        self.reason, self.why = reason, why


class Decoded(NamedTuple):
    """A decoded image, its upright size in the file, and the factor it was reduced by while decoding (1, 2, 4 or 8)."""

    image: Image.Image
    width: int
    height: int
    reduction: int = 1


def open_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as RGB: rotated according to EXIF, on white where transparent, scaled from 16 to 8 bits, fully decoded.

    Args:
        source: a JPEG, PNG, WebP, GIF (first frame), BMP, TIFF or AVIF file; its content; a Pillow image; or an array,
            uint8 [height, width, 3], [height, width, 4], [height, width, 1] or [height, width], or uint16 grey.
        max_pixels: larger ones are refused before they are decoded.

    Raises:
        UnreadableImage: there is no such file, it is damaged or not an image, it has too many pixels or holds floats,
            or an array has another shape or type.
    """
    with _reading(source):
        return on_white(eight_bits(decode(source, max_pixels).image))


def decode(source: ImageSource, max_pixels: int = MAX_PIXELS, least: tuple[int, int] | None = None) -> Decoded:
    """An upright image with its original values and channels, for `eight_bits` and `on_white`.

    Args:
        source, max_pixels: as for `open_image`.
        least: width and height; a JPEG is then decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 that leaves
            it at least as large.

    Raises:
        UnreadableImage: as for `open_image`, except for floats.
    """
    with _reading(source), _opened(source) as image:
        size, orientation = image.size, _orientation(image)
        if size[0] * size[1] > max_pixels:
            why = f"it has {size[0]} x {size[1]} pixels, more than {max_pixels / 1e6:g} million"
            raise UnreadableImage("image too large", why)
        if least is not None:
            image.draft("RGB", least[::-1] if orientation in _SIDEWAYS else least)
        image.load()
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        width, height = size[::-1] if orientation in _SIDEWAYS else size
        return Decoded(upright, width, height, round(size[0] / image.width))


def image_size(source: ImageSource) -> tuple[int, int]:
    """Width and height in pixels after EXIF rotation, without decoding; raises `UnreadableImage`."""
    with _reading(source), _opened(source) as image:
        return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def eight_bits(image: Image.Image) -> Image.Image:
    """A decoded image as "L", "RGB" or "RGBA"; raises `UnreadableImage` if it holds floats."""
    if image.mode == "F":
        raise UnreadableImage("image of floats", "its values are floats; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scale
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray((levels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return _converted(image, "RGBA")
    return _converted(image, "L" if image.mode in ("1", "L") else "RGB")


def on_white(image: Image.Image) -> Image.Image:
    """An image from `eight_bits` as RGB, white where transparent."""
    if image.mode != "RGBA":
        return _converted(image, "RGB")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy what has the mode


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _from_array(source)
    else:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            yield Image.open(file, formats=_FORMATS)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    channels = array.shape[2:]
    fits = channels in ((), (3,), (4,)) if array.dtype == np.uint8 else array.dtype == np.uint16 and channels == ()
    if array.ndim not in (2, 3) or not array.size or not fits:
        raise UnreadableImage(
            "not an image",
            f"an array must be uint8 [height, width, 3], [height, width, 4] or [height, width], or uint16 [height,"
            f" width], not {array.dtype} {list(array.shape)}",
        )
    return Image.fromarray(array)


@contextmanager
def _reading(source: ImageSource) -> Iterator[None]:
    """Turns any failure into an `UnreadableImage` that names the image."""
    name = str(source) if isinstance(source, str | Path) else ""
    try:
        yield
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, error.why, name) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage("image too large", "it has too many pixels", name) from error
    except Exception as error:  # Pillow raises nearly anything on damaged files
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableImage("unreadable file", str(error.strerror), name) from error
        why = "it is damaged, or no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
        raise UnreadableImage("corrupt image", why, name) from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # an image with damaged metadata is still usable
        return 1


def to_uint8(images: Float[np.ndarray, "*batch height width channels"]) -> UInt8[np.ndarray, "..."]:
    """Rounds images in [-1, 1] to 8 bits, clipping values outside, like the reference's previews."""
    return np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(pixels: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Maps 8-bit values to float32 in [-1, 1]: x / 127.5 - 1."""
    return np.asarray(pixels).astype(np.float32) / 127.5 - 1.0


def png(pixels: Pixels, metadata: Mapping[str, str] | None = None) -> bytes:
    """An image as the bytes of a PNG file, with `metadata` as text entries."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, valid_unicode(value))
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def save_png(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Writes an image atomically as a PNG file: see `png`.

    Raises:
        GlideError: the folder cannot be written to.
    """
    with written(path) as temporary:
        temporary.write_bytes(png(pixels, metadata))


def save_jpeg(path: Path, pixels: Pixels, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a JPEG of quality 95 atomically, with `metadata` as a JSON comment; errors as for `save_png`."""
    readable = {key: valid_unicode(value) for key, value in (metadata or {}).items()}
    comment = json.dumps(readable).encode() if readable else b""
    with written(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG", quality=_JPEG_QUALITY, comment=comment)


def save_animation(path: Path, frames: Sequence[Pixels]) -> None:
    """Writes frames of one size atomically as a looping GIF, WebP or animated PNG, or as a video (MP4).

    The last frame is shown longest.

    Raises:
        GlideError: the suffix is another, PyAV is missing for a video, or the folder cannot be written to.
    """
    kind = check_animation(path)
    if path.suffix.lower() == _VIDEO:
        with written(path) as temporary:
            _save_video(temporary, [*frames, *[frames[-1]] * (_LAST_FRAME_MS // _FRAME_MS - 1)])
        return
    first, *others = map(Image.fromarray, frames)
    milliseconds = [_FRAME_MS] * len(others) + [_LAST_FRAME_MS]
    with written(path) as temporary:
        first.save(temporary, kind, save_all=True, append_images=others, duration=milliseconds, loop=0)


def check_animation(path: Path) -> str:
    """The format of an animation; raises `GlideError` if its suffix is of none, or PyAV is missing for a video."""
    kind = _ANIMATIONS.get(path.suffix.lower())
    if kind is None:
        raise GlideError(f"cannot write an animation to {path}: its name must end with {', '.join(_ANIMATIONS)}")
    if path.suffix.lower() == _VIDEO and importlib.util.find_spec("av") is None:
        raise GlideError(f"{path} needs PyAV: {install('video')}, or choose .webp")
    return kind


def _save_video(path: Path, frames: Sequence[Pixels]) -> None:
    """H.264 in 4:2:0, which every player supports; it needs even sides, so odd ones get a white line."""
    import av  # noqa: PLC0415

    height, width = (side + side % 2 for side in frames[0].shape[:2])
    with av.open(path, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(1000, _FRAME_MS), options={"crf": "15"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            even = np.pad(
                frame, [(0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)], constant_values=255
            )
            file.mux(stream.encode(av.VideoFrame.from_ndarray(even, "rgb24")))
        file.mux(stream.encode(None))


def grid(
    images: Sequence[Pixels],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 0,
) -> Pixels:
    """Lays out images of any size in rows on white.

    Args:
        images: at least one uint8 image.
        captions: text under each image, shortened to two lines.
        columns: images per row; by default the squarest layout.
        cell: width of a cell in pixels; smaller images are enlarged by whole factors (nearest neighbour).
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    cell = max(cell, *(image.shape[1] for image in images))
    height = max(image.shape[0] * (cell // image.shape[1]) for image in images)
    rows = -(-len(images) // columns)
    step_x, step_y = cell + _PADDING, height + _PADDING + (_CAPTION_LINES * _LINE_HEIGHT + 2 if captions else 0)
    sheet = Image.new("RGB", (columns * step_x + _PADDING, rows * step_y + _PADDING), "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        left, top = _PADDING + i % columns * step_x, _PADDING + i // columns * step_y
        factor = cell // image.shape[1]
        sheet.paste(
            Image.fromarray(image).resize((image.shape[1] * factor, image.shape[0] * factor), 0),
            (left, top),
        )
        for number, line in enumerate(_wrap(draw, captions[i], cell) if captions else ()):
            draw.text((left, top + height + number * _LINE_HEIGHT), line, fill="black", font=_font())
    return np.asarray(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=10)


def _wrap(draw: ImageDraw.ImageDraw, text: str, width: int) -> list[str]:
    if "\n" in text:
        return [_shorten(draw, line, width) for line in text.split("\n")[:_CAPTION_LINES]]
    lines = [""]
    for word in text[: _CAPTION_LINES * width].split():  # a character is wider than a pixel
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

    def length(end: int) -> int:
        return math.ceil(draw.textlength(text[:end] + "…", font=_font()))

    fits = bisect_right(range(len(text)), width, key=length)
    return text[: max(fits - 1, 0)] + "…"
