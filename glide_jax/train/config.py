"""How a model is trained."""

from dataclasses import dataclass, field
from typing import Literal

from glide_jax.diffusion.losses import LossConfig
from glide_jax.diffusion.options import LevelOptions
from glide_jax.errors import GlideError
from glide_jax.parallel import nearest_multiples
from glide_jax.sample import SampleOptions
from glide_jax.train.conditioning import ConditioningConfig
from glide_jax.train.trainable import RULES, Trainable

_MAY_BE_ZERO = (
    "max_skipped_updates", "loss_spike_threshold", "sample_every", "validate_every", "save_every",
    "keep_checkpoints_every", "keep_best_checkpoints", "peak_tflops",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with a global-norm clip, a warm-up, and an average of the weights.

    Attributes:
        learning_rate: peak rate.
        lr_schedule: "constant" or "cosine" (down to 0 at the last step), after the warm-up.
        warmup_steps: updates over which the rate rises from 0.
        weight_decay: decoupled, on every parameter.
        b1, b2, eps: Adam's.
        mu_dtype: type of Adam's first moment, "float32" or "bfloat16", which saves 2 bytes a trained parameter.
        max_grad_norm: gradients are scaled down to this global norm; 0 is off.
        ema_decay: of the exponential moving average of the weights that sampling uses.
        ema_warmup: decay after update n is min(ema_decay, (1 + n) / (10 + n)), so that early noise is forgotten.
    """

    learning_rate: float = 1e-4
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True

    def __post_init__(self) -> None:
        if self.lr_schedule not in ("constant", "cosine"):
            raise GlideError(f"optimizer.lr_schedule {self.lr_schedule!r} is unknown: use constant or cosine")
        if self.mu_dtype not in ("float32", "bfloat16"):
            raise GlideError(f"optimizer.mu_dtype {self.mu_dtype!r} is not supported: use float32 or bfloat16")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "eps", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise GlideError(f"optimizer.{name} must not be negative, got {getattr(self, name)}")
        for name in ("b1", "b2", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise GlideError(f"optimizer.{name} must be in [0, 1), not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class PreviewConfig:
    """The grids drawn while training, from the averaged weights and always the same noise.

    Attributes:
        prompts: captions to draw; empty takes the first training captions.
        count: how many training captions that is.
        upsampler: checkpoint of an upsampler that enlarges what a base model draws; empty shows it as it is.
        upsampler_strength: in [0, 1]; below 1 it starts from the picture it enlarges. Its other settings are GLIDE's.
        options: how they are drawn.
    """

    prompts: tuple[str, ...] = ()
    count: int = 16
    upsampler: str = ""
    upsampler_strength: float = 1.0
    options: SampleOptions = field(default_factory=lambda: SampleOptions(levels=LevelOptions(num_steps=25)))

    def __post_init__(self) -> None:
        if not 0.0 <= self.upsampler_strength <= 1.0:
            raise GlideError(f"preview.upsampler_strength must be in [0, 1], not {self.upsampler_strength}")
        if self.count < 1:
            raise GlideError(f"preview.count must be at least 1, not {self.count}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes:
        batch_size: pictures an update, over all devices and micro-batches.
        gradient_accumulation_steps: micro-batches that a batch is worked off in, one after the other, to save memory.
        max_steps: updates.
        seed: of initial weights, data order, noise and dropout, in [0, 2^31).
        dtype: compute type, "float32" or "bfloat16"; weights, optimizer and average are float32 always.
        trainable: "all", "unet" (the text transformer stays as it is) or "text" (the UNet does, but for its
            projections of the text to keys and values); see `trainable.RULES`.
        reinitialize: what is trained starts from fresh weights, the rest from `init_from`.
        remat: "none", "full" or "dots": what the backward pass recomputes to save memory.
        loss: what is minimised.
        conditioning: how an upsampler's input is spoilt, and what an inpainting model is to draw.
        optimizer: how.
        max_skipped_updates: how many updates in a row may be skipped, because loss or gradient are not finite, before
            the run stops.
        loss_spike_threshold: also skips updates whose loss is that many times its running average; 0 is off. Beware
            of small batches: low timesteps alone have several times the average loss.
        log_every, sample_every, validate_every, save_every: updates between log lines, grids, validation losses
            and checkpoints; 0 means only at the end (no validation at all).
        keep_checkpoints: how many of the newest are kept.
        keep_checkpoints_every: those at multiples of this many updates are kept too; 0 is off.
        keep_best_checkpoints: so many with the lowest validation loss are kept too.
        peak_tflops: of one device, for the utilization (MFU); 0 takes the vendor's figure for a device it knows.
        wandb_project: also log to that Weights & Biases project; empty is off. WANDB_MODE=offline keeps it here.
        preview: the grids.
    """

    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_steps: int = 10_000
    seed: int = 0
    dtype: str = "float32"
    trainable: Trainable = "all"
    reinitialize: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    loss: LossConfig = field(default_factory=LossConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_skipped_updates: int = 10
    loss_spike_threshold: float = 0.0
    log_every: int = 50
    sample_every: int = 1000
    validate_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    keep_checkpoints_every: int = 0
    keep_best_checkpoints: int = 0
    peak_tflops: float = 0.0
    wandb_project: str = ""
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        if self.dtype in ("float16", "fp16"):
            raise GlideError("train.dtype float16 is not supported: use bfloat16, which needs no loss scaling")
        if self.trainable not in RULES:
            raise GlideError(f"train.trainable {self.trainable!r} is unknown: use {', '.join(RULES)}")
        for name in ("batch_size", "gradient_accumulation_steps", "max_steps", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise GlideError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in _MAY_BE_ZERO:
            if getattr(self, name) < 0:
                raise GlideError(f"train.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise GlideError(f"train.seed must be in [0, 2^31), not {self.seed}")
        if self.batch_size % self.gradient_accumulation_steps:
            raise GlideError(
                f"train.batch_size {self.batch_size} cannot be split into"
                f" train.gradient_accumulation_steps={self.gradient_accumulation_steps} equal micro-batches:"
                f" use {nearest_multiples(self.batch_size, self.gradient_accumulation_steps)}"
            )
        if 0.0 < self.loss_spike_threshold <= 1.0:
            raise GlideError(f"train.loss_spike_threshold must be above 1 (0 is off), not {self.loss_spike_threshold}")
        if self.keep_best_checkpoints and (not self.validate_every or self.save_every % self.validate_every):
            raise GlideError(
                "train.keep_best_checkpoints needs a validation at each save: make train.save_every a"
                f" multiple of train.validate_every ({self.save_every} and {self.validate_every} now)"
            )
