"""Files: reading text (UTF-8 with or without a byte-order mark, line ends of any system), and atomic writes."""

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
    """The content of a text file; raises a `GlideError` that begins with "cannot read WHAT PATH"."""
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
    r"""The text with lone surrogates, which stand for bytes that Python could not decode, written out as `\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary name next to `path` to write to: renamed to `path` if the block succeeds, otherwise deleted.

    Raises:
        GlideError: the file cannot be written.
    """
    # Processes on other machines may be writing the same file in a shared folder.
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
    """Raises `GlideError` if a folder, which need not exist yet, could not be written to; creates nothing."""
    try:
        nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise GlideError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def require_new(path: Path) -> None:
    """Raises `GlideError` if `path` exists, so that nothing gets replaced."""
    if path.exists():
        raise GlideError(f"{path} exists already; choose another name or remove it")


def cache_folder() -> Path:
    """GLIDE_JAX_CACHE, or ~/.cache/glide_jax."""
    return Path(os.environ.get("GLIDE_JAX_CACHE") or "~/.cache/glide_jax").expanduser()


def keep_compiled_programs() -> None:
    """Has JAX keep compiled programs on disk, for a quick second start; JAX_COMPILATION_CACHE_DIR takes precedence."""
    import jax  # noqa: PLC0415 (takes a second, and command lines are read before)

    # The results of XLA's autotuning on a GPU, and the kernels it compiled, are kept too.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "all")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        # By default JAX keeps only what took over a second to compile, which few of the small programs do.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
