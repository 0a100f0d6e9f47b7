"""Loads adapters from checkpoints and adds them to the weights they belong to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

from glide_jax import hub
from glide_jax.checkpoint import load_weights, read_record, require_blocks, resolve
from glide_jax.errors import GlideError
from glide_jax.models import Glide, LoraConfig, ModelConfig, Params
from glide_jax.models.lora import GROUP, fingerprint, with_adapters
from glide_jax.options import build

# Blocks of a kind that a record may claim without adapters of theirs; the published models have 18.
_MOST_UNSEEN = 32


@dataclass(frozen=True)
class Adapters:
    """Trained adapters, and how strongly to apply them.

    Attributes:
        where: the checkpoint.
        config: rank, alpha, targets.
        params: as `with_adapters` takes them.
        base: the checkpoint they were trained on.
        base_sha256: the `fingerprint` of its weights.
        scale: factor of alpha / rank.
    """

    where: str
    config: LoraConfig
    params: Params
    base: str
    base_sha256: str
    scale: float = 1.0

    @classmethod
    def load(cls, text: str | Path) -> Self:
        """The adapters named "PATH" or "PATH:SCALE"; for a run, its EMA weights.

        Raises:
            GlideError: there is no checkpoint, it has no adapters, or the scale is not finite.
        """
        path, scale = split_scale(str(text))
        record = check_adapters(text)
        options: dict[str, Any] = dict(record["lora"])
        base, base_sha256 = str(options.pop("base", "")), str(options.pop("base_sha256", ""))
        try:
            config, model = build(LoraConfig, options, "lora."), build(ModelConfig, record["model"], "model.")
            if not config.rank:
                raise GlideError("lora.rank must be at least 1")
            require_blocks(path, model.blocks, unseen=_MOST_UNSEEN)
            abstract = Glide(model, lora=config).abstract_params()[GROUP]
        except GlideError as error:
            raise GlideError(f"{path} has adapters that cannot be used: {error}") from error
        # On the host, so that they can go to the devices of the weights.
        adapters = jax.device_get(load_weights(path, {GROUP: abstract})[GROUP])
        return cls(path, config, adapters, base, base_sha256, scale)


def check_adapters(text: str | Path) -> dict[str, Any]:
    """The record of the adapters named "PATH" or "PATH:SCALE"; errors as for `Adapters.load`."""
    path, _ = split_scale(str(text))
    record = read_record(path)
    if not isinstance(record.get("lora"), dict) or not isinstance(record.get("model"), dict):
        raise GlideError(f"{path} has no adapters: it is a whole model")
    return record


def split_scale(text: str) -> tuple[str, float]:
    """Path and scale of "PATH" or "PATH:SCALE"; raises `GlideError` if the scale is not finite."""
    path, colon, number = text.rpartition(":")
    try:
        scale = float(number) if colon and path and not Path(text).exists() else None
    except ValueError:
        scale = None
    if scale is None:
        return text, 1.0
    if not math.isfinite(scale):
        raise GlideError(f"--lora {text}: the scale must be a finite number")
    return path, scale


class TrainedOn(NamedTuple):
    """The weights that adapters were trained on: their path and `fingerprint`."""

    base: str
    sha256: str

    @property
    def is_there(self) -> bool:
        """Whether they still exist at that path; assumed for the Hub."""
        try:
            return bool(self.base) and (hub.is_name(self.base) or Path(self.base).exists())
        except OSError:  # not a valid file name
            return False


def trained_on(path: str | Path) -> TrainedOn | None:
    """What the adapters at `path` were trained on; None for a whole model.

    Raises:
        GlideError: no checkpoint there.
    """
    entry = read_record(path).get("lora")
    return TrainedOn(str(entry.get("base", "")), str(entry.get("base_sha256", ""))) if isinstance(entry, dict) else None


def check_not_repeated(path: str | Path, lora: Sequence[str | Path]) -> None:
    """Raises `GlideError` if adapters to add to the model at `path` are already part of it."""
    if trained_on(path) is None:
        return
    for each in lora:
        if resolve(split_scale(str(each))[0]) == resolve(path):
            raise GlideError(
                f"{each} is already part of {path}: leave it out; or, for another scale, give the weights it belongs to"
                f" and --lora {path}:SCALE"
            )


def base_of(path: str | Path) -> str | None:
    """The checkpoint that the adapters at `path` were trained on; None for a whole model.

    Raises:
        GlideError: there is no checkpoint, or its base is missing or unusable.
    """
    found = trained_on(path)
    if found is None:
        return None
    if not found.is_there:
        whose = f"{found.base}, which is not there" if found.base else "weights that it does not name"
        raise GlideError(f"{path} has adapters of {whose}: give --checkpoint BASE --lora {path}")
    if not hub.is_name(found.base) and trained_on(found.base) is not None:
        raise GlideError(f"{path} has adapters of {found.base}, which itself is adapters, not weights")
    return found.base


def merged(params: Params, adapters: Sequence[Adapters], sha256: str | None = None) -> Params:
    """Weights with adapters added, which then cost nothing at run time.

    The changes of several adapters add up: each one of DoRA's is computed on the given weights, regardless of the
        others.

    Args:
        params: the weights, which are left unchanged.
        adapters: the adapters to add.
        sha256: the weights' `fingerprint`, if already known.

    Raises:
        GlideError: adapters belong to other weights.
    """
    if not adapters:
        return params
    found = sha256 or fingerprint(params)
    for each in adapters:
        if each.base_sha256 != found:
            raise GlideError(
                f"{each.where} has adapters for weights of SHA-256 {each.base_sha256[:12]}"
                f" ({each.base or 'unnamed'}), not of these ({found[:12]})"
            )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params)
    add, add_share = (jax.jit(function, out_shardings=shardings) for function in (with_adapters, _with_share))
    whole = params
    for each in adapters:
        if each.config.dora:
            whole = add_share(whole, params, each.params, each.config.scale, each.scale)
        else:
            whole = add(whole, each.params, each.scale * each.config.scale)
    return whole


def _with_share(params: Params, base: Params, adapters: Params, scale: float, share: float) -> Params:
    """`params` plus `share` of the change that adapters make to `base`: DoRA's norms are not linear in the scale."""
    changed = with_adapters(base, adapters, scale)
    return jax.tree.map(lambda leaf, new, old: leaf + share * (new - old), params, changed, base)
