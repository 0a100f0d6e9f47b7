"""Samplers as programs of their own (StableHLO), which need neither the model's code nor its options to run.

    FOLDER/program.json       the stages, what they take, and how they were made
    FOLDER/base.stablehlo     a compiled function of weights, tokens, seed and image numbers
    FOLDER/base.npz           its weights
    FOLDER/upsampler.*        the same, of the images of the first

`python -m glide_jax.export` writes such a folder. `jax.export` promises that a later JAX can run it, for six months at
least.
"""

from glide_jax.export.program import Program as Program
from glide_jax.export.program import load as load
