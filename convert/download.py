"""The published checkpoints by name, from the cache or from their public address."""

import contextlib
import fcntl
import os
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import IO

from glide_jax.cache import cache_folder
from glide_jax.errors import GlideError
from glide_jax.progress import Bar, bar

ADDRESS = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021"
PUBLISHED = {
    "base": "base.pt",
    "upsample": "upsample.pt",
    "base-inpaint": "base_inpaint.pt",
    "upsample-inpaint": "upsample_inpaint.pt",
    "clip/text-enc": "clip_text_enc.pt",
    "clip/image-enc": "clip_image_enc.pt",
}
_CHUNK = 1 << 20
_TIMEOUT = 30.0


def published(name: str, address: str = ADDRESS) -> Path:
    """The local file of a published checkpoint; the network is asked only where it is not in the cache.

    Args:
        name: a key of `PUBLISHED`.
        address: the folder that is its home.

    Raises:
        GlideError: as `download`.
    """
    path = cache_folder() / PUBLISHED[name]
    if not path.exists():
        download(f"{address}/{PUBLISHED[name]}", path)
    return path


def download(url: str, path: Path) -> None:
    """Fetches a file whole or not at all; a download cut short goes on where it stopped, now or later.

    The bytes gather under a temporary name that carries the server's version of the file (its ETag), so that
    two versions never mix. Of several processes that want the same file one fetches it and the others wait.

    Raises:
        GlideError: the server cannot be reached, has no such file, does not tell its size, or stops short.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        size, version = _describe(url)
        part = path.with_name(f"{path.name}.{zlib.crc32(version.encode()):08x}.part")
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if path.exists():  # another process was faster
                part.unlink(missing_ok=True)
                return
            with bar(f"downloading {path.name} (MiB)", size >> 20, file.tell() >> 20) as progress:
                _complete(url, file, size, progress)
            part.replace(path)
    except urllib.error.HTTPError as error:
        raise GlideError(f"{url} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise GlideError(
            f"cannot download {url} ({reason}): run again when online, or put the file at {path}"
        ) from error


def _describe(url: str) -> tuple[int, str]:
    """Size and version of a remote file."""
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT) as response:
        size = response.headers.get("Content-Length")
        if size is None:
            raise GlideError(f"{url} does not tell its size, so a download could not be checked")
        return int(size), response.headers.get("ETag", size)


def _complete(url: str, file: IO[bytes], size: int, progress: Bar) -> None:
    """Asks for what is missing as long as each answer brings more of it."""
    while (done := file.tell()) < size:
        _append(url, file, progress)
        file.flush()
        if file.tell() <= done:
            raise GlideError(f"{url} stopped at {done} of {size} bytes: run again to go on from there")
    if file.tell() != size:
        file.truncate(0)
        raise GlideError(f"{url} sent more than its {size} bytes: run again to start over")


def _append(url: str, file: IO[bytes], progress: Bar) -> None:
    headers = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        if not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):  # the whole file
            file.truncate(0)
            file.seek(0)
        with contextlib.suppress(ConnectionError, TimeoutError, IncompleteRead):  # asked for again, if it brought any
            while chunk := response.read(_CHUNK):
                before = file.tell() >> 20
                file.write(chunk)
                progress.update((file.tell() >> 20) - before)
