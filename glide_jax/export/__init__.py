"""Samplers as self-contained programs (StableHLO), which need neither the model's code nor its options to run.

    FOLDER/program.json       the stages, their inputs, and how they were made
    FOLDER/base.stablehlo     a function of weights, tokens, seed and image numbers
    FOLDER/base.npz           its weights
    FOLDER/upsampler.*        the same for the upsampler, which also takes the base model's images

`python -m glide_jax.export` writes such a folder. `jax.export` promises that later versions of JAX can run it, for at
least six months.
"""

from glide_jax.export.program import Program as Program
from glide_jax.export.program import load as load
