"""Where a run starts from: its newest intact checkpoint, other weights (`init_from`) or scratch; and its data."""

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from glide_jax import hub
from glide_jax.checkpoint import CheckpointStore, lasting, load_weights, newest_intact, read_record, resolve
from glide_jax.data import DataStream, ValidationData, fixed_examples, open_data, open_validation
from glide_jax.data.buckets import Buckets
from glide_jax.data.examples import Batch
from glide_jax.data.filters import Filters
from glide_jax.data.source import listed
from glide_jax.errors import GlideError
from glide_jax.models import Glide, LoraConfig, ModelConfig, Params
from glide_jax.models.lora import GROUP, fingerprint
from glide_jax.options import nested, to_json
from glide_jax.parallel import together
from glide_jax.train.config import RunConfig, TrainConfig
from glide_jax.train.processes import MAY_DIFFER
from glide_jax.train.program import Program
from glide_jax.train.state import State

# Options outside the model's that decide which arrays a training state holds, or what they have learnt.
_STATE_OPTIONS = ("trainable", "optimizer.kind", "optimizer.mu_dtype", "lora.rank", "distill.num_steps")
_OF_ADAPTERS = ("lora.alpha", "lora.targets", "lora.dora")
# Values of options that older and converted checkpoints do not record.
_UNRECORDED = {"norm_groups": 32, "prediction_type": "epsilon", "optimizer.kind": "adamw", "distill.num_steps": 0}


@dataclass(frozen=True)
class StartPoint:
    """What is known before anything is compiled.

    Attributes:
        record: of the checkpoint a run resumes from; from `init_from` only where its weights came from.
        step: number of the checkpoint to resume from; None for a new run.
        damaged: numbers of newer checkpoints whose files have changed since they were written.
    """

    record: Mapping[str, Any]
    step: int | None = None
    damaged: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: RunConfig) -> "StartPoint":
        """Looks in the run folder first, skipping damaged checkpoints with a warning, then at `init_from`.

        Raises:
            GlideError: the checkpoint is of another model or holds other arrays, or all are damaged.
        """
        run_dir = Path(config.run_dir).expanduser()
        step, damaged = _newest_intact(run_dir / "checkpoints")
        if step is not None:
            record = read_record(run_dir, step)
            _check_resume(config, record, f"checkpoint {step} of {run_dir}", str(run_dir))
            if config.train.lora.rank and not config.init_from:
                base = record.get("lora", {}).get("base", "its base")
                raise GlideError(f"{run_dir} has only adapters: give the weights too, --config.init_from={base}")
            if config.train.lora.rank:
                require_fit(config.model, read_record(config.init_from).get("model", {}), config.init_from)
            return cls(record, step, damaged)
        _check_init_options(config)
        if not config.init_from:
            return cls({})
        record = read_record(config.init_from)
        if GROUP in record:
            raise GlideError(
                f"--config.init_from={config.init_from} has adapters, not whole weights: merge them first with"
                " python -m convert merge"
            )
        require_fit(config.model, record.get("model", {}), config.init_from)
        if config.train.trained in ("lora", "text") and record["model"].get("inpaint") != config.model.inpaint:
            raise GlideError(
                f"train.{_choice(config)} cannot teach inpainting: the layer that would see the mask stays as it is;"
                " train the whole model"
            )
        # A model of the noise may be retrained to predict v; the reverse is more likely a forgotten option. Not by
        # adapters, which are used with their base model and its record.
        learns_v = config.diffusion.prediction_type == "v_prediction" and not config.train.lora.rank
        ignore = ("prediction_type",) if learns_v else ()
        require_same("diffusion", asdict(config.diffusion), record.get("diffusion", {}), config.init_from, ignore)
        return cls(_source(record))

    @property
    def position(self) -> int:
        """The data position to start at."""
        return int(self.record.get("position", 0))

    def what_is_loaded(self, config: RunConfig) -> str:
        """What `state` does, for a progress display."""
        if self.step is not None:
            return f"loading checkpoint {self.step}"
        return f"loading the weights of {config.init_from}" if config.init_from else "initializing the weights"

    @property
    def minutes(self) -> float:
        """Minutes the run has taken so far."""
        return float(self.record.get("minutes", 0.0))

    @property
    def source(self) -> dict[str, Any]:
        """What is known of the PyTorch file that the weights came from."""
        return _source(self.record)

    def state(self, program: Program, store: CheckpointStore) -> State:
        """The starting state, on the devices; newer checkpoints that are damaged are set aside."""
        config = program.config
        base = None
        if config.init_from and (self.step is None or config.train.lora.rank):
            base = load_starting_weights(config.init_from, config.model, program.abstract_base)
        if self.step is not None:
            store.set_aside(self.damaged)
            state = store.restore(program.abstract_state, self.step, checked=True)[0]
            return program.packing.pack_state(state, base)
        return program.fresh_state() if base is None else program.state_from(base)

    def changed(self, config: RunConfig) -> list[str]:
        """The options of a resumed run that its checkpoint was trained with other values of, each as "a: 1 -> 2"."""
        before, now = (
            flatten_dict(to_json(options), sep=".") for options in (self.record.get("config", {}), nested(config))
        )
        return [
            f"{name}: {before[name]} -> {value}"
            for name, value in now.items()
            if self.step is not None and name in before.keys() - MAY_DIFFER and before[name] != value
        ]


