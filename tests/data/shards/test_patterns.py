import pytest

from glide_jax.data.shards.patterns import find_shards
from glide_jax.errors import GlideError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/001.tar", "b/000.tar", "a/7.tar", "a/readme.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def names(folder, patterns):
    return [str(path.relative_to(folder)) for path in find_shards(patterns)]


def test_every_way_to_name_shards(folder):
    (folder / "list.txt").write_text("# two\nb/{000..001}.tar\n\na\n")
    assert names(folder, f"{folder}/b") == ["b/000.tar", "b/001.tar"]
    assert names(folder, f"{folder}/b/{{001..000}}.tar") == ["b/001.tar", "b/000.tar"]
    assert names(folder, f"{folder}/*/00?.tar") == ["b/000.tar", "b/001.tar"]
    assert names(folder, f"{folder}/**/*.tar") == ["a/7.tar", "b/000.tar", "b/001.tar"]
    assert names(folder, f"{folder}/b/001.tar::{folder}/a") == ["b/001.tar", "a/7.tar"]
    assert names(folder, (f"{folder}/a", f"{folder}/b/000.tar")) == ["a/7.tar", "b/000.tar"]
    assert names(folder, f"{folder}/list.txt") == ["b/000.tar", "b/001.tar", "a/7.tar"]


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names(folder, "~/b/*.tar") == ["b/000.tar", "b/001.tar"]
    assert names(folder, "~/a") == ["a/7.tar"]


def test_a_name_with_magic_characters_is_found_as_it_stands(folder):
    (folder / "set[1].tar").touch()
    assert names(folder, f"{folder}/set[1].tar") == ["set[1].tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "no data path given.*--config.data.path="),
        (" :: ", "no data path given"),
        ("FOLDER/b/002.tar", r"shard .*b/002.tar does not exist; "),
        ("FOLDER/b/{000..004}.tar", r"shard .*b/002.tar does not exist \(and 2 more of 5 shards\)"),
        ("FOLDER/c/*.tar", r"no shard matches .*/c/\*.tar"),
        (
            "FOLDER/empty",
            r"no shard matches .*/empty/\*.tar.* \(for folders below it .*/empty/.*, for images data.source=folder\)$",
        ),
        ("FOLDER/empty.txt", "shard list .*empty.txt is empty"),
        ("FOLDER/b/{000..001.tar", "unbalanced braces"),
        ("pipe:curl -s host/000.tar", "read from disk"),
        ("https://host/000.tar", "read from disk"),
    ],
)
def test_a_pattern_without_shards_gets_one_clear_line(folder, pattern, message):
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    with pytest.raises(GlideError, match=message) as caught:
        find_shards(pattern.replace("FOLDER", str(folder)))
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_back_up_gives_no_shard_twice(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.tar").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    assert find_shards(f"{tmp_path}/**/*.tar") == [tmp_path / "a" / "0.tar"]
