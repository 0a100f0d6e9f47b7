"""Shrunk checkpoints generate what the large ones do, up to bfloat16."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.cli import main
from convert.shrink import shrink
from glide_jax.checkpoint import load_weights
from glide_jax.errors import GlideError
from glide_jax.models import Glide
from glide_jax.sample import Pipeline
from glide_jax.tokenizer import GlideTokenizer
from tests.tiny.models import BASE, save_clip, save_model


@pytest.fixture
def checkpoint(tmp_path):
    return save_model(tmp_path / "model")


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_images_of_known_captions_stay_the_same_in_a_fraction_of_the_bytes(checkpoint, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("a red cat\na blue dog\n")
    main(["shrink", checkpoint, "--output", str(tmp_path / "half")])
    main(["shrink", checkpoint, "--output", str(tmp_path / "small"), "--captions", str(tmp_path / "captions.txt")])
    told = f"base model of {size(tmp_path / 'small') / 1e6:.1f} MB written to {tmp_path / 'small'}\n"
    assert capsys.readouterr().out.endswith(told)
    assert size(tmp_path / "half") < 0.6 * size(tmp_path / "model")
    assert size(tmp_path / "small") < 0.3 * size(tmp_path / "half")

    abstract = Glide(BASE).abstract_params()
    kept, before = (jax.tree.leaves(load_weights(tmp_path / name, abstract)) for name in ("half", "model"))
    for ours, theirs in zip(kept, before, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(jnp.bfloat16).astype(jnp.float32))

    half, small = (Pipeline.from_checkpoints(tmp_path / name) for name in ("half", "small"))
    options = {"num_steps": 4, "guidance_scale": 100.0}  # an untrained model hardly listens
    mixed = "a red dog"  # of words from the captions
    np.testing.assert_array_equal(small(mixed, **options).images, half(mixed, **options).images)
    assert (small("a zebra", **options).images != half("a zebra", **options).images).any()


def test_what_cannot_be_shrunk_is_refused_in_one_line(checkpoint, tmp_path):
    to = ["--output", str(tmp_path / "small")]
    with pytest.raises(GlideError, match=r"cannot read the captions in missing\.txt"):
        main(["shrink", checkpoint, *to, "--captions", "missing.txt"])
    (tmp_path / "captions.txt").write_text("a cat")
    with pytest.raises(GlideError, match="not a GLIDE model with text"):
        main(["shrink", save_clip(tmp_path)[0], *to, "--captions", str(tmp_path / "captions.txt")])
    with pytest.raises(GlideError, match="exists already"):
        main(["shrink", checkpoint, "--output", checkpoint])


def test_what_is_to_be_written_and_read_is_seen_to_before_a_model_is_loaded(tmp_path):
    for command in ("shrink", "merge"):
        with pytest.raises(GlideError, match=f"{tmp_path} exists already; choose another name or remove it"):
            main([command, "nowhere", "--output", str(tmp_path)])
    with pytest.raises(GlideError, match=r"cannot read the captions in missing\.txt"):
        main(["shrink", "nowhere", "--output", str(tmp_path / "new"), "--captions", "missing.txt"])


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ("a red cat\r\na blue dog\rfish", ["a red cat", "a blue dog", "fish"]),
        ("\ufeffa red cat\na blue dog\n", ["a red cat", "a blue dog"]),
        ("a red\u2028cat\x85in\x0bthe\x0cbox\x1cof", ["a red\u2028cat\x85in\x0bthe\x0cbox\x1cof"]),
    ],
    ids=["line ends", "byte-order mark", "no line ends"],
)
def test_the_tokens_of_each_line_are_kept_and_no_others(checkpoint, tmp_path, content, captions):
    (tmp_path / "captions.txt").write_bytes(content.encode())
    shrink(Path(checkpoint), tmp_path / "small", tmp_path / "captions.txt")
    table = load_weights(tmp_path / "small", Glide(BASE).abstract_params())["text"]["token_embedding"]
    tokens = {token for text in ["", *captions] for token in GlideTokenizer().padded(text)[0][0]}
    assert set(np.flatnonzero(np.any(table, axis=1))) == tokens
