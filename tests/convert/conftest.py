from functools import cache

import pytest

from glide_jax.models import Glide

_traced = cache(Glide)


@pytest.fixture(autouse=True, scope="module")
def _each_model_is_traced_once():
    """Conversion needs only the shapes of a model, and finding them is what takes its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.architecture.Glide", _traced)
        yield


@pytest.fixture(scope="session")
def torch():
    """The library; whoever needs it asks for it here, so that others do not wait for its import."""
    return pytest.importorskip("torch", reason="torch is not installed: pip install 'glide-jax[torch]'")
