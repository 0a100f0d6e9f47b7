import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.tokenizer import ClipTokenizer

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text())["rows"]
TOKENIZER = ClipTokenizer()


def test_ids_equal_the_reference():
    assert len(ROWS) == 426
    assert [row["text"] for row in ROWS if TOKENIZER.encode(row["text"]) != row["clip_ids"]] == []


def test_padded_tokens_and_lengths_equal_the_reference():
    tokens, lengths = TOKENIZER.padded([row["text"] for row in ROWS])
    assert tokens.dtype == lengths.dtype == np.int32
    np.testing.assert_array_equal(tokens, [row["clip_padded77"] for row in ROWS])
    np.testing.assert_array_equal(lengths, [row["clip_len"] for row in ROWS])


def test_a_single_text_is_a_batch_of_one():
    tokens, lengths = TOKENIZER.padded("a corgi", 6)
    assert tokens.tolist() == [[49_406, 320, 31_320, 49_407, 0, 0]]
    assert lengths.tolist() == [4]


def test_a_long_text_keeps_its_start_and_end_tokens():
    tokens, lengths = TOKENIZER.padded("a corgi " * 100, 5)
    assert tokens.tolist() == [[49_406, 320, 31_320, 320, 49_407]]
    assert lengths.tolist() == [5]


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("a schÃ¶n corgi", "a schön corgi"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        (" a\t\ncorgi\u3000", "a corgi"),
        ("a\ud800corgi", "a\ufffdcorgi"),
    ],
)
def test_text_is_fixed_and_unescaped_and_white_space_ignored(text, same_as):
    assert TOKENIZER.encode(text) == TOKENIZER.encode(same_as)


def test_unescaping_stops_after_two_rounds():
    # ftfy leaves entities alone in a text that has a "<"
    assert TOKENIZER.decode(TOKENIZER.encode("< &amp;amp;amp;")) == "< & amp ; "


def test_special_tokens_written_out_in_a_text_become_themselves():
    assert TOKENIZER.encode("<|StartOfText|> <|endoftext|>") == [TOKENIZER.start_token, TOKENIZER.end_token]
    assert TOKENIZER.decode([TOKENIZER.start_token, TOKENIZER.end_token]) == "<|startoftext|><|endoftext|>"


def test_contractions_match_without_regard_to_case():
    long_s = "\u017f"  # lower-case already, and equal to "s" without regard to case
    assert TOKENIZER.decode(TOKENIZER.encode(f"'{long_s} dog")) == f"'{long_s} dog "


def test_decode_separates_words_by_spaces():
    assert TOKENIZER.decode(TOKENIZER.encode("A corgi, 12 o'clock")) == "a corgi , 1 2 o ' clock "


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text())
def test_tokens_and_lengths_are_well_formed_for_any_text(text):
    tokens, lengths = TOKENIZER.padded(text)
    length = int(lengths[0])
    assert tokens.shape == (1, 77)
    assert 2 <= length <= 77
    assert tokens[0, 0] == TOKENIZER.start_token
    assert tokens[0, length - 1] == TOKENIZER.end_token
    assert not tokens[0, length:].any()
