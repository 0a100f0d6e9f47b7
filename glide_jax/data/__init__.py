"""Captioned images to batches: sources, filters, transforms, and one exact, resumable pipeline."""

from glide_jax.data.config import DataConfig as DataConfig
from glide_jax.data.loader import DataStream as DataStream
from glide_jax.data.loader import ValidationData as ValidationData
from glide_jax.data.loader import fixed_examples as fixed_examples
from glide_jax.data.loader import open_data as open_data
from glide_jax.data.loader import open_indexed as open_indexed
from glide_jax.data.loader import open_validation as open_validation
