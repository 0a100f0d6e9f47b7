"""Attention maps of words: which tokens they are of, and what is shown of them."""

import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.sample import Inputs, attention_maps, check_words, heat_map
from tests.tiny.models import BASE, random_model

SIDE = BASE.image_size


def test_the_maps_of_all_words_are_those_of_all_tokens():
    loaded, prompts = random_model(), ["a red cat", "one cat"]
    images = np.random.RandomState(0).randint(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)
    cat, both = attention_maps(loaded, images, prompts, ["Cat", "cat"])
    np.testing.assert_array_equal(cat, both)
    assert cat.shape == (2, SIDE, SIDE)
    assert (cat > 0).all()
    assert cat.std() > 1e-5
    words = attention_maps(loaded, images[:1], prompts[:1], ["a", "red", "cat", "a red cat"])
    np.testing.assert_allclose(words[:3].sum(axis=0), words[3], rtol=1e-5)
    np.testing.assert_allclose(words[2, 0], cat[0], rtol=1e-4, err_msg="alone or beside others")
    looked = Inputs(prompts[:1], [0], init_image=images[:1].astype(np.float32) / 127.5 - 1)
    every = loaded.stage.text_attention(loaded.params, looked)
    np.testing.assert_allclose(every[..., :3].sum(axis=-1)[0], words[3, 0], rtol=1e-4)
    assert (every.sum(axis=-1) < 1).all()


@pytest.mark.parametrize("word", ["dog", "", " ", "ca t", "cat", "at", "nine"])
def test_a_word_must_be_in_what_the_model_sees_of_a_prompt(word):
    with pytest.raises(GlideError, match="no attention map"):
        check_words(["cats: one two three four five six seven eight nine"], [word], random_model())


@pytest.mark.parametrize(("prompt", "word"), [("cats, one two", "CATS"), ("cats, one two", "one two"), ("猫猫", "猫")])
def test_words_are_found_whole_or_within_a_run_of_letters(prompt, word):
    check_words([prompt], [word], random_model())


def test_a_word_that_stands_alone_is_not_sought_in_others():
    loaded = random_model()
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    maps = attention_maps(loaded, images, ["a hat, that"], ["hat", "that", "a hat, that", "a", ","])
    np.testing.assert_allclose(maps[2], maps[[0, 1, 3, 4]].sum(axis=0), rtol=1e-5)


def test_the_map_is_laid_over_the_image_in_colours():
    image = np.full((16, 16, 3), 200, np.uint8)
    share = np.zeros((8, 8), np.float32)
    share[:, 4:] = 0.01
    shown = heat_map(image, share).astype(int)
    assert shown.shape == image.shape
    assert (shown[:, :3].sum(axis=-1) < shown[:, 13:].sum(axis=-1)).all()
    assert (heat_map(image, np.ones((8, 8), np.float32)) == heat_map(image, np.zeros((8, 8), np.float32))).all()
