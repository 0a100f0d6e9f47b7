"""Keeps the worst error of every module that the live tests compare, and prints them at the end."""

from collections import defaultdict

import jax
import numpy as np
import pytest

from tests.parity.recipe import relative_error

SIZES = ("tiny", "full")
_WORST = pytest.StashKey[dict[tuple[str, str], float]]()


class Comparison:
    """Asserts that results agree, and remembers by how much they don't."""

    def __init__(self, worst: dict[tuple[str, str], float]) -> None:
        self._worst = worst

    def check(self, module: str, size: str, ours, theirs, tolerance: float) -> None:
        """Compares an array with the reference's tensor in the same layout."""
        error = relative_error(np.asarray(ours), theirs.detach().numpy())
        self._worst[module, size] = max(error, self._worst[module, size])
        assert error < tolerance, f"{module}: {error:.1e}"


@pytest.fixture(autouse=True)
def _published_sizes_are_optimised(request):
    if request.node.get_closest_marker("slow") and "full" in request.node.name:
        request.getfixturevalue("optimised")


@pytest.fixture(scope="session", autouse=True)
def _exact_products():
    """GPUs would take TF32 for float32, which has ten bits."""
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def comparison(request):
    return Comparison(request.config.stash.setdefault(_WORST, defaultdict(float)))


def pytest_terminal_summary(terminalreporter, config):
    worst = config.stash.get(_WORST, {})
    if worst:
        terminalreporter.section("worst max|a-b| / max|b| against the live reference")
        rows = [["module", *SIZES]]
        for module in dict.fromkeys(module for module, _ in worst):
            rows.append([module, *(f"{worst[module, s]:.1e}" if (module, s) in worst else "" for s in SIZES)])
        for row in rows:
            terminalreporter.write_line(f"| {row[0]:36} | {row[1]:7} | {row[2]:7} |")
