import json
import pickle
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.tokenizer import GlideTokenizer

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text())["rows"]
TEXTS = [row["text"] for row in ROWS]
TOKENIZER = GlideTokenizer()
UNICODE = st.text(st.characters(codec="utf-8"))


def texts_where(wrong):
    return [row["text"] for row in ROWS if wrong(row)]


def test_ids_equal_the_reference():
    assert len(ROWS) == 426
    assert texts_where(lambda row: TOKENIZER.encode(row["text"]) != row["ids"]) == []


def test_decoded_text_equals_the_reference():
    assert texts_where(lambda row: TOKENIZER.decode(row["ids"]) != row["decoded"]) == []


def test_padded_equals_the_reference():
    tokens, mask = TOKENIZER.padded(TEXTS)
    assert (tokens.shape, tokens.dtype) == ((426, 128), np.int32)
    assert (mask.shape, mask.dtype) == ((426, 128), np.bool_)
    lengths = np.array([row["length128"] for row in ROWS])
    np.testing.assert_array_equal(mask, np.arange(128) < lengths[:, None])
    np.testing.assert_array_equal(tokens[~mask], ROWS[0]["pad_id"])
    for row, ids in zip(ROWS, tokens, strict=True):
        assert ids[: row["length128"]].tolist() == row["ids"][:128]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(UNICODE)
def test_decode_inverts_encode_up_to_case(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text.lower()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_any_ids_decode(ids):
    text = TOKENIZER.decode(ids)
    assert text.encode("utf-8").decode("utf-8") == text
    assert TOKENIZER.decode(np.array(ids, np.int32)) == text


def test_part_of_a_character_decodes_to_the_replacement_character():
    first, *_ = TOKENIZER.encode("𓀀")
    assert TOKENIZER.decode([first]) == "\ufffd"


def test_the_end_token_is_the_last_id_and_never_comes_from_text():
    assert TOKENIZER.decode([TOKENIZER.end_token]) == "<|endoftext|>"
    assert TOKENIZER.end_token == TOKENIZER.vocab_size - 1
    assert TOKENIZER.end_token not in TOKENIZER.encode("<|endoftext|>")


def test_empty_text_is_all_padding():
    tokens, mask = TOKENIZER.padded("")
    np.testing.assert_array_equal(tokens, np.full((1, 128), 50_256))
    assert not mask.any()


def test_a_long_text_is_cut_without_an_end_token():
    text = "a corgi " * 100
    tokens, mask = TOKENIZER.padded(text, 16)
    assert tokens.tolist() == [TOKENIZER.encode(text)[:16]]
    assert mask.all()


def test_no_texts_give_an_empty_batch():
    tokens, mask = TOKENIZER.padded([], 8)
    assert tokens.shape == mask.shape == (0, 8)


def test_truncated_is_what_padded_leaves_out():
    assert TOKENIZER.truncated("A red bicycle by the sea", 3) == " by the sea"
    assert TOKENIZER.truncated("a red bicycle", 3) == ""
    assert TOKENIZER.truncated("", 3) == ""


def test_a_character_cut_in_two_counts_as_truncated():
    assert len(TOKENIZER.encode("𓀀")) > 2
    assert TOKENIZER.truncated("a red 𓀀 bird", 4) == "𓀀 bird"


@settings(max_examples=50, deadline=None, derandomize=True)
@given(UNICODE, st.integers(1, 12))
def test_truncated_is_empty_exactly_if_all_tokens_fit(text, text_ctx):
    cut = TOKENIZER.truncated(text, text_ctx)
    assert text.lower().endswith(cut)
    assert (cut == "") == (len(TOKENIZER.encode(text)) <= text_ctx)


def test_a_pickled_tokenizer_carries_no_vocabulary():
    pickled = pickle.dumps(TOKENIZER)
    assert len(pickled) < 100
    assert pickle.loads(pickled).encode("a corgi") == [64, 1162, 12397]


def test_tokens_are_found_by_the_characters_they_have_a_part_of():
    text = "A Zürich caterpillar, a cat"
    tokens, _ = TOKENIZER.padded(text, 32)
    for word in ("zürich", "caterpillar", "cat"):
        first = text.lower().rindex(word)
        found = TOKENIZER.touched(text, [(first, first + len(word))], 32)
        assert TOKENIZER.decode(tokens[0][found]).strip() == word
    assert not TOKENIZER.touched(text, [(2, 2)], 32).any()
    assert TOKENIZER.touched(text, [(0, 1), (24, 27)], 32).sum() == 2
    assert not TOKENIZER.touched(text, [(24, 27)], 3).any(), "what is cut off is not there"
