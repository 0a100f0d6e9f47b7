"""GLIDE text-to-image diffusion in JAX and Flax."""
