"""Files are written whole: by one writer, by two at once, and not at all."""

import pytest

from glide_jax.errors import GlideError
from glide_jax.files import check_folder, written


def test_two_writers_of_one_file_do_not_mix_what_they_write(tmp_path):
    path = tmp_path / "folder" / "file"
    with written(path) as first, first.open("w") as slow:
        slow.write("first")
        with written(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def broken(path, error):
    with written(path) as temporary:
        temporary.write_text("half")
        raise error


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError):
        broken(path, KeyError())
    with pytest.raises(GlideError, match=r"cannot write .*file: No space left"):
        broken(path, OSError(28, "No space left on device"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_hold_no_file_is_said_before_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    check_folder(tmp_path / "new" / "folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(GlideError, match=r"cannot write to .*: Not a directory; choose another folder"):
            check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
