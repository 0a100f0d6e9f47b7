"""The noised CLIP's tokenizer: CLIP's vocabulary over cleaned, lower-cased text."""

import html
from collections.abc import Iterable, Sequence
from functools import cache
from typing import ClassVar

import ftfy
import numpy as np
import regex
from jaxtyping import Int32

from glide_jax.tokenizer.bpe import LONGEST_TOKEN, BytePairEncoding, read_rules, require_context, require_text

WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d"  # contractions
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",  # a run of letters, one digit, or a run of the rest
    regex.IGNORECASE,  # still matters after lower-casing: U+017F is a lower-case letter that matches s
)


@cache
def load_encoding() -> BytePairEncoding:
    """CLIP's byte pair encoding, the first 48894 rules of a file in the package data; read once per process."""
    return BytePairEncoding(
        read_rules("bpe_simple_vocab_16e6.txt.gz", 48_894),
        WORDS,
        specials=["<|startoftext|>", "<|endoftext|>"],
        word_end="</w>",
    )


def clean(text: str) -> str:
    """The text as CLIP was trained on it: mojibake and HTML entities resolved, lower case.

    The reference also strips and collapses white space, which changes nothing: no word holds any.
    """
    return html.unescape(html.unescape(ftfy.fix_text(text))).lower()


class ClipTokenizer:
    """Text to the ids that the noised CLIP's text encoder reads (torch: `SimpleTokenizer`).

    Its 49408 ids are fewer than the encoder's 65536 embedding rows. It holds no state: the vocabulary is
    loaded at the first use and shared by all instances.
    """

    vocab_size: ClassVar[int] = 49_408
    start_token: ClassVar[int] = 49_406
    end_token: ClassVar[int] = 49_407
    pad_token: ClassVar[int] = 0  # also the id of "!": only the length tells them apart

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned text, of any length, without start and end tokens.

        A special token written out in the text becomes that token.
        Raises `GlideError` if the text is not a `str`.
        """
        return load_encoding().encode(clean(require_text(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, a space after every word; U+FFFD stands for bytes that are not UTF-8.

        Raises `GlideError` if an id is outside the vocabulary.
        """
        return load_encoding().decode(ids)

    def padded(
        self, texts: str | Sequence[str], text_ctx: int = 77
    ) -> tuple[Int32[np.ndarray, "batch text_ctx"], Int32[np.ndarray, " batch"]]:
        """Tokens of start, text cut to `text_ctx - 2`, end, padding; and lengths, start and end included.

        A single text is a batch of one. Raises `GlideError` as `encode`, and if `text_ctx` is below 2
        (torch: `padded_tokens_and_len`).
        """
        texts = [texts] if isinstance(texts, str) else texts
        tokens = np.full((len(texts), require_context(text_ctx, 2)), self.pad_token, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            seen = require_text(text)[: LONGEST_TOKEN * text_ctx]
            ids = [self.start_token, *self.encode(seen)[: text_ctx - 2], self.end_token]
            tokens[row, : len(ids)] = ids
            lengths[row] = len(ids)
        return tokens, lengths
