"""From shard patterns to shards: files, and sources that can only be streamed."""

from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from braceexpand import braceexpand

from glide_jax.errors import GlideError
from glide_jax.files import lines, read_text

_LIST_SUFFIXES = (".txt", ".list", ".lst")


def find_shards(patterns: str | Sequence[str]) -> list[Path]:
    """The tar files for patterns, in the order given; those of a glob or folder are sorted by name.

    A pattern is a tar file, a folder of `*.tar`, a glob (including `**`), a brace list, or a text file (`.txt`,
    `.list`, `.lst`) with a pattern per line, relative to its own folder. Several are joined by `::`.

    Raises:
        GlideError: there is no pattern, a named shard does not exist, or a pattern matches nothing.
    """
    return [Path(name) for name in _find(patterns, remote=False)]


def find_streams(patterns: str | Sequence[str]) -> list[str]:
    """Local shards as by `find_shards`, and those not on disk: `pipe:COMMAND` and URLs, with brace lists.

    Raises:
        GlideError: as `find_shards`.
    """
    return _find(patterns, remote=True)


def _find(patterns: str | Sequence[str], remote: bool) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    parts = [part.strip() for pattern in patterns for part in pattern.split("::") if part.strip()]
    if not parts:
        raise GlideError("no data path given: add --config.data.path=FOLDER (or a '{00000..00099}.tar' pattern)")
    shards = [shard for part in parts for shard in _expand(part, Path(), remote)]
    missing = [shard for shard in shards if not _is_remote(shard) and not Path(shard).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more of {len(shards)} shards)" if len(missing) > 1 else ""
        raise GlideError(f"shard {missing[0]} does not exist{more}; correct the data path")
    return shards


def _is_remote(pattern: str) -> bool:
    return pattern.startswith("pipe:") or "://" in pattern


def _expand(pattern: str, folder: Path, remote: bool) -> Iterator[str]:
    if _is_remote(pattern) and not remote:
        raise GlideError(
            f"shards are read from disk, not from {pattern!r}: copy them, or set --config.data.source=stream"
        )
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise GlideError(f"unbalanced braces in shard pattern {pattern!r}") from error
    for name in names:
        yield from [name] if _is_remote(pattern) else _expand_path(folder / Path(name).expanduser(), remote)


def _expand_path(path: Path, remote: bool) -> Iterator[str]:
    if path.is_dir():
        yield from _matches(path / "*.tar", f" (for folders below it {path}/**/*.tar, for images data.source=folder)")
    elif path.is_file() and path.suffix in _LIST_SUFFIXES:
        for pattern in _patterns_in(path):
            yield from _expand(pattern, path.parent, remote)
    elif has_magic(str(path)) and not path.exists():
        yield from _matches(path)
    else:
        yield str(path)


def _matches(pattern: Path, otherwise: str = "") -> list[str]:
    found = [Path(name) for name in glob(str(pattern), recursive=True)]  # noqa: PTH207 - absolute too
    if not found:
        raise GlideError(f"no shard matches {pattern}; correct the data path{otherwise}")
    # Of `**` through a link that leads back up, the shortest path to each.
    unique = {path.resolve(): path for path in sorted(found, key=lambda path: len(path.parts), reverse=True)}
    return [str(path) for path in sorted(unique.values())]


def _patterns_in(path: Path) -> list[str]:
    patterns = [line for line in lines(read_text(path, "the shard list")) if not line.startswith("#")]
    if not patterns:
        raise GlideError(f"shard list {path} is empty")
    return patterns
