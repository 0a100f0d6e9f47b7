"""The strictness that conftest.py and pyproject.toml promise is really on."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from glide_jax.images import from_uint8
from glide_jax.models.layers import downsample_average
from tests.shapes import check_arrays


def test_dtypes_of_arrays_are_checked():
    with pytest.raises(TypeCheckError, match="pixels"):
        from_uint8(np.zeros((2, 2, 3), np.float32))


def test_shapes_of_arrays_are_checked():
    with pytest.raises(TypeCheckError, match="batch height width channels"):
        downsample_average(jnp.zeros((2, 2, 3)))


def test_functions_of_one_name_are_each_checked_by_their_own_hints():
    def identity_of(hint):
        @jaxtyped(typechecker=check_arrays)
        def identity(x: hint):
            return x

        return identity

    vector, matrix = jnp.zeros(2), jnp.zeros((2, 3))
    for hint, right, wrong in ((Float[Array, "a"], vector, matrix), (Float[Array, "a b"], matrix, vector)):
        assert identity_of(hint)(right) is right
        with pytest.raises(TypeCheckError):
            identity_of(hint)(wrong)


def test_rank_promotion_is_refused():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros(3)


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("seen", stacklevel=1)
