import pytest


@pytest.fixture(scope="session")
def torch():
    """The library; whoever needs it asks for it here, so that others do not wait for its import."""
    return pytest.importorskip("torch", reason="torch is not installed: uv sync --inexact --extra torch")
