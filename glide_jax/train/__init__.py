"""Training and fine-tuning."""

from glide_jax.train.config import OptimizerConfig as OptimizerConfig
from glide_jax.train.config import PreviewConfig as PreviewConfig
from glide_jax.train.config import RunConfig as RunConfig
from glide_jax.train.config import TrainConfig as TrainConfig
from glide_jax.train.dry_run import dry_run as dry_run
from glide_jax.train.interrupt import ending_at_once as ending_at_once
from glide_jax.train.loop import Trainer as Trainer
