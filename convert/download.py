"""Files to convert: local ones, and published checkpoints by name, which are downloaded into the cache."""

import contextlib
import fcntl
import hashlib
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import IO, Any, NamedTuple

from convert.file_check import file_kind
from glide_jax.errors import GlideError
from glide_jax.files import cache_folder, read_text, written
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


class Source(NamedTuple):
    """A file of tensors: its published name or file name, its path, and the sha256 of its bytes in hexadecimal."""

    name: str
    path: Path
    sha256: str


def open_source(source: str) -> Source:
    """The file at a path, with any suffix, or of a published name; downloaded if it is not in the cache.

    The sha256 of a published file is recorded next to it on first use, and a line says so, as no official ones are
    published.

    Raises:
        GlideError: there is no such file, it cannot be downloaded or read, or a published one has changed.
    """
    if source in PUBLISHED:
        path = cache_folder() / PUBLISHED[source]
        if not path.exists():
            download(f"{ADDRESS}/{path.name}", path)
    else:
        path = _local(source)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GlideError(f"cannot read {source}: {error.strerror or error}") from error
    if source in PUBLISHED:
        _compare_with_first_use(path, sha256)
    return Source(source if source in PUBLISHED else path.name, path, sha256)


def _local(source: str) -> Path:
    with contextlib.suppress(OSError, RuntimeError):  # a name that is too long, or an unknown user's home
        path = Path(source).expanduser()
        if path.is_dir():
            raise GlideError(f"{source} is a folder: give a PyTorch or safetensors file")
        if path.is_file():
            return path
    raise GlideError(f"{source} is neither a file nor a published name ({', '.join(PUBLISHED)})")


def _compare_with_first_use(path: Path, sha256: str) -> None:
    note = path.with_name(f"{path.name}.sha256")
    if not note.exists():
        line = f"{sha256}  {path.name}"  # in sha256sum's format
        told = f"recorded in {note.name}: {line}"
        try:
            with written(note) as partial:
                partial.write_text(f"{line}\n")
        except GlideError as error:  # a shared cache may be read-only
            told = f"its sha256 is not recorded: {error}"
        print(f"nothing vouches for {path}, used for the first time; {told}")
        return
    known = read_text(note, "the sha256 in").split()[:1]
    if not known or not re.fullmatch(r"[0-9a-fA-F]{64}", known[0]):
        raise GlideError(f"{note} holds no sha256: delete it, and that of {path.name} is recorded again")
    if known[0].lower() != sha256:
        raise GlideError(f"{path} has changed since it was first used ({note.name} differs): delete both and run again")


def download(url: str, path: Path) -> None:
    """Downloads a checkpoint atomically; an interrupted download is resumed where it stopped, now or later.

    The data is collected under a temporary name that includes the server's version of the file (its ETag), so that two
    versions never mix. If several processes want the same file, one downloads it and the others wait.

    Raises:
        GlideError: the server cannot be reached, has no such file, does not tell its size, stops early, or sends
            something else: nothing, a web page, or another version than before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size, version = _describe(url)
        part = path.with_name(f"{path.name}.{zlib.crc32(version.encode()):08x}.part")
        with part.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if path.exists():  # another process was faster
                part.unlink(missing_ok=True)
                return
            with bar(f"downloading {path.name} (MiB)", size >> 20, file.tell() >> 20) as progress:
                while (done := file.tell()) < size:
                    _append(url, size, version, file, progress)
                    file.flush()
                    if file.tell() <= done:
                        raise GlideError(f"{url} stopped at {done} of {size} bytes: run again to resume")
            if file.tell() != size:
                file.truncate(0)
                raise GlideError(f"{url} sent more than its {size} bytes: run again to start over")
            _check_kind(url, part)
            part.replace(path)
    except urllib.error.HTTPError as error:
        raise GlideError(f"{url} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise GlideError(
            f"cannot download {url} ({reason}): run again when online, or put the file at {path}"
        ) from error


def _describe(url: str) -> tuple[int, str]:
    """The size and version of a file on a server."""
    with _answer(urllib.request.Request(url, method="HEAD")) as response:
        length = response.headers.get("Content-Length")
        if length is None:
            raise GlideError(f"{url} does not tell its size, so a download could not be checked")
        size = _number(length)
        if size is None:
            raise GlideError(f"{url} tells {length[:40]!r} as its size, which is not a number")
        if size == 0:
            raise GlideError(f"{url} is empty")
        return size, _version(response.headers) or str(size)


def _append(url: str, size: int, version: str, file: IO[bytes], progress: Bar) -> None:
    """Requests the missing part, and writes as much of it as arrives."""
    headers = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
    if headers and version.startswith('"'):  # only strong ETags may be requested
        headers["If-Range"] = version
    with _answer(urllib.request.Request(url, headers=headers)) as response:
        span, _, total = response.headers.get("Content-Range", "").partition("/")
        resumed = span.startswith(f"bytes {file.tell()}-")
        whole = _number(total if resumed else response.headers.get("Content-Length", ""))
        if whole not in (None, size) or _version(response.headers) not in ("", version):
            file.truncate(0)
            raise GlideError(f"{url} changed during the download: run again to start over")
        if not resumed:
            file.truncate(0)
            file.seek(0)
        with contextlib.suppress(ConnectionError, TimeoutError, IncompleteRead):  # requested again, if any arrived
            while chunk := response.read(_CHUNK):
                before = file.tell() >> 20
                file.write(chunk)
                progress.update((file.tell() >> 20) - before)


@contextlib.contextmanager
def _answer(request: urllib.request.Request) -> Iterator[Any]:
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            where = request.full_url
            raise GlideError(f"{where} answered with a web page, not a file: does this network ask for a login?")
        yield response


def _version(headers: Any) -> str:
    """A text that changes with the file; "" if the server provides none."""
    return " ".join((headers.get("ETag") or headers.get("Last-Modified") or "").split())


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _check_kind(url: str, part: Path) -> None:
    try:
        file_kind(part)
    except GlideError as error:
        part.unlink()
        raise GlideError(str(error).replace(str(part), url, 1)) from error
