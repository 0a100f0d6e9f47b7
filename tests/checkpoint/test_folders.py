import shutil

import jax.numpy as jnp

from glide_jax.checkpoint import CheckpointStore, complete_steps, save_weights


def test_only_numbered_complete_folders_are_steps(tmp_path):
    assert complete_steps(tmp_path / "nowhere") == []
    for name in ("10", "9", "best", "3.orbax-checkpoint-tmp"):
        save_weights(tmp_path / "saved", {"kernel": jnp.zeros(2)}, {})
        (tmp_path / "saved").rename(tmp_path / name)
    (tmp_path / "11").mkdir()  # a copy that was broken off
    (tmp_path / "12").write_text("a file")
    assert complete_steps(tmp_path) == [9, 10]


def test_opening_a_folder_for_writing_removes_only_what_is_unfinished(tmp_path):
    save_weights(tmp_path / "7", {"kernel": jnp.zeros(2)}, {})
    shutil.copytree(tmp_path / "7", tmp_path / "8.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "7", tmp_path / "6.deleted.orbax-checkpoint-tmp")
    (tmp_path / "notes.txt").write_text("mine")
    with CheckpointStore(tmp_path) as store:
        assert store.steps() == [7]
    assert {path.name for path in tmp_path.iterdir()} == {"7", "notes.txt"}
