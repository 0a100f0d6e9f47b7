"""What tests do with a stream of batches."""

import itertools

import numpy as np

CONTEXT = 6
AUGMENTED = {"crop": "random", "resize_ratio": 0.5, "hflip_p": 0.5, "uncond_p": 0.3}


def take(stream, count):
    return list(itertools.islice(stream, count))


def assert_same(first, second):
    assert first.captions == second.captions
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
