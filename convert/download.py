"""The published checkpoints by name, from the cache or from their public address."""

import contextlib
import fcntl
import os
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import IO, Any, NamedTuple

from convert.file_kind import file_kind
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


class _Remote(NamedTuple):
    """A file on a server, in the version that the first answer told."""

    url: str
    size: int
    version: str


def download(url: str, path: Path) -> None:
    """Fetches a checkpoint whole or not at all; a download cut short goes on where it stopped, now or later.

    The bytes gather under a temporary name that carries the server's version of the file (its ETag), so that
    two versions never mix. Of several processes that want the same file one fetches it and the others wait.

    Raises:
        GlideError: the server cannot be reached, has no such file, does not tell its size, stops short, or sends
            something else: nothing, a web page, another version than the one begun with.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remote = _describe(url)
        part = path.with_name(f"{path.name}.{zlib.crc32(remote.version.encode()):08x}.part")
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if path.exists():  # another process was faster
                part.unlink(missing_ok=True)
                return
            with bar(f"downloading {path.name} (MiB)", remote.size >> 20, file.tell() >> 20) as progress:
                _complete(remote, file, progress)
            _check_kind(url, part)
            part.replace(path)
    except urllib.error.HTTPError as error:
        raise GlideError(f"{url} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise GlideError(
            f"cannot download {url} ({reason}): run again when online, or put the file at {path}"
        ) from error


def _describe(url: str) -> _Remote:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT) as response:
        _refuse_pages(url, response.headers)
        told = response.headers.get("Content-Length")
        if told is None:
            raise GlideError(f"{url} does not tell its size, so a download could not be checked")
        size = _number(told)
        if size is None:
            raise GlideError(f"{url} tells {told[:40]!r} as its size, which is no number")
        if size == 0:
            raise GlideError(f"{url} is empty")
        return _Remote(url, size, _version(response.headers) or str(size))


def _refuse_pages(url: str, headers: Any) -> None:
    if headers.get_content_type() == "text/html":
        raise GlideError(f"{url} answered with a web page, not a file: does this network ask for a login?")


def _version(headers: Any) -> str:
    """What changes with a file; "" where the server tells nothing of the kind."""
    return " ".join((headers.get("ETag") or headers.get("Last-Modified") or "").split())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _complete(remote: _Remote, file: IO[bytes], progress: Bar) -> None:
    """Asks for what is missing as long as each answer brings more of it."""
    while (done := file.tell()) < remote.size:
        _append(remote, file, progress)
        file.flush()
        if file.tell() <= done:
            raise GlideError(f"{remote.url} stopped at {done} of {remote.size} bytes: run again to go on from there")
    if file.tell() != remote.size:
        file.truncate(0)
        raise GlideError(f"{remote.url} sent more than its {remote.size} bytes: run again to start over")


def _append(remote: _Remote, file: IO[bytes], progress: Bar) -> None:
    headers = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
    if headers and remote.version.startswith('"'):  # only a strong ETag may be asked for
        headers["If-Range"] = remote.version
    with urllib.request.urlopen(urllib.request.Request(remote.url, headers=headers), timeout=_TIMEOUT) as response:
        _refuse_pages(remote.url, response.headers)
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        goes_on = span.startswith(f"bytes {file.tell()}-")
        told = _number(total if goes_on else response.headers.get("Content-Length", ""))
        if told not in (None, remote.size) or _version(response.headers) not in ("", remote.version):
            file.truncate(0)
            raise GlideError(f"{remote.url} changed during the download: run again to start over")
        if not goes_on:  # the whole file
            file.truncate(0)
            file.seek(0)
        with contextlib.suppress(ConnectionError, TimeoutError, IncompleteRead):  # asked for again, if it brought any
            while chunk := response.read(_CHUNK):
                before = file.tell() >> 20
                file.write(chunk)
                progress.update((file.tell() >> 20) - before)


def _check_kind(url: str, part: Path) -> None:
    try:
        file_kind(part)
    except GlideError as error:
        part.unlink()
        raise GlideError(str(error).replace(str(part), url, 1)) from error
