"""Image files of strangers, opened with care; as a program, one of them for the process that asks.

A file of 100 KB can keep a decoder busy for minutes, with pixels for a gigabyte: a process of its own can be ended, and
gives its memory back.
"""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from glide_jax.errors import GlideError, run_cli
from glide_jax.images import UnreadableImage, decode, eight_bits

SECONDS = 20.0
# Models take 256 pixels; what has at least twice as many as this on its shorter side is reduced by a whole factor.
SIDE = 1024


def open_picture(source: str | Path | bytes, most_pixels: int) -> Image.Image:
    """A picture file as RGBA, upright, its shorter side below 2 `SIDE`.

    Raises:
        GlideError: no image, a damaged one, or one of too many pixels, which is not decoded then.
    """
    try:
        image = eight_bits(decode(source, most_pixels, SIDE).image)
    except UnreadableImage as error:  # where the file lies is not for everyone to know
        raise GlideError(f"cannot read this image: {error.why}") from error
    factor = min(image.size) // SIDE
    return (image.reduce(factor) if factor > 1 else image).convert("RGBA")


def open_apart(source: Path | bytes, most_pixels: int, seconds: float = SECONDS) -> Image.Image:
    """`open_picture` in a process of its own.

    Raises:
        GlideError: as `open_picture`, or it takes longer than `seconds`.
    """
    name, content = ("", source) if isinstance(source, bytes) else (str(source.resolve()), b"")
    command = [sys.executable, "-m", "glide_jax.ui.opening", name, str(most_pixels)]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, timeout=seconds, cwd=Path(__file__).parents[2], check=False
        )
    except subprocess.TimeoutExpired as error:
        raise GlideError(f"cannot read this image: it takes longer than {seconds:g} s") from error
    if done.returncode == 0:
        return Image.fromarray(np.load(io.BytesIO(done.stdout)))
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == 2 and said.startswith("error: "):
        raise GlideError(said.removeprefix("error: "))
    print(f"{said}\nopening an image ended with {done.returncode}", file=sys.stderr, flush=True)
    raise GlideError("cannot read this image: it is damaged")


def main() -> None:
    """Writes a file's picture, or that of the standard input, to the standard output as an array.

    Raises:
        GlideError: as `open_picture`.
    """
    name, most_pixels = sys.argv[1:]
    picture = open_picture(Path(name) if name else sys.stdin.buffer.read(), int(most_pixels))
    np.save(sys.stdout.buffer, np.asarray(picture))


if __name__ == "__main__":
    run_cli(main)
