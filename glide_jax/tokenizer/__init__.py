"""Text to token ids: GLIDE's byte pair encoding and the noised CLIP's, with their vocabularies."""

from glide_jax.tokenizer.clip import ClipTokenizer
from glide_jax.tokenizer.glide import GlideTokenizer

__all__ = ["ClipTokenizer", "GlideTokenizer"]
