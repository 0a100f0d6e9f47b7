"""The GLIDE networks: arrays in, arrays out."""

from glide_jax.models.config import ModelConfig as ModelConfig
from glide_jax.models.functional import Params as Params
from glide_jax.models.glide import Conditioning as Conditioning
from glide_jax.models.glide import EncodedText as EncodedText
from glide_jax.models.glide import Glide as Glide
from glide_jax.models.lora import LoraConfig as LoraConfig
from glide_jax.models.noised_clip import ClipImageConfig as ClipImageConfig
from glide_jax.models.noised_clip import ClipTextConfig as ClipTextConfig
from glide_jax.models.noised_clip import NoisedClip as NoisedClip
