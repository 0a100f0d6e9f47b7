"""Which parameters are trained and which stay as they are, by one table of patterns."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from glide_jax.errors import GlideError
from glide_jax.models import Params

Trainable = Literal["all", "unet", "text"]

# Of the patterns that match a parameter's path the first decides whether it is trained; * also matches slashes.
RULES: dict[Trainable, tuple[tuple[str, bool], ...]] = {
    "all": (("*", True),),
    "unet": (("text/*", False), ("*", True)),
    # The UNet's own projections of the text to keys and values learn with it (torch: encoder_kv).
    "text": (("text/*", True), ("unet/*/attn/text_kv/*", True), ("*", False)),
}


def is_trained(path: str, trainable: Trainable) -> bool:
    """Whether the parameter of that name ("unet/down/0/res/in_conv/kernel") is trained."""
    return next(trained for pattern, trained in RULES[trainable] if fnmatchcase(path, pattern))


def split(params: Params, trainable: Trainable) -> tuple[Params, Params]:
    """The trained and the frozen part of a nested dict of parameters, each with only its own leaves.

    Raises:
        GlideError: nothing would be trained.
    """
    trained: Params = {}
    frozen: Params = {}
    for path, leaf in _leaves(params):
        _insert(trained if is_trained("/".join(path), trainable) else frozen, path, leaf)
    if not trained:
        raise GlideError(f"train.trainable={trainable} leaves nothing to train: this model has no text transformer")
    return trained, frozen


def merge(*parts: Params) -> Params:
    """The nested dict that was split into `parts`."""
    whole: Params = {}
    for part in parts:
        for path, leaf in _leaves(part):
            _insert(whole, path, leaf)
    return whole


def _leaves(tree: Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _insert(tree: Params, path: tuple[str, ...], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
