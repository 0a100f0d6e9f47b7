"""Every option of a training run: the tables that config files, checks and documentation are made from."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from glide_jax.compute import COMPUTE_TYPES, HELP
from glide_jax.data import DataConfig
from glide_jax.diffusion.losses import LossConfig
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.errors import GlideError
from glide_jax.models import LoraConfig, ModelConfig
from glide_jax.options import Options, option
from glide_jax.parallel import ParallelConfig, nearest_multiples
from glide_jax.sample import SampleOptions

Trainable = Literal["all", "unet", "text"]
# What is trained: one of these, or "lora", adapters alone.
Trained = Literal["all", "unet", "text", "lora"]
_DType = Literal["float32", "bfloat16"]

BLUR_RADIUS = 3
_MOST_AREA = 4  # of a bucket, in squares of the model's size


@dataclass(frozen=True, slots=True)
class MaskConfig(Options):
    """Shares of the kinds of inpainting masks; they are scaled to sum to 1."""

    PREFIX: ClassVar[str] = "train.conditioning.masks."

    rectangles: Annotated[float, option("share of masks with 1 to 3 rectangles of 1/8 to 5/8 of the side", low=0)] = 0.4
    strokes: Annotated[float, option("share of masks with 1 to 3 thick polylines", low=0)] = 0.4
    everything: Annotated[float, option("share of masks over everything, as without an image", low=0)] = 0.15
    nothing: Annotated[float, option("share of masks with nothing to inpaint", low=0)] = 0.05

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if not sum(self.shares):
            raise GlideError("train.conditioning.masks: shares must not all be 0")

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """In the order of the fields."""
        return (self.rectangles, self.strokes, self.everything, self.nothing)


@dataclass(frozen=True, slots=True)
class ConditioningConfig(Options):
    """Conditioning augmentation of an upsampler's input (Ho et al. 2021, arXiv:2106.15282), and inpainting masks.

    Blur and noise have a standard deviation that is sampled for each example, uniformly from 0 up to the one given.
    """

    PREFIX: ClassVar[str] = "train.conditioning."

    low_res_blur: Annotated[
        float, option("maximum standard deviation of the blur, in pixels; 0 is off", low=0, high=BLUR_RADIUS / 2)
    ] = 0.0
    low_res_noise: Annotated[float, option("maximum standard deviation of the noise on [-1, 1]; 0 is off", low=0)] = 0.0
    masks: Annotated[MaskConfig, option("masks for an inpainting model")] = MaskConfig()


@dataclass(frozen=True, slots=True)
class OptimizerConfig(Options):
    """AdamW or Muon with a global-norm clip and a warm-up, and EMA weights.

    Muon (arXiv:2502.16982) takes the kernels but the UNet's first and last, scaled so that AdamW's learning rate suits
    it, with a momentum of 0.95; NAdamW takes the rest.
    """

    PREFIX: ClassVar[str] = "train.optimizer."

    kind: Annotated[Literal["adamw", "muon"], option("muon learns more from each image")] = "adamw"
    learning_rate: Annotated[float, option("peak learning rate", low=0)] = 1e-4
    lr_schedule: Annotated[Literal["constant", "cosine"], option("after the warm-up; cosine ends at 0")] = "constant"
    warmup_steps: Annotated[int, option("steps over which the learning rate rises from 0", low=0)] = 0
    weight_decay: Annotated[float, option("decoupled weight decay, on every parameter", low=0)] = 0.0
    b1: Annotated[float, option("Adam's decay rate of the first moment", low=0, below=1)] = 0.9
    b2: Annotated[float, option("Adam's decay rate of the second moment", low=0, below=1)] = 0.999
    eps: Annotated[float, option("Adam's epsilon", low=0)] = 1e-8
    mu_dtype: Annotated[_DType, option("type of the first moment, or momentum; bfloat16 saves memory")] = "float32"
    max_grad_norm: Annotated[float, option("gradients are clipped to this global norm; 0 is off", low=0)] = 1.0
    ema_decay: Annotated[float, option("decay of the EMA weights, which sampling uses", low=0, below=1)] = 0.9999
    ema_warmup: Annotated[bool, option("decay after update n is min(ema_decay, (1 + n) / (10 + n))")] = True


@dataclass(frozen=True, slots=True)
class PreviewConfig(Options):
    """The sample grids of a training run, drawn from the EMA weights with the same noise each time."""

    PREFIX: ClassVar[str] = "train.preview."

    prompts: Annotated[tuple[str, ...], option("prompts; empty takes the first training captions")] = ()
    count: Annotated[int, option("number of training captions", low=1)] = 16
    upsampler: Annotated[str, option("checkpoint of an upsampler for a base model's images; empty is none")] = ""
    upsampler_strength: Annotated[float, option("below 1 it starts from the base model's image", low=0, high=1)] = 1.0
    options: Annotated[SampleOptions, option("how images are sampled")] = SampleOptions.of(num_steps=25)


@dataclass(frozen=True, slots=True)
class PriorConfig(Options):
    """Prior preservation for few images (DreamBooth, arXiv:2208.12242): half of the training images, or `count` if that
    is less, are generated by the starting weights, with the sampling options of the previews.
    """

    PREFIX: ClassVar[str] = "train.prior."

    prompts: Annotated[tuple[str, ...], option("prompts for what the model should not forget; empty: off")] = ()
    count: Annotated[int, option("number of images to generate", low=1, high=9999)] = 100


@dataclass(frozen=True, slots=True)
class DistillConfig(Options):
    """Few-step distillation: adapters learn to do in one step what the guided base weights do in several.

    Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) of a guided model (Meng et al. 2022,
    arXiv:2210.03142). Images are then sampled with `num_steps` steps of DDIM, schedule "trailing", and no guidance.
    """

    PREFIX: ClassVar[str] = "train.distill."

    num_steps: Annotated[int, option("sampling steps to distil to; 0 is off", low=0, high=64)] = 0
    teacher_steps: Annotated[
        int, option("the teacher's steps for each of them; 1 distils only the guidance", low=1, high=64)
    ] = 4
    guidance_scale: Annotated[float, option("guidance scale to distil; 1: none", low=0, high=30)] = 3.0


@dataclass(frozen=True, slots=True)
class TrainConfig(Options):
    """How a model is trained.

    `trainable` "unet" freezes the text transformer; "text" freezes the UNet, except for the layers that project the
    text to keys and values (`state.RULES`). Steps whose loss or gradient is not finite are skipped. Beware of
    `loss_spike_threshold` with small batches: low timesteps alone have several times the average loss.
    """

    PREFIX: ClassVar[str] = "train."

    batch_size: Annotated[int, option("images per step, over all devices and micro-batches", low=1)] = 16
    gradient_accumulation_steps: Annotated[int, option("micro-batches per step, to save memory", low=1)] = 1
    max_steps: Annotated[int, option("training steps", low=1)] = 10_000
    max_minutes: Annotated[
        float, option("also stops after this time, start-up included; a cosine then goes by time; 0 is off", low=0)
    ] = 0.0
    seed: Annotated[int, option("seed of initial weights, data order, noise and dropout", low=0, below=2**31)] = 0
    dtype: Annotated[str, option(HELP, choices=COMPUTE_TYPES)] = "float32"
    deterministic: Annotated[bool, option("on GPUs, use only kernels that sum in a fixed order; slower")] = False
    trainable: Annotated[Trainable, option("the whole model or one part; the rest is frozen")] = "all"
    reinitialize: Annotated[bool, option("start what is trained from fresh weights, the rest from init_from")] = False
    lora: Annotated[LoraConfig, option("adapters to train instead of the weights")] = LoraConfig()
    remat: Annotated[
        Literal["none", "full", "dots"],
        option("what the backward pass recomputes; dots: all but convolutions, linear layers and sums"),
    ] = "none"
    loss: Annotated[LossConfig, option("the training loss")] = LossConfig()
    distill: Annotated[DistillConfig, option("few-step distillation")] = DistillConfig()
    conditioning: Annotated[ConditioningConfig, option("augmentation and masks")] = ConditioningConfig()
    optimizer: Annotated[OptimizerConfig, option("optimizer and EMA")] = OptimizerConfig()
    max_skipped_updates: Annotated[int, option("stops a run after more skipped steps in a row than this", low=0)] = 10
    loss_spike_threshold: Annotated[float, option("skips losses this many times the average; 0 is off", low=0)] = 0.0
    log_every: Annotated[int, option("steps between log lines, which come at least every 30 s", low=1)] = 50
    sample_every: Annotated[
        int, option("steps between sample grids; 0: only before fine-tuning and at the end", low=0)
    ] = 1000
    validate_every: Annotated[int, option("steps between validation losses; 0: never", low=0)] = 1000
    save_every: Annotated[int, option("steps between checkpoints; 0: only at the end", low=0)] = 1000
    keep_checkpoints: Annotated[int, option("number of newest checkpoints kept", low=1)] = 2
    keep_checkpoints_every: Annotated[int, option("also keeps those at multiples of this step; 0 is off", low=0)] = 0
    keep_best_checkpoints: Annotated[int, option("also keeps this many with the lowest validation loss", low=0)] = 0
    peak_tflops: Annotated[float, option("peak of one device, for the MFU; 0: the vendor's figure", low=0)] = 0.0
    wandb_project: Annotated[str, option("Weights & Biases project; empty: off. WANDB_MODE=offline works")] = ""
    prior: Annotated[PriorConfig, option("prior preservation, for training on few images")] = PriorConfig()
    preview: Annotated[PreviewConfig, option("the sample grids")] = PreviewConfig()

    def __post_init__(self) -> None:
        if self.dtype in ("float16", "fp16"):
            raise GlideError("train.dtype float16 is not supported: use bfloat16, which needs no loss scaling")
        Options.__post_init__(self)
        if self.batch_size % self.gradient_accumulation_steps:
            raise GlideError(
                f"train.batch_size {self.batch_size} cannot be split into"
                f" train.gradient_accumulation_steps={self.gradient_accumulation_steps} equal micro-batches:"
                f" use {nearest_multiples(self.batch_size, self.gradient_accumulation_steps)}"
            )
        if self.lora.rank and (self.trainable != "all" or self.reinitialize):
            raise GlideError("train.lora freezes the weights: choose layers by train.lora.targets, not train.trainable")
        if self.distill.num_steps and not self.lora.rank:
            raise GlideError("train.distill trains adapters for the weights they learn from: give train.lora.rank")
        if self.distill.num_steps and self.loss.kind != "simple":
            raise GlideError("train.distill has no noise to learn a variance from: use train.loss.kind=simple")
        if 0.0 < self.loss_spike_threshold <= 1.0:
            raise GlideError(f"train.loss_spike_threshold must be above 1 (0 is off), not {self.loss_spike_threshold}")
        if self.keep_best_checkpoints and (not self.validate_every or self.save_every % self.validate_every):
            raise GlideError(
                "train.keep_best_checkpoints needs a validation at each save: make train.save_every a"
                f" multiple of train.validate_every ({self.save_every} and {self.validate_every} now)"
            )

    @property
    def trained(self) -> Trained:
        """Which of the parameters are trained."""
        return "lora" if self.lora.rank else self.trainable

    @property
    def cosine_steps(self) -> int | None:
        """Where a cosine schedule of the learning rate ends; None where it goes by time."""
        return None if self.max_minutes else self.max_steps


@dataclass(frozen=True, slots=True)
class RunConfig(Options):
    """Everything that decides a training run."""

    run_dir: Annotated[str, option("folder of checkpoints, logs and samples; a run there is resumed")] = "runs/glide"
    init_from: Annotated[str, option("checkpoint or converted model to start from; empty is fresh weights")] = ""
    model: Annotated[ModelConfig, option("architecture")] = ModelConfig()
    diffusion: Annotated[DiffusionConfig, option("noise schedule")] = DiffusionConfig()
    data: Annotated[DataConfig, option("training data")] = DataConfig()
    train: Annotated[TrainConfig, option("how the model is trained")] = TrainConfig()
    parallel: Annotated[ParallelConfig, option("device mesh")] = ParallelConfig()

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if "://" in self.run_dir:
            raise GlideError(f"run_dir={self.run_dir}: it must be a local folder; mount the bucket")
        if self.train.trained == "text" and not self.model.xf_width:
            raise GlideError("train.trainable=text leaves nothing to train: this model has no text transformer")
        if self.train.keep_best_checkpoints and not self.data.validation_path:
            raise GlideError("train.keep_best_checkpoints needs held-out images: give data.validation_path")
        if self.train.distill.num_steps and self.diffusion.prediction_type != "v_prediction":
            raise GlideError(
                "train.distill needs diffusion.prediction_type=v_prediction, because at high noise eps does not"
                " determine x_0: fine-tune the model to predict v first"
            )
        if self.train.loss.velocity_cap and self.diffusion.prediction_type == "v_prediction":
            raise GlideError(
                "train.loss.velocity_cap weights the loss of noise as that of v, which a model with"
                " diffusion.prediction_type=v_prediction has already: use train.loss.velocity_cap=0"
            )
        if self.train.distill.num_steps and self.data.validation_path and self.train.validate_every:
            raise GlideError(
                "train.distill has no validation loss, which would include levels that its steps skip: use"
                " train.validate_every=0"
            )
        factor = self.model.image_size // self.model.low_res_size if self.model.super_res else 1
        unit = math.lcm(self.model.unit, max(factor, 1))
        for size in self.data.sizes:
            if size.height % unit or size.width % unit:
                raise GlideError(f"data.buckets {size}: height and width must be multiples of {unit} for this model")
            if math.prod(size) > _MOST_AREA * self.model.image_size**2:
                raise GlideError(
                    f"data.buckets {size} has more than {_MOST_AREA} times the pixels of model.image_size"
                    f" {self.model.image_size}: give smaller sizes"
                )
        if not self.train.prior.prompts:
            return
        if self.model.super_res or self.model.inpaint:
            raise GlideError("train.prior needs a base model that does not inpaint")
        if self.data.source != "folder" or "txt" not in (self.data.caption_key or "txt").split(";"):
            raise GlideError("train.prior needs data.source=folder, and captions in text files (data.caption_key=txt)")
