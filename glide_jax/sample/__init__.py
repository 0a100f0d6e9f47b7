"""Prompts to pictures."""

from glide_jax.sample.options import SampleOptions as SampleOptions
from glide_jax.sample.pipeline import LoadedModel as LoadedModel
from glide_jax.sample.pipeline import Pipeline as Pipeline
from glide_jax.sample.pipeline import Samples as Samples
from glide_jax.sample.stage import Stage as Stage
