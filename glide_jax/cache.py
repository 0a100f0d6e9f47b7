"""The folder for what is slow to get: downloads, compiled programs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """GLIDE_JAX_CACHE, or ~/.cache/glide_jax."""
    return Path(os.environ.get("GLIDE_JAX_CACHE") or "~/.cache/glide_jax").expanduser()


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that a second start is quick; JAX_COMPILATION_CACHE_DIR overrules."""
    import jax  # noqa: PLC0415 (takes a second, and command lines are read before)

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        # By default only what took a second: most of the small programs would be compiled again.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
