"""For every test: shapes are checked at run time, ranks never promoted, compiled programs kept on disk."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests.shapes import check_arrays

# Set before jax is imported, and in the environment, so that programs started by tests share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several test processes share one GPU

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("glide_jax", f"{check_arrays.__module__}.{check_arrays.__qualname__}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a CUDA GPU and jax[cuda12] or jax[cuda13]")
