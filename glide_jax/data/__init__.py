"""Captioned pictures to batches: sources, filters, transforms, and one exact, resumable pipeline."""

from glide_jax.data.config import DataConfig as DataConfig
from glide_jax.data.pipeline import DataStream as DataStream
from glide_jax.data.pipeline import open_data as open_data
from glide_jax.data.validation import ValidationData as ValidationData
from glide_jax.data.validation import fixed_examples as fixed_examples
from glide_jax.data.validation import open_validation as open_validation
