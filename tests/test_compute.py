"""Where which compute type is refused."""

import pytest

from glide_jax import compute
from glide_jax.compute import check_device
from glide_jax.errors import GlideError


@pytest.mark.parametrize(
    ("capability", "refused"), [(0.0, {"tf32"}), (7.5, {"tf32", "bfloat16"}), (8.0, set()), (9.0, set())]
)
def test_tf32_needs_a_gpu_that_has_it_and_so_does_bfloat16_on_a_gpu(capability, refused, monkeypatch):
    monkeypatch.setattr(compute, "cuda_capability", lambda: capability)
    for dtype in ("float32", "tf32", "bfloat16"):
        if dtype in refused:
            there = "has 7.5" if capability else "there is none"
            with pytest.raises(
                GlideError, match=rf"^train\.dtype={dtype} needs .* 8\.0 or later.*{there}: use float32$"
            ):
                check_device(dtype, "train.dtype")
        else:
            check_device(dtype, "train.dtype")
