"""The data sources, one a file; `glide_jax.data.source` lists them."""
