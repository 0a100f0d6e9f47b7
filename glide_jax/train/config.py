"""How a model is trained."""

from dataclasses import dataclass, field
from typing import Literal

from glide_jax.diffusion.losses import LossConfig
from glide_jax.errors import GlideError
from glide_jax.sample import SampleOptions


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW with a global-norm clip, a warm-up, and an average of the weights.

    Attributes:
        learning_rate: peak rate.
        lr_schedule: "constant" or "cosine" (down to 0 at the last step), after the warm-up.
        warmup_steps: updates over which the rate rises from 0.
        weight_decay: decoupled, on every parameter.
        b1, b2, eps: Adam's.
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
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_warmup: bool = True

    def __post_init__(self) -> None:
        if self.lr_schedule not in ("constant", "cosine"):
            raise GlideError(f"optimizer.lr_schedule {self.lr_schedule!r} is unknown: use constant or cosine")
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
        options: how they are drawn.
    """

    prompts: tuple[str, ...] = ()
    count: int = 16
    options: SampleOptions = field(default_factory=lambda: SampleOptions(num_steps=25))


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run.

    Attributes:
        batch_size: pictures an update, over all devices.
        max_steps: updates.
        seed: of initial weights, data order, noise and dropout, in [0, 2^31).
        dtype: compute type, "float32" or "bfloat16"; weights, optimizer and average are float32 always.
        remat: "none", "full" or "dots": what the backward pass recomputes to save memory.
        loss: what is minimised.
        optimizer: how.
        log_every, sample_every, validate_every, save_every: updates between log lines, grids, validation losses
            and checkpoints; 0 means only at the end (no validation at all).
        keep_checkpoints: how many of the newest are kept.
        preview: the grids.
    """

    batch_size: int = 16
    max_steps: int = 10_000
    seed: int = 0
    dtype: str = "float32"
    remat: Literal["none", "full", "dots"] = "none"
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    log_every: int = 50
    sample_every: int = 1000
    validate_every: int = 1000
    save_every: int = 1000
    keep_checkpoints: int = 2
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        if self.dtype in ("float16", "fp16"):
            raise GlideError("train.dtype float16 is not supported: use bfloat16, which needs no loss scaling")
        for name in ("batch_size", "max_steps", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise GlideError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("sample_every", "validate_every", "save_every"):
            if getattr(self, name) < 0:
                raise GlideError(f"train.{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            raise GlideError(f"train.seed must be in [0, 2^31), not {self.seed}")
