"""For every test: shapes checked at run time, ranks never promoted, programs compiled quickly and kept on disk."""

import gc
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests.shapes import check_arrays

# Set before jax is imported, and in the environment, so that programs started by tests share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several test processes share one GPU
# Tiny models run a few times each: what XLA saves by optimising them is a hundredth of what it costs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if version("jaxlib") < "0.11":  # later ones know only these emitters' successors, and die of the flag
    # Split for threads, of which the other workers have the cores, a program takes a tenth longer.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import jax

# What is imported stays: looking through it every 700 objects takes a tenth of the time that tracing does.
gc.set_threshold(100_000)
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("glide_jax", f"{check_arrays.__module__}.{check_arrays.__qualname__}")


# Folders whose tests share a running page or take a minute each.
_LONG = ("ui", "integration", "docs", "parity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # They come first, so that no worker is left with them at the end while the others are idle.
    items.sort(key=lambda item: next((i for i, name in enumerate(_LONG) if name in item.path.parts), len(_LONG)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip("needs a CUDA GPU and jax[cuda12] or jax[cuda13]")


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For models of published sizes, which take longer to run than to compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
