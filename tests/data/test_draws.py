import numpy as np

from glide_jax.data.draws import generator


def numbers(*key):
    return generator(*key).random(64).tolist()


def test_a_generator_is_a_function_of_its_key():
    assert numbers(5, "crop", 7) == numbers(5, "crop", 7)


def test_seeds_streams_and_examples_never_share_numbers():
    keys = [(seed, stream, g) for seed in (0, 1, 2**31 - 1) for stream in ("crop", "hflip") for g in (0, 1, 10**15)]
    drawn = [number for key in keys for number in numbers(*key)]
    assert len(set(drawn)) == len(drawn) == 64 * 18


def test_the_first_numbers_of_consecutive_examples_are_uniform():
    first = np.array([generator(0, "uncond", g).random() for g in range(2000)])
    np.testing.assert_allclose(np.quantile(first, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.04)
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.08
