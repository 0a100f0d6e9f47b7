"""Host random numbers as a pure function of (seed, stream name, example): the NumPy side of `randomness`."""

import zlib

import numpy as np


def generator(seed: int, stream: str, example: int) -> np.random.Generator:
    """A Philox generator of its own for one stream ("crop", "uncond", ...) and one global example index.

    The seed and the stream make the key, the index the upper half of the counter, so no two overlap.
    """
    key = seed << 32 | zlib.crc32(stream.encode())
    return np.random.Generator(np.random.Philox(key=key, counter=example << 128))
