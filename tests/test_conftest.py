"""The strictness that conftest.py and pyproject.toml promise is really on."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from glide_jax.images import from_uint8
from glide_jax.models.layers import downsample_average


def test_dtypes_of_arrays_are_checked():
    with pytest.raises(TypeCheckError, match="pixels"):
        from_uint8(np.zeros((2, 2, 3), np.float32))


def test_shapes_of_arrays_are_checked():
    with pytest.raises(TypeCheckError, match="batch height width channels"):
        downsample_average(jnp.zeros((2, 2, 3)))


def test_rank_promotion_is_refused():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros(3)


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("seen", stacklevel=1)