def _source(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("source",) if name in record}


def _newest_intact(directory: Path) -> tuple[int | None, tuple[int, ...]]:
    """The step to resume from, decided by the first process, and, on that process, the damaged ones after it."""
    chosen, damaged = -1, {}
    with together("checkpoints checked"):
        if jax.process_index() == 0:
            choice = newest_intact(directory)
            chosen, damaged = -1 if choice.step is None else choice.step, choice.damaged
    if jax.process_count() > 1:
        chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    for reason in damaged.values():
        print(f"{reason}; resuming from step {chosen}", file=sys.stderr)
    return None if chosen < 0 else chosen, tuple(damaged)


def _check_resume(config: RunConfig, record: Mapping[str, Any], checkpoint: str, where: str) -> None:
    require_same("model", asdict(config.model), record.get("model", {}), where)
    require_same("diffusion", asdict(config.diffusion), record.get("diffusion", {}), where)
    if "train" in record.get("config", {}):
        theirs, ours = (_flat(train) for train in (record["config"]["train"], asdict(config.train)))
        adapters = _OF_ADAPTERS if theirs["lora.rank"] and ours["lora.rank"] else ()
        require_same("train", {name: ours[name] for name in (*_STATE_OPTIONS, *adapters)}, theirs, where)
    if type(record.get("position")) is not int:
        raise GlideError(f"{checkpoint} is not from a training run: its record has no data position")


