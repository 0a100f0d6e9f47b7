"""Files: text that people write (UTF-8 with or without a byte-order mark, any system's line ends), whole writes."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from glide_jax.errors import GlideError

# str.splitlines also splits at U+2028, U+0085, vertical tabs and form feeds, which occur inside captions.
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_text(path: Path, what: str) -> str:
    """The content of a text file; raises `GlideError` that begins with "cannot read WHAT PATH"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GlideError(f"cannot read {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GlideError(f"cannot read {what} {path}: it is not UTF-8 text") from error


def lines(text: str) -> list[str]:
    """The lines of a text, stripped, without empty ones."""
    return [line for part in _LINE_END.split(text) if (line := part.strip())]


def valid_unicode(text: str) -> str:
    r"""The text with `\udce9` for half a surrogate pair, as which Python hands on what it could not decode."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` if the block ends well, else goes.

    Raises:
        GlideError: the file cannot be written.
    """
    # Processes of other machines may write the same file of a shared folder at the same time.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise GlideError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_folder(folder: Path) -> None:
    """Raises `GlideError` where nothing can be written to a folder that may have yet to be made; makes nothing."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise GlideError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def require_new(path: Path) -> None:
    """Raises `GlideError` where there is something at `path`, which nothing may replace."""
    if path.exists():
        raise GlideError(f"{path} exists already; choose another name or remove it")


def cache_folder() -> Path:
    """GLIDE_JAX_CACHE, or ~/.cache/glide_jax."""
    return Path(os.environ.get("GLIDE_JAX_CACHE") or "~/.cache/glide_jax").expanduser()


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that a second start is quick; JAX_COMPILATION_CACHE_DIR overrules."""
    import jax  # noqa: PLC0415 (takes a second, and command lines are read before)

    # What XLA chose on a GPU among its kernels' variants is kept too, and those kernels.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        # By default only what took a second: most of the small programs would be compiled again.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
