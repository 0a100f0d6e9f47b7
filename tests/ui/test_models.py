import json
import shutil

import pytest

from glide_jax.errors import GlideError
from glide_jax.ui.models import Models
from tests.tiny.models import save_model
from tests.ui.conftest import cut_arrays
from tests.ui.test_jobs import concurrently


def test_checkpoints_are_found_and_told_apart(models):
    assert [found.name for found in models.bases] == ["base", "inpaint"]
    assert [found.label for found in models.bases] == ["base (8 px)", "inpaint (8 px, inpainting)"]
    assert [found.label for found in models.upsamplers] == ["more/up (8 → 16 px)"]


def test_those_named_are_not_listed_twice(folder):
    models = Models([folder / "base"], [folder])
    assert [found.name for found in models.bases] == [f"{folder.name}/base", "inpaint"]


def test_two_of_the_same_name_stay_two(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "a" / "x" / "base")
    shutil.copytree(folder / "base", tmp_path / "b" / "x" / "base")
    names = [found.name for found in Models([tmp_path / "a/x/base", tmp_path / "b/x/base"]).bases]
    assert names == ["x/base", "x/base (2)"]


def test_a_model_is_loaded_once_even_by_two_at_once(folder):
    models = Models([], [folder])
    first, second = concurrently(*[lambda: models.pipeline("base", "more/up")] * 2)
    assert first.base is second.base
    assert first.upsampler is second.upsampler


def test_only_so_many_stay_loaded(folder):
    models = Models([], [folder], kept=2)
    base = models.pipeline("base", None).base
    models.pipeline("inpaint", None)
    assert models.pipeline("base", None).base is base
    models.pipeline(None, "more/up")
    assert models.pipeline("base", None).base is base
    inpaint = models.pipeline("inpaint", None).base
    models.pipeline("base", None)
    assert models.pipeline("inpaint", None).base is inpaint
    assert models.pipeline(None, "more/up").upsampler is not None
    assert models.pipeline("base", None).base is not base


def test_a_failed_load_is_one_line_and_leaves_the_others(folder, tmp_path):
    for name in ("good", "cut", "shorn"):
        shutil.copytree(folder / "base", tmp_path / name)
    cut_arrays(tmp_path / "cut")
    (tmp_path / "shorn" / "hashes.json").unlink()
    record = tmp_path / "shorn" / "record" / "data.json"
    content = json.loads(record.read_text())
    content["model"]["num_channels"] = 64
    record.write_text(json.dumps(content))
    models = Models([], [tmp_path])
    good = models.pipeline("good", None).base
    assert [found.name for found in models.bases] == ["cut", "good", "shorn"]
    for name in ("cut", "shorn"):
        with pytest.raises(GlideError, match=f"{name} could not be loaded") as raised:
            models.pipeline(name, None)
        assert "\n" not in str(raised.value)
        assert str(tmp_path) not in str(raised.value)
    assert models.pipeline("good", None).base is good


def test_clients_name_models_and_never_paths(models, folder):
    for name in (str(folder / "base"), "../base", "more", "base\n"):
        with pytest.raises(GlideError, match="there is no model"):
            models.pipeline(name, None)
    with pytest.raises(GlideError, match="no model is chosen"):
        models.pipeline(None, None)


def test_what_is_new_is_found_by_searching_again(folder, tmp_path):
    save_model(tmp_path / "first")
    models = Models([], [tmp_path])
    save_model(tmp_path / "second")
    models.search()
    assert [found.name for found in models.bases] == ["first", "second"]


def test_a_folder_that_is_not_there_is_said():
    with pytest.raises(GlideError, match="--models nowhere: no such folder"):
        Models([], ["nowhere"])
    with pytest.raises(GlideError, match="nowhere"):
        Models(["nowhere"])