def lora_entry(program: Program, state: State, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry in an adapter checkpoint's record about the adapters and the weights they belong to.

    Args:
        program: the run's.
        state: its packed state.
        record: of the checkpoint the run resumes from, if any.

    Raises:
        GlideError: the adapters there belong to other weights.
    """
    config = program.config
    if not config.train.lora.rank:
        return {}
    params = program.packing.unpack(state["params"])
    base = jax.tree.map(_whole, {name: group for name, group in params.items() if name != GROUP})
    where = config.init_from
    entry = asdict(config.train.lora) | {
        "base": where if hub.is_name(where) else str(lasting(resolve(where))),
        "base_sha256": fingerprint(base),
    }
    before = record.get("lora", {}).get("base_sha256", entry["base_sha256"])
    if before != entry["base_sha256"]:
        raise GlideError(
            f"the adapters in {config.run_dir} belong to weights of SHA-256 {before[:12]}, not to those of"
            f" --config.init_from={config.init_from} ({entry['base_sha256'][:12]}): give those of"
            f" {record['lora']['base']}"
        )
    return {"lora": entry}


def _whole(x: Array) -> np.ndarray:
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return np.asarray(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)


def _flat(train: Mapping[str, Any]) -> dict[str, Any]:
    train = {**train, "lora": asdict(LoraConfig()) | train.get("lora", {})}  # the record may be older than an option
    groups = ("optimizer", "distill", "lora")
    return {**train, **{f"{group}.{name}": value for group in groups for name, value in train.get(group, {}).items()}}


def _check_init_options(config: RunConfig) -> None:
    train = config.train
    if train.trained != "all" and not config.init_from:
        raise GlideError(
            f"train.{_choice(config)} freezes the rest, but there are no weights to freeze: give --config.init_from=DIR"
        )
    if train.trainable == "all" and train.reinitialize and config.init_from:
        raise GlideError("train.reinitialize leaves nothing of init_from: leave out one of the two")


def _choice(config: RunConfig) -> str:
    """The option that decides which parameters are trained."""
    lora = config.train.lora
    return f"lora.rank={lora.rank}" if lora.rank else f"trainable={config.train.trainable}"


def require_same(
    name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str, ignore: Collection[str] = ()
) -> None:
    """Compares options with those in a checkpoint's record; dropout may differ.

    Raises:
        GlideError: they differ; every difference is listed.
    """
    ours, theirs = (
        {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()} for options in (ours, theirs)
    )
    theirs = _UNRECORDED | theirs
    kept = {k: v for k, v in ours.items() if k not in ("dropout", *ignore)}
    different = [k for k, v in kept.items() if theirs.get(k) != v]
    if different:
        listed = ", ".join(f"--config.{name}.{k} is {theirs.get(k)} there, {kept[k]} here" for k in different)
        kind = "is of a run with other options" if name == "train" else "is of another model"
        raise GlideError(f"{where} {kind} ({listed}); give the same or choose another folder")


def require_fit(config: ModelConfig, theirs: Mapping[str, Any], where: str) -> None:
    """Checks that a model of `config` can start from another's weights, given the model entry of their record.

    It may add inpainting, and it may have another image size: a UNet's weights fit any, as long as attention and an
    upsampler's input stay at the same fractions of it.

    Raises:
        GlideError: they differ in more than that; every difference is listed.
    """
    if theirs.get("super_res", config.super_res) != config.super_res:
        kinds = ("an upsampler", "a base model") if config.super_res else ("a base model", "an upsampler")
        raise GlideError(f"this run trains {kinds[0]}, and {where} is {kinds[1]}: give --config.init_from another")
    ignore = ["inpaint"] if config.inpaint else []
    size = theirs.get("image_size", config.image_size)
    if size != config.image_size:
        sizes = ("image_size", "low_res_size", "attention_resolutions")
        require_same("model", asdict(config), theirs, where, [*ignore, *sizes])
        scale = config.image_size / size
        attention = tuple(round(side * scale) for side in theirs.get("attention_resolutions", ()))
        wanted: dict[str, Any] = {"attention_resolutions": attention}
        if config.super_res:
            wanted["low_res_size"] = round(theirs.get("low_res_size", 0) * scale)
        wrong = [f"{k} {v}, not {getattr(config, k)}" for k, v in wanted.items() if v != getattr(config, k)]
        if wrong:
            raise GlideError(f"{where} has image_size {size}; for {config.image_size} it needs {', '.join(wrong)}")
        return
    require_same("model", asdict(config), theirs, where, ignore)


def load_starting_weights(path: str, config: ModelConfig, abstract: Params) -> Params:
    """The weights at `path` for a model of `config`, which may differ as far as `require_fit` allows.

    Args:
        path: any checkpoint.
        config: the model to be trained.
        abstract: its parameters, with the shardings wanted.
    """
    theirs = read_record(path).get("model", {})
    require_fit(config, theirs, path)
    if not config.inpaint or theirs.get("inpaint"):
        return load_weights(path, abstract)
    plain = Glide(replace(config, inpaint=False)).abstract_params()
    wide = abstract["unet"]["input_conv"]["kernel"]
    shapes = jax.tree.map(lambda leaf: leaf, abstract)
    shapes["unet"]["input_conv"]["kernel"] = plain["unet"]["input_conv"]["kernel"]
    params = load_weights(path, shapes)
    kernel = params["unet"]["input_conv"]["kernel"]
    params["unet"]["input_conv"]["kernel"] = jax.device_put(widen_for_inpainting(kernel), wide.sharding)
    return params


def widen_for_inpainting(kernel: Float[Array, "3 3 _in out"]) -> Float[Array, "3 3 _more out"]:
    """An input convolution that takes [x, image * mask, mask, low_res] and ignores the two in the middle.

    Args:
        kernel: of the plain model, over x (3 channels) or x and low_res (6).
    """
    new = jnp.zeros((*kernel.shape[:2], 4, kernel.shape[3]), kernel.dtype)
    return jnp.concatenate([kernel[:, :, :3], new, kernel[:, :, 3:]], axis=2)


def warn_of_warm_up(config: TrainConfig) -> None:
    """Prints a warning if the learning rate's warm-up is as long as the run."""
    steps = config.optimizer.warmup_steps
    if config.max_steps <= steps and not config.max_minutes:
        print(
            f"warning: the learning rate does not reach its peak within train.max_steps={config.max_steps}, because"
            f" train.optimizer.warmup_steps is {steps}",
            file=sys.stderr,
        )


def training_data(config: RunConfig, start: StartPoint) -> DataStream:
    """This process's share of endless batches, from where a run starts; prints what is left out,
    and how many images each bucket has, if any.

    Raises:
        GlideError: as for `open_data`.
    """
    train = config.train
    data = open_data(
        config.data, **_sizes(config.model), batch_size=train.batch_size, seed=train.seed, position=start.position,
        **_processes(),
    )  # fmt: skip
    if jax.process_index() == 0:
        for line in (*_about_left_out(data, config), *_about_buckets(data.buckets, train.batch_size, start)):
            print(line, file=sys.stderr)
    return data


def _about_left_out(data: DataStream, config: RunConfig) -> Iterator[str]:
    """A line on the samples that filters and damage leave out, if any; for most of them, what would change it."""
    if data.left_out and data.examples_per_epoch:
        most = data.left_out.total() > data.examples_per_epoch
        advice = Filters(config.data.filters).advice(data.left_out) if most else ""
        warning = "warning: only " if most else ""
        yield f"{warning}{data.examples_per_epoch:,} samples to train on; left out: {listed(data.left_out)}{advice}"


def _about_buckets(buckets: Buckets, batch_size: int, start: StartPoint) -> Iterator[str]:
    if buckets.fingerprint:
        for size, count in buckets.counts.items():
            few = ", fewer than a batch" if 0 < count < batch_size else ""
            yield f"data.buckets {size}: {count} images{few}"
    if buckets.left_out:
        yield f"images in no bucket: {listed(buckets.left_out)}"
    if start.step is not None and start.record.get("buckets", {}) != buckets.fingerprint:
        yield "warning: data.buckets or the images in them are others than before: from here on their order is another"


def validation_data(config: RunConfig) -> ValidationData | None:
    """The held-out batches, if configured; raises `GlideError` as `open_validation` does."""
    if not config.data.validation_path or not config.train.validate_every:
        return None
    # As many at a time as in training, where a whole batch may be too much.
    size = config.train.batch_size // config.train.gradient_accumulation_steps
    return open_validation(config.data, **_sizes(config.model), batch_size=size, **_processes())


def preview_examples(config: RunConfig) -> Batch:
    """Fixed training examples for the sample grids."""
    return fixed_examples(config.data, config.train.preview.count, **_sizes(config.model))


def _sizes(model: ModelConfig) -> dict[str, Any]:
    low_res = model.low_res_size if model.super_res else None
    return {"image_size": model.image_size, "low_res_size": low_res, "text_ctx": model.text_ctx}


def _processes() -> dict[str, int]:
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
