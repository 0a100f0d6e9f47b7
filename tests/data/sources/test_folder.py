import itertools

import numpy as np
import pytest

from glide_jax.data.config import DataConfig, FilterConfig
from glide_jax.data.loader import open_data
from glide_jax.data.source import BadSample
from glide_jax.data.sources.folder import Folder
from glide_jax.errors import GlideError


@pytest.fixture
def write(tmp_path):
    """Writes files below a folder, a name and its bytes or text each, and returns the folder."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(tmp_path / "set")

    return write


def open_folder(path, **options):
    return Folder(DataConfig(source="folder", path=path, **options))


def test_images_are_paired_with_their_captions_in_order(write):
    path = write(
        {
            "b/2.PNG": b"2",
            "b/2.TXT": "two\n\n  deux \n",
            "a/x/1.Jpg": b"1",
            "a/x/1.txt": "one",
            "a/x/notes.md": "",
            "0.jpeg": b"0",
            "0.txt": "zero",
            ".hidden/3.png": b"3",
        }
    )
    source = open_folder(path)
    assert [source[i] for i in range(len(source))] == [
        (b"0", ("zero",)),
        (b"1", ("one",)),
        (b"2", ("two", "deux")),
    ]
    assert not source.counts


def test_captions_may_be_in_one_file_as_hugging_face_has_them(write):
    lines = [
        '{"file_name": "a/1.png", "text": "one"}', '{"file_name": "a/1.png", "text": "again"}', "no JSON",
        '{"file_name": "2.png", "text": ["two", "deux"]}', '{"file_name": "3.png"}', '{"text": "no name"}',
        '{"file_name": 5, "text": ""}', '{"file_name": "4_of_them.png", "text": "four"}', "[]",
    ]  # fmt: skip
    lines.append('{"file_name": "6.png", "text": "gone"}')
    images = ("a/1.png", "2.png", "3.png", "4_of_them.png", "5_a_fox.png")
    path = write({"metadata.jsonl": "\n".join(lines), "4_of_them.txt": "its own", **dict.fromkeys(images, b"0")})
    given = {"captions_jsonl": f"{path}/../set/metadata.jsonl"}
    source = open_folder(path, caption_key="jsonl:text", **given)
    assert [source[i].captions for i in range(len(source))] == [("two", "deux"), ("four",), ("one",)]
    assert source.counts == {"missing caption": 2, "line without an image": 1}
    source = open_folder(path, caption_key="txt;jsonl:text;filename", **given)
    assert [source[i].captions[0] for i in range(len(source))] == ["two", "3", "its own", "a fox", "one"]
    other = write({"other/metadata.jsonl": '{"file_name": "other/1.png", "text": "a"}', "other/1.png": b"1"}) + "/other"
    elsewhere = (
        rf"\(missing caption: 1, line without an image: 1\); a file_name is a path .*: {other}/other/1.png is not"
    )
    with pytest.raises(GlideError, match=elsewhere):
        open_folder(other, caption_key="jsonl:text", captions_jsonl=f"{other}/metadata.jsonl")
    # Listed images of other folders, and second ones of a stem, are no faults.
    lines = [f'{{"file_name": "{image}", "text": "a"}}' for image in ("a/1.jpg", "a/1.png", "b/2.png")]
    path = write({"all.jsonl": "\n".join(lines), "a/1.jpg": b"1"})
    source = open_folder(f"{path}/a", caption_key="jsonl:text", captions_jsonl=f"{path}/all.jsonl")
    assert source.counts == {"stem clash": 1}
    with pytest.raises(GlideError, match=r"captions may be in .*metadata\.jsonl: give caption_key=jsonl:text and"):
        open_folder(write({"other/metadata.jsonl": "", "other/1.png": b"1"}) + "/other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_key": "jsonl:text"}, r"give --config\.data\.captions_jsonl=FILE"),
        ({"caption_key": "jsonl:text", "captions_jsonl": "/nowhere.jsonl"}, "/nowhere.jsonl"),
        ({"caption_key": "jsonl:a;jsonl:b"}, "txt, jsonl:FIELD or filename"),
        ({"captions_jsonl": "/nowhere.jsonl"}, "data.captions_jsonl is not used: add jsonl:FIELD to data.caption_key"),
        ({"preset": "laion"}, "data.preset laion is for shards"),
    ],
)
def test_captions_that_cannot_be_are_one_line(write, options, message):
    with pytest.raises(GlideError, match=message):
        open_folder(write({"1.png": b"1"}), **options)


def test_captions_may_lie_in_a_folder_of_their_own(write):
    source = open_folder(write({"images/1.png": b"1", "captions/1.txt": "one"}))
    assert source[0] == (b"1", ("one",))


def test_same_stems_in_different_folders_are_no_clash(write):
    source = open_folder(write({"a/1.png": b"a", "a/1.txt": "in a", "b/1.png": b"b", "b/1.txt": "in b"}))
    assert [source[i] for i in range(2)] == [(b"a", ("in a",)), (b"b", ("in b",))]


def test_stem_clashes_are_left_out_and_counted(write):
    files = {"images/1.png": b"1", "x/1.txt": "one", "y/1.txt": "uno", "2.jpg": b"2", "2.png": b"II", "2.txt": "two"}
    source = open_folder(write(files | {"3.png": b"3"}))
    assert [source[i] for i in range(len(source))] == [(b"2", ("two",))]
    assert source.counts == {"stem clash": 2, "missing caption": 1}


def test_filters_on_metadata_that_no_folder_has(write, numbered):
    """A label that is not there passes, as it does in shards; a number that is not there cannot."""
    path = write({"1.png": numbered(1)["png"], "1.txt": "one"})
    labels = FilterConfig(nsfw_labels=("NSFW",), min_aspect=0.5)
    assert len(open_folder(path, filters=labels)) == 1
    with pytest.raises(GlideError, match=r"\(missing metadata: 1\)"):
        open_folder(path, filters=FilterConfig(min_similarity=0.2))


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("00017_a_red_dog.jpg", "a red dog"),
        ("a_red_dog.PNG", "a red dog"),
        ("3f2a_red__dog.webp", "red dog"),
        ("red dog.png", "red dog"),
        ("17.png", "17"),
    ],
)
def test_captions_from_file_names(write, name, caption):
    assert open_folder(write({f"deep/{name}": b"0"}), caption_key="filename")[0].captions == (caption,)


def test_a_file_name_stands_in_for_a_missing_text(write):
    path = write({"a_dog.png": b"0", "b_cat.png": b"1", "b_cat.txt": "the cat"})
    source = open_folder(path, caption_key="txt;filename")
    assert [source[i].captions for i in range(2)] == [("a dog",), ("the cat",)]


def test_filters_see_captions_and_the_image_itself(write, encode):
    def image(side):
        return encode(np.zeros((side, side, 3), np.uint8))

    files = {"1.png": image(8), "2.png": image(20), "3.png": image(20)}
    texts = {"1.txt": "small one", "2.txt": "large one", "3.txt": "a logo"}
    source = open_folder(write(files | texts), filters=FilterConfig(min_size=16, skip_words=("logo",)))
    assert [sample.captions for sample in map(source.__getitem__, range(len(source)))] == [("large one",)]
    assert source.counts == {"too small": 1, "words": 1}


@pytest.mark.parametrize(("text", "reason"), [(b"\n \n", "empty caption"), (b"\xff\xfe", "caption is not UTF-8")])
def test_unusable_captions_are_bad_samples(write, text, reason):
    source = open_folder(write({"1.png": b"0", "1.txt": text}))
    with pytest.raises(BadSample, match=f"^{reason}$"):
        source[0]


def test_a_file_that_vanishes_is_a_bad_sample(write, tmp_path):
    source = open_folder(write({"1.png": b"0", "1.txt": "one"}))
    (tmp_path / "set" / "1.png").unlink()
    with pytest.raises(BadSample, match=r"^missing file$"):
        source[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no usable image below .*set \(missing caption: 1\); .*--config\.data\.caption_key=filename$"),
        (
            {"caption_key": "filename", "filters": FilterConfig(min_caption_length=5)},
            r"\(caption length: 1\); change --config\.data\.filters\.min_caption_length \(now 5\)$",
        ),
        ({"caption_key": "json"}, "txt, jsonl:FIELD or filename, not 'json'"),
        ({"path": ""}, "no data path given"),
        ({"path": "/no/such/folder"}, "/no/such/folder is not a folder"),
    ],
)
def test_a_folder_without_samples_gets_one_clear_line(write, options, message):
    with pytest.raises(GlideError, match=message) as caught:
        open_folder(**{"path": write({"1.png": b"0"})} | options)
    assert "\n" not in str(caught.value)


def test_a_line_is_sampled_by_seed_and_position(write, numbered):
    lines = [f"line {i}" for i in range(4)]
    path = write({"1.png": numbered(1)["png"], "1.txt": "\n".join(lines)})

    def captions(seed, position=0):
        config = DataConfig(source="folder", path=path, workers=1)
        options = {"image_size": 8, "text_ctx": 6, "batch_size": 20, "seed": seed}
        with open_data(config, position=position, **options) as stream:
            return [caption for batch in itertools.islice(stream, 10) for caption in batch.captions]

    found = captions(seed=0)
    assert {found.count(line) > 25 for line in lines} == {True}
    assert captions(seed=0, position=40)[:100] == found[40:140]
    assert captions(seed=1) != found


def test_links_are_followed_but_not_in_circles(write, tmp_path):
    path = write({f"{i}.png": b"0" for i in range(3)} | {f"{i}.txt": f"{i}" for i in range(3)})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "4.png").write_bytes(b"4")
    (outside / "4.txt").write_text("four")
    (tmp_path / "set" / "more").symlink_to(outside)
    (tmp_path / "set" / "up").symlink_to(tmp_path / "set")
    (outside / "back").symlink_to(tmp_path / "set")
    assert [open_folder(path)[i].captions[0] for i in range(len(open_folder(path)))] == ["0", "1", "2", "four"]
