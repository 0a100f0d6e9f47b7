"""Random numbers on the host, keyed by (seed, stream, example), and the order of samples they give."""

import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

_ROUNDS = 6
_WORD = 2**64 - 1


class _Key(ISeedSequence):
    """Passes Philox its key: `Philox(key=...)` would also ask the system for entropy, and take three times as long."""

    def __init__(self, key: int) -> None:
        self._words = np.array([key, 0], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The two words of a key."""
        return self._words


def generator(seed: int, stream: str, example: int) -> np.random.Generator:
    """A separate Philox generator for a stream ("crop", "uncond", ...) and a global example index.

    Seed and stream make the key, and the index is the upper half of the counter, so no two overlap.
    """
    key = _Key(seed << 32 | zlib.crc32(stream.encode()))
    counter = np.array([0, 0, example, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key, counter=counter))  # type: ignore[arg-type]  # NumPy's stub is narrow


class Order:
    """Numbers in [0, size) for an endless index; each epoch of `size` indices holds every number once.

    A Feistel network of 6 rounds, keyed by seed, stream and epoch, permutes the smallest 4^k >= size numbers; a result
    outside [0, size) is permuted again until it is inside (cycle walking, Black and Rogaway 2002). So any position in
    any epoch costs the same few microseconds, and no memory.
    """

    def __init__(self, size: int, seed: int, stream: str = "order") -> None:
        self._size, self._seed, self._stream = size, seed, stream
        self._half_bits = max(1, -(-(size - 1).bit_length() // 2))
        self._round_keys = lru_cache(maxsize=4)(self._sample_round_keys)

    def __getitem__(self, example: int) -> int:
        epoch, number = divmod(example, self._size)
        keys = self._round_keys(epoch)
        number = self._permute(number, keys)
        while number >= self._size:
            number = self._permute(number, keys)
        return number

    def _sample_round_keys(self, epoch: int) -> list[int]:
        words = generator(self._seed, self._stream, epoch).integers(_WORD, size=_ROUNDS, dtype=np.uint64, endpoint=True)
        return [int(word) for word in words]

    def _permute(self, number: int, keys: list[int]) -> int:
        half = self._half_bits
        mask = (1 << half) - 1
        left, right = number >> half, number & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return left << half | right


def _mix(word: int) -> int:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit changes about half of the 64 output bits."""
    word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ word >> 27) * 0x94D049BB133111EB) & _WORD
    return word ^ word >> 31
