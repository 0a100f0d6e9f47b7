"""Captions and text files as people's programs write them."""

import json
import math
import os

import numpy as np
import pytest

from glide_jax.data.check import survey
from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.filters import Filters, report_unlabelled
from glide_jax.data.shards.patterns import find_shards, find_streams
from glide_jax.data.source import BadSample, usable_captions
from glide_jax.data.sources.folder import Folder
from glide_jax.data.sources.webdataset import WebDataset
from glide_jax.errors import GlideError
from glide_jax.files import lines, read_text
from tests.data.test_filters import facts

NAN = math.nan
ODD_SPACES = "a\u2028b\x0bc\x0cd\x85e"


@pytest.mark.parametrize("value", [NAN, math.inf, True, False, {"en": "a cat"}, None, "", " \n", [], [None]])
def test_json_values_that_are_no_caption_leave_it_to_the_next_key(write_shard, value):
    path = write_shard("a.tar", [{"png": b"0", "txt": "the text", "json": {"caption": value}}])
    both = WebDataset(DataConfig(path=str(path), caption_key="json:caption;txt"))
    assert both[0].captions == ("the text",)
    with pytest.raises(GlideError, match="empty caption: 1"):
        WebDataset(DataConfig(path=str(path), caption_key="json:caption"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a cat", " ein Hund ", "", None, NAN], ("a cat", "ein Hund")),
        (12, ("12",)),
        (1.5, ("1.5",)),
        (" a cat ", ("a cat",)),
        (b"\xef\xbb\xbfa cat\n", ("a cat",)),
    ],
)
def test_what_is_a_caption(value, expected):
    assert usable_captions(value) == expected


def test_a_list_in_json_is_several_captions(write_shard):
    path = write_shard("a.tar", [{"png": b"0", "json": {"caption": ["a cat", "a small cat"]}}])
    assert WebDataset(DataConfig(path=str(path), caption_key="json:caption"))[0].captions == ("a cat", "a small cat")


@pytest.mark.parametrize("value", ["half a pair \ud800", b"\xff\xfe", ["good", "\udcff"]])
def test_text_that_utf_8_cannot_write_is_a_bad_sample(value):
    with pytest.raises(BadSample, match="caption is not UTF-8"):
        usable_captions(value)


def test_a_file_name_in_another_encoding_is_one_bad_sample(tmp_path, numbered):
    for name in (b"a_red_dog.png", b"caf\xe9.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:  # noqa: PTH118, PTH123 - bytes
            file.write(numbered(0)["png"])
    source = Folder(DataConfig(source="folder", path=str(tmp_path), caption_key="filename"))
    found = survey(source)
    assert found.faults == {"caption is not UTF-8": [rf"{tmp_path}/caf\xe9.png"]}
    assert len(found.widths) == 1


def test_only_line_ends_end_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(b"0")
    (tmp_path / "a.txt").write_bytes(f"{ODD_SPACES}\r\ntwo\rthree\n".encode())
    expected = (ODD_SPACES, "two", "three")
    assert Folder(DataConfig(source="folder", path=str(tmp_path)))[0].captions == expected
    assert lines(read_text(tmp_path / "a.txt", "--prompt_file")) == list(expected)
    assert lines("") == lines(" \n\r\n ") == []


def test_a_byte_order_mark_is_no_text(tmp_path, numbered_shards):
    shard = find_shards(numbered_shards)[0]
    (tmp_path / "list.txt").write_text(f"{shard}\n", encoding="utf-8-sig")
    assert find_shards(str(tmp_path / "list.txt")) == [shard]
    assert find_streams(str(tmp_path / "list.txt")) == [str(shard)]
    (tmp_path / "prompts.txt").write_text("a cat", encoding="utf-8-sig")
    assert lines(read_text(tmp_path / "prompts.txt", "--prompt_file")) == ["a cat"]


@pytest.mark.parametrize("content", [None, b"\xff\xfea\0"])
def test_a_text_file_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GlideError, match=f"^cannot read --prompt_file {path}: .+$"):
        read_text(path, "--prompt_file")


