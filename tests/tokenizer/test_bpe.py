import gzip
import hashlib
import time
import tracemalloc
from functools import cache
from importlib import resources
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.errors import GlideError
from glide_jax.tokenizer import ClipTokenizer, GlideTokenizer, bpe, clip, glide
from glide_jax.tokenizer.bpe import BytePairEncoding, byte_alphabet, read_rules

GLIDE, CLIP = GlideTokenizer(), ClipTokenizer()
DATA = resources.files("glide_jax.tokenizer").joinpath("data")
SHA256_OF_UNPACKED = {
    "vocab.bpe.gz": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "bpe_simple_vocab_16e6.txt.gz": "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8",
}
SHA256_OF_CLIP_FILE = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("filename", SHA256_OF_UNPACKED)
def test_vocabulary_is_the_published_one(filename):
    unpacked = gzip.decompress(DATA.joinpath(filename).read_bytes())
    assert sha256(unpacked) == SHA256_OF_UNPACKED[filename]


def test_clip_vocabulary_file_is_the_published_one_byte_for_byte():
    assert sha256(DATA.joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()) == SHA256_OF_CLIP_FILE


@pytest.mark.parametrize(
    ("licence", "filename"),
    [
        ("LICENSE-gpt2-vocabulary", "vocab.bpe.gz"),
        ("LICENSE-clip-vocabulary", "bpe_simple_vocab_16e6.txt.gz"),
    ],
)
def test_each_vocabulary_has_its_licence_beside_it(licence, filename):
    text = DATA.joinpath(licence).read_text(encoding="utf-8")
    assert text.startswith(filename)
    assert "Copyright (c) 2021 OpenAI" in text
    assert "Permission is hereby granted" in text


@pytest.mark.parametrize(
    ("filename", "count", "load", "vocab_size"),
    [
        ("vocab.bpe.gz", 50_000, glide.load_encoding, 50_257),
        ("bpe_simple_vocab_16e6.txt.gz", 48_894, clip.load_encoding, 49_408),
    ],
)
def test_rules_fill_the_vocabulary(filename, count, load, vocab_size):
    assert len(read_rules(filename, count)) == count
    assert load().vocab_size == vocab_size


def test_alphabet_is_one_visible_character_per_byte():
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert all(len(character) == 1 and character.isprintable() for character in alphabet.values())
    assert not any(character.isspace() for character in alphabet.values())
    assert (alphabet[ord("a")], alphabet[ord(" ")], alphabet[0]) == ("a", "Ġ", "Ā")


@cache
def gpt2_ranks():
    return {tuple(rule.split(" ")): rank for rank, rule in enumerate(read_rules("vocab.bpe.gz", 50_000))}


def merged_one_rule_at_a_time(word, ranks):
    """The textbook algorithm on symbol strings: the best rule everywhere from the left, then the next."""
    while candidates := [pair for pair in pairwise(word) if pair in ranks]:
        best = min(candidates, key=ranks.__getitem__)
        at, merged = 0, []
        while at < len(word):
            step = 2 if tuple(word[at : at + 2]) == best else 1
            merged.append("".join(word[at : at + step]))
            at += step
        word = merged
    return word


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text("etaoinsr", min_size=1, max_size=60) | st.text("a=-", min_size=1, max_size=40))
def test_merging_equals_the_textbook_algorithm(word):
    encoding, ranks = glide.load_encoding(), gpt2_ranks()
    parts = glide.WORDS.findall(word)
    expected = [symbol for part in parts for symbol in merged_one_rule_at_a_time(list(part), ranks)]
    assert [encoding.decode([token]) for token in encoding.encode(word)] == expected


def test_earlier_rules_win_and_equal_ones_go_from_the_left():
    encoding = BytePairEncoding(["b c", "a b", "a a"], regex.compile(r"\w+"), specials=["<end>"])
    b_c, a_b, a_a, end = range(256, 260)
    byte = {character: index for index, character in enumerate(byte_alphabet().values())}
    assert encoding.encode("abc") == [byte["a"], b_c]
    assert encoding.encode("ab") == [a_b]
    assert encoding.encode("aaa") == [a_a, byte["a"]]
    assert encoding.decode([a_a, b_c, end]) == "aabc<end>"


def test_a_word_end_mark_makes_other_ids_and_reads_as_a_space():
    encoding = BytePairEncoding(["a b</w>", "a b"], regex.compile(r"\w+"), specials=[], word_end="</w>")
    assert encoding.encode("ab") == [512]
    assert encoding.encode("abab") == [513, 512]
    assert encoding.decode([513, 512]) == "abab "


def test_memory_is_bounded_in_words_and_in_word_length(monkeypatch):
    monkeypatch.setattr(bpe, "CACHED_WORDS", 100)
    encoding = BytePairEncoding([], regex.compile(r"\w+"), specials=[])
    tracemalloc.start()
    try:
        for i in range(500):
            encoding.encode(f"{i:060}")
        for i in range(4):
            encoding.encode(f"{i:020000}")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 20_000 < held < 200_000  # a hundred of the short words


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GLIDE.encode(b"a corgi"), "text must be a str, got bytes; decode or convert it first"),
        (lambda: GLIDE.padded(["a corgi", None]), "text must be a str, got NoneType"),
        (lambda: GLIDE.encode("a \ud800"), "lone surrogate U+D800; give valid Unicode"),
        (lambda: GLIDE.decode([64, 50_257]), "token id 50257 is outside the vocabulary"),
        (lambda: GLIDE.decode([-1]), "token id -1 is outside the vocabulary; give ids from 0 to 50256"),
        (lambda: GLIDE.decode([1.5]), "token ids must be integers, got float"),
        (lambda: GLIDE.padded("a corgi", 0), "text_ctx is 0; give at least 1"),
        (lambda: GLIDE.truncated("a corgi", -1), "text_ctx is -1; give at least 1"),
        (lambda: CLIP.encode(7), "text must be a str, got int; decode or convert it first"),
        (lambda: CLIP.decode([49_408]), "token id 49408 is outside the vocabulary"),
        (lambda: CLIP.padded("a corgi", 1), "text_ctx is 1; give at least 2"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(GlideError) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("tokenizer", [GLIDE, CLIP])
def test_a_megabyte_without_blanks_is_cut_before_it_is_read(tokenizer):
    begun = time.monotonic()
    tokens, _ = tokenizer.padded("ab" * 500_000, 32)
    assert time.monotonic() - begun < 3
    assert (tokens == tokenizer.padded("ab" * 5000, 32)[0]).all()
