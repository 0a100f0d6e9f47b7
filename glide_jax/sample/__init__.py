"""Prompts to pictures."""

from glide_jax.diffusion.grid import SCHEDULES as SCHEDULES
from glide_jax.diffusion.solvers import SAMPLERS as SAMPLERS
from glide_jax.diffusion.solvers import sampler_options as sampler_options
from glide_jax.sample.loading import LoadedClip as LoadedClip
from glide_jax.sample.loading import LoadedModel as LoadedModel
from glide_jax.sample.loading import check_upsampler as check_upsampler
from glide_jax.sample.loading import checkpoint_config as checkpoint_config
from glide_jax.sample.loading import checkpoint_step as checkpoint_step
from glide_jax.sample.options import SampleOptions as SampleOptions
from glide_jax.sample.pipeline import Pipeline as Pipeline
from glide_jax.sample.pipeline import Samples as Samples
from glide_jax.sample.shipped import SHIPPED_SETTINGS as SHIPPED_SETTINGS
from glide_jax.sample.shipped import parse_with_shipped as parse_with_shipped
from glide_jax.sample.shipped import shipped_models as shipped_models
from glide_jax.sample.stage import Inputs as Inputs
from glide_jax.sample.stage import Stage as Stage
