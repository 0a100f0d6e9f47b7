"""Tests of glide_jax; the folders mirror the package."""
