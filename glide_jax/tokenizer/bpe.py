"""Byte-level byte pair encoding over integer ids, shared by GLIDE's and CLIP's tokenizers."""

import gzip
import heapq
import operator
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from itertools import pairwise

import regex

from glide_jax.errors import GlideError

CACHED_WORDS = 2**16
LONGEST_TOKEN = 256  # characters, twice what the vocabularies hold; what lies beyond is not looked at
LONGEST_CACHED_WORD = 64  # characters; with CACHED_WORDS it bounds the cache's memory


class BytePairEncoding:
    """A vocabulary of bytes, merges and special strings, with ids given in that order.

    Every merge rule adds one id, so the id of a merge is also its rank: the possible merge with the smallest
    id is done first, and the leftmost of equal ones (torch: `Encoder.bpe`, `SimpleTokenizer.bpe`).

    Args:
        rules: merges in rank order, each two symbols separated by a space, as vocabulary files write them.
        pattern: compiled expression whose matches are the words of a text; merges never cross words.
        specials: strings with an id of their own, looked up before merging if `pattern` makes them a word.
        word_end: mark of a word's last symbol in `rules`, decoded as a space; it doubles the ids of bytes.
    """

    def __init__(
        self,
        rules: Iterable[str],
        pattern: regex.Pattern[str],
        specials: Sequence[str],
        word_end: str = "",
    ) -> None:
        alphabet = byte_alphabet()
        symbols = list(alphabet.values())
        self._token_bytes = [bytes([byte]) for byte in alphabet]
        if word_end:
            symbols += [symbol + word_end for symbol in symbols]
            self._token_bytes += [token + b" " for token in self._token_bytes]
        self._byte_ids = {byte: index for index, byte in enumerate(alphabet)}
        self._word_end_offset = len(alphabet) if word_end else 0
        self._merges = self._add_merges(rules, {symbol: index for index, symbol in enumerate(symbols)})
        self._specials = {text: len(self._token_bytes) + index for index, text in enumerate(specials)}
        self._token_bytes += [text.encode() for text in specials]
        self._words = pattern.findall
        self._cached_word_ids = lru_cache(CACHED_WORDS)(self._word_ids)

    def _add_merges(self, rules: Iterable[str], symbol_ids: dict[str, int]) -> dict[tuple[int, int], int]:
        merges = {}
        for rule in rules:
            left, right = rule.split(" ")
            pair = symbol_ids[left], symbol_ids[right]
            merges[pair] = symbol_ids[left + right] = len(self._token_bytes)
            self._token_bytes.append(self._token_bytes[pair[0]] + self._token_bytes[pair[1]])
        return merges

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return len(self._token_bytes)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as it stands; raises `GlideError` for a lone surrogate, which has no UTF-8 bytes."""
        ids: list[int] = []
        try:
            for word in self._words(text):
                word_ids = self._cached_word_ids if len(word) <= LONGEST_CACHED_WORD else self._word_ids
                ids += word_ids(word)
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(error.object[error.start]):04X}"
            raise GlideError(f"text holds the lone surrogate {surrogate}; give valid Unicode") from error
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids, with U+FFFD where their bytes are not UTF-8; raises as `decode_bytes`."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; raises `GlideError` for one that is no integer or not in the vocabulary."""
        return b"".join([self._token_bytes[self._checked(token)] for token in ids])

    def _checked(self, token: int) -> int:
        try:
            index = operator.index(token)
        except TypeError as error:
            raise GlideError(f"token ids must be integers, got {type(token).__name__}") from error
        if not 0 <= index < self.vocab_size:
            last = self.vocab_size - 1
            raise GlideError(f"token id {index} is outside the vocabulary; give ids from 0 to {last}")
        return index

    def _word_ids(self, word: str) -> tuple[int, ...]:
        if word in self._specials:
            return (self._specials[word],)
        ids = [self._byte_ids[byte] for byte in word.encode("utf-8")]
        ids[-1] += self._word_end_offset
        return self._merge(ids)

    def _merge(self, ids: list[int]) -> tuple[int, ...]:
        """Merges a word's symbols in O(n log n): captions in scripts without spaces are single long words.

        Symbols keep their places, linked to their neighbours; a merge overwrites the left one and kills the
        right one. A queued merge whose symbols have changed since is stale and is dropped at its turn.
        """
        dead = -1  # an id in no merge; one more stands beyond both ends, as index -1 is the last place
        merges, end = self._merges, len(ids)
        queue = [(merges[pair], at) for at, pair in enumerate(pairwise(ids)) if pair in merges]
        heapq.heapify(queue)
        ids.append(dead)
        before, after = list(range(-1, end)), [*range(1, end + 1), end]
        while queue:
            merged, left = heapq.heappop(queue)
            right = after[left]
            if merges.get((ids[left], ids[right])) != merged:
                continue
            ids[left], ids[right] = merged, dead
            after[left] = after[right]
            before[after[left]] = left
            for at in (before[left], left):
                candidate = merges.get((ids[at], ids[after[at]]))
                if candidate is not None:
                    heapq.heappush(queue, (candidate, at))
        return tuple([token for token in ids if token != dead])


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in vocabulary files, in id order (torch: `bytes_to_unicode`).

    Printable Latin-1 characters stand for themselves; the other 68 bytes take characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_rules(filename: str, count: int) -> list[str]:
    """The first `count` merge rules of a vocabulary in this package's data, whose first line is a version."""
    packed = resources.files(__package__).joinpath("data", filename).read_bytes()
    return gzip.decompress(packed).decode("utf-8").split("\n", count + 1)[1 : count + 1]


def require_text(text: object) -> str:
    """The text itself; raises `GlideError` if it is not a `str`."""
    if not isinstance(text, str):
        raise GlideError(f"text must be a str, got {type(text).__name__}; decode or convert it first")
    return text


def require_context(text_ctx: int, least: int) -> int:
    """The context length itself; raises `GlideError` if it is shorter than `least` tokens."""
    if text_ctx < least:
        raise GlideError(f"text_ctx is {text_ctx}; give at least {least}")
    return text_ctx
