"""GLIDE's tokenizer: GPT-2's vocabulary over lower-cased text."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
import regex
from jaxtyping import Bool, Int32

from glide_jax.tokenizer.bpe import LONGEST_TOKEN, BytePairEncoding, read_rules, require_context, require_text

WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d"  # contractions
    r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"  # runs of letters, digits or the rest, with one space before
    r"|\s+(?!\S)|\s+"  # white space, less the space that belongs to the next word
)


@cache
def load_encoding() -> BytePairEncoding:
    """GPT-2's byte pair encoding, read from the package data once per process."""
    return BytePairEncoding(read_rules("vocab.bpe.gz", 50_000), WORDS, specials=["<|endoftext|>"])


class GlideTokenizer:
    """Text to the 50257 ids that GLIDE's text transformer reads (torch: `tokenizer.bpe.Encoder`).

    It holds no state: the vocabulary is loaded at the first use and shared by all instances.
    """

    vocab_size: ClassVar[int] = 50_257
    end_token: ClassVar[int] = 50_256  # serves as padding only: texts get no start or end token

    def encode(self, text: str) -> list[int]:
        """Ids of the lower-cased text, of any length, `[]` for `""`.

        Raises `GlideError` if the text is not a `str` or holds a lone surrogate.
        """
        return load_encoding().encode(require_text(text).lower())

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, so that `decode(encode(text)) == text.lower()`.

        U+FFFD stands for bytes that are not UTF-8. Raises `GlideError` if an id is outside the vocabulary.
        """
        return load_encoding().decode(ids)

    def padded(
        self, texts: str | Sequence[str], text_ctx: int = 128
    ) -> tuple[Int32[np.ndarray, "batch text_ctx"], Bool[np.ndarray, "batch text_ctx"]]:
        """Tokens cut or padded to `text_ctx`, and a mask that is True where a token comes from the text.

        A single text is a batch of one. The unconditional text is `""`: all padding, no True in its mask.
        Raises `GlideError` as `encode`, and if `text_ctx` is below 1 (torch: `padded_tokens_and_mask`).
        """
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.full((len(texts), require_context(text_ctx, 1)), self.end_token, np.int32)
        mask = np.zeros(tokens.shape, np.bool_)
        for row, text in enumerate(texts):
            ids = self._first_ids(text, text_ctx)
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def touched(
        self, text: str, spans: Sequence[tuple[int, int]], text_ctx: int = 128
    ) -> Bool[np.ndarray, " text_ctx"]:
        """At which positions of `padded` the tokens have a part of the text's characters [first, end) of any span.

        Spans count the characters of the lower-cased text. Raises `GlideError` as `padded`.
        """
        found, text = np.zeros(require_context(text_ctx, 1), np.bool_), text.lower()
        bounds = [(len(text[:first].encode()), len(text[:end].encode())) for first, end in spans]
        at = 0
        for position, token in enumerate(self._first_ids(text, text_ctx)):
            after = at + len(load_encoding().decode_bytes([token]))
            found[position] = any(max(first, at) < min(end, after) for first, end in bounds)
            at = after
        return found

    def truncated(self, text: str, text_ctx: int = 128) -> str:
        """The end of the lower-cased text that `padded` leaves out, `""` if it all fits.

        A character of which only some bytes fit counts as left out. Raises `GlideError` as `padded`.
        """
        kept = self._first_ids(text, require_context(text_ctx, 1))
        whole_characters = load_encoding().decode_bytes(kept).decode("utf-8", errors="ignore")
        return text.lower()[len(whole_characters) :]

    def _first_ids(self, text: str, count: int) -> list[int]:
        """The first ids, without a look at what no token can reach: a megabyte without blanks would take 15 s."""
        return self.encode(require_text(text)[: LONGEST_TOKEN * count])[:count]
