"""Prompts that are more than one text: weights of words, and the way from one to another."""

import jax
import numpy as np
import pytest

from glide_jax.errors import GlideError
from glide_jax.sample import Blend, Inputs, Pipeline, interpolated, texts, weighted
from glide_jax.sample.conditioning import Conditioner
from glide_jax.sample.prompts import Text, parts
from tests.tiny.models import random_clip, random_model


@pytest.fixture(scope="module")
def loaded():
    return random_model()


@pytest.fixture(scope="module")
def encoded(loaded):
    """What the model is given of a prompt, as one vector."""
    conditioner = Conditioner(loaded.stage.model, None, None, 1000)

    def encode(prompt):
        text = conditioner.arguments(loaded.params, Inputs([prompt], [0]), None, 0).conditioning.text
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(text)])

    return encode


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a red bicycle: New", "a red bicycle: New"),
        (r"a \(Red:2\) bicycle, \new", r"a (Red:2) bicycle, \new"),
        ("a (Red:1) bicycle", "a Red bicycle"),
        ("", ""),
    ],
)
def test_a_prompt_without_weights_stays_a_text(prompt, text):
    assert weighted(prompt) == text


def test_weights_are_taken_out_of_the_text():
    prompt = weighted(r"A (Red : 1.5) bicycle on (GRASS:0)")
    assert str(prompt) == "A (Red : 1.5) bicycle on (GRASS:0)"
    assert texts([prompt, "a dog"]) == ["a red  bicycle on grass", "a dog"]
    assert parts(prompt) == (
        (Text("a red  bicycle on grass"), 0.5),
        (Text("a red  bicycle on grass", ((2, 6),)), -0.5),
        (Text("a red  bicycle on grass", ((18, 23),)), 1.0),
    )


def test_words_may_hold_colons_and_brackets():
    assert weighted(r"at (10:30 \(UTC\):2)").parts[1] == (Text("at 10:30 (utc)", ((3, 14),)), -1.0)


@pytest.mark.parametrize(
    "wrong",
    ["a (cat:much)", "a (cat:)", "a (cat:inf)", "a (cat)", "a (:2)", "a ( :2)", "a ((red:2) cat:2)", "a (cat:2",
     "a) cat", "(cat:1_0)", "(cat:٣)"],
)  # fmt: skip
def test_brackets_must_be_words_and_a_number(wrong):
    with pytest.raises(GlideError, match=r"brackets must be as \(red:1.5\)") as caught:
        weighted(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["100.1", "-101", "1" * 400])
def test_a_weight_is_bounded(number):
    with pytest.raises(GlideError, match="must be from -100 to 100"):
        weighted(f"a (cat:{number})")


def test_weights_lead_from_the_text_without_the_words_through_it(encoded):
    whole, without = encoded("a red cat"), encoded(weighted("a (red:0) cat"))
    assert np.abs(whole - without).max() > 0.01
    assert np.abs(without - encoded("a cat")).max() > 0.01, "the words after it keep their places"
    np.testing.assert_allclose(encoded(weighted("a (red:1.5) cat")), whole + (whole - without) / 2, atol=1e-5)
    np.testing.assert_allclose(encoded(weighted("a (red:3) cat")), whole + 2 * (whole - without), atol=1e-5)


def test_words_not_seen_are_padding(encoded):
    np.testing.assert_allclose(encoded(weighted("(a red cat:0)")), encoded(""), atol=1e-6)


def test_a_prompt_becomes_another_step_by_step(encoded):
    way = interpolated(["a cat", "a dog", weighted("a (big:2) hat")], 3)
    assert [str(prompt) for prompt in way] == [
        "a cat", "50% a cat\n50% a dog", "a dog", "50% a dog\n50% a (big:2) hat", "a (big:2) hat",
    ]  # fmt: skip
    values = [encoded(prompt) for prompt in way]
    for start in (0, 2):
        np.testing.assert_allclose(values[start + 1], (values[start] + values[start + 2]) / 2, atol=1e-6)
    for prompts, count in ((["a cat"], 3), (["a cat", "a dog"], 1)):
        with pytest.raises(GlideError, match="needs two prompts or more"):
            interpolated(prompts, count)


def test_a_quarter_of_the_way_is_a_quarter(encoded):
    first, second = encoded("a cat"), encoded("a dog")
    np.testing.assert_allclose(encoded(interpolated(["a cat", "a dog"], 5)[1]), 0.75 * first + 0.25 * second, atol=1e-6)


def test_images_are_generated_of_them(loaded):
    way = interpolated(["a cat", "a dog"], 3)
    generated = Pipeline(loaded)(way, indices=[0, 0, 0], num_steps=2, seed=3)
    assert generated.prompts == [str(prompt) for prompt in way]
    np.testing.assert_array_equal(generated.images[0], Pipeline(loaded)("a cat", num_steps=2, seed=3).images[0])
    assert (generated.images[1] != generated.images[0]).any()
    alone = Pipeline(loaded)(way[1], num_steps=2, seed=3, negative_prompt=weighted("(a hat:0.5)"))
    assert alone.images.shape == (1, *generated.images.shape[1:])


def test_the_noised_clip_reads_plain_prompts_only():
    pipeline = Pipeline(random_model(clip=True), clip=random_clip())
    with pytest.raises(GlideError, match="reads plain prompts"):
        pipeline(Blend("x", parts("a cat")), num_steps=2, clip_guidance_scale=1.0)