def test_samples_without_a_label_pass_and_it_is_said(write_shard, capsys):
    nsfw = FilterConfig(nsfw_labels=("NSFW",))

    def opened(*samples):
        source = WebDataset(DataConfig(path=str(write_shard("a.tar", samples)), filters=nsfw, revalidate=True))
        assert not capsys.readouterr().out
        return len(source), dict(source.counts)

    plain, labelled = {"png": b"0", "txt": "one"}, {"png": b"0", "txt": "one", "json": {"NSFW": "UNLIKELY"}}
    assert opened(plain, plain | {"json": {}}, plain | {"json": {"NSFW": None}}) == (3, {})
    path = str(write_shard("b.tar", [plain, labelled, plain | {"json": {"NSFW": "nsfw"}}]))
    for _ in range(2):  # from the cache too
        report_unlabelled.cache_clear()
        assert len(WebDataset(DataConfig(path=path, filters=nsfw))) == 2
        assert "1 of 2 samples have no NSFW label and pass" in capsys.readouterr().err
    assert len(WebDataset(DataConfig(path=path, filters=nsfw))) == 2
    assert not capsys.readouterr().err, "it is said once"
    assert len(WebDataset(DataConfig(path=str(write_shard("c.tar", [plain])), preset="simple", filters=nsfw))) == 1
    assert "no NSFW labels in this data set" in capsys.readouterr().err
    assert len(WebDataset(DataConfig(path=str(write_shard("d.tar", [labelled])), filters=nsfw))) == 1
    assert "NSFW" not in capsys.readouterr().err


VALUES = [
    None,
    True,
    0,
    -1,
    512,
    1e308,
    10**400,
    NAN,
    "x",
    "512",
    "\ud800",
    [],
    [1],
    {},
    {"a": 1},
    ["a", None],
]


def documents(seed, count):
    """JSON documents of every kind of value in the fields that are read, and damaged ones."""
    random = np.random.default_rng(seed)
    names = ["original_width", "original_height", "similarity", "NSFW", "LANGUAGE", "caption", "score", "key"]
    for _ in range(count):
        fields = {name: VALUES[random.integers(len(VALUES))] for name in names if random.random() < 0.8}
        data = bytearray(json.dumps(fields).encode())
        match random.integers(5):
            case 0:
                del data[random.integers(len(data)) :]
            case 1:
                for at in random.integers(len(data), size=3):
                    data[at] = random.integers(256)
            case 2:
                data = bytearray(b"[" * random.integers(1, 100_000))
        yield bytes(data)


@pytest.mark.parametrize("seed", range(5))
def test_any_metadata_is_a_verdict(seed):
    """5,000 documents in all."""
    bounds = FilterConfig(
        min_size=2, max_aspect=2.0, min_similarity=0.1, nsfw_labels=("NSFW",), languages=("en",), skip_words=("logo",)
    )
    verdicts = set()
    for data in documents(seed, 1000):
        verdicts.add(Filters(bounds).rejection(facts(data)))
    assert {"unreadable metadata", "missing metadata", "language"} <= verdicts
    assert all(verdict is None or "\n" not in verdict for verdict in verdicts)


def test_any_metadata_is_a_sample_or_counted(write_shard, tmp_path, numbered):
    found = list(documents(7, 60))
    listed = tmp_path / "captions.jsonl"
    listed.write_bytes(b"\n".join(data.replace(b"\n", b" ") for data in found))
    shard = write_shard("a.tar", [numbered(0, json=data) for data in found])
    keys = "json:caption;jsonl:caption@score;txt"
    filters = FilterConfig(min_size=1, max_aspect=9.0)
    config = DataConfig(path=str(shard), preset="laion", captions_jsonl=str(listed), caption_key=keys, filters=filters)
    source = WebDataset(config)
    assert len(source) + source.counts.total() == 60
    assert all(all(sample.captions) for sample in source)
