"""Seeing what is compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax.monitoring


@contextmanager
def compilations() -> Iterator[list[float]]:
    """Collects the seconds of every compilation inside the block; those that a cache on disk spares count too."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
