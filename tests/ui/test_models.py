import json
import os
import shutil
import tempfile
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from convert.to_kohya import to_kohya
from glide_jax.errors import GlideError
from glide_jax.sample import LoadedModel
from glide_jax.ui.models import Models, Unloadable, Version
from tests.tiny.models import UPSAMPLER, save_lora, save_model
from tests.ui.conftest import cut_arrays
from tests.ui.test_worker import concurrently


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
    base, inpaint = (models.pipeline(name, None).base for name in ("base", "inpaint"))
    assert models.pipeline("base", None).base is base
    models.pipeline(None, "more/up")
    assert models.pipeline("base", None).base is base
    assert models.pipeline("inpaint", None).base is not inpaint


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


def test_a_folder_that_may_not_be_read_is_passed_over():
    """Root may read all, and is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "locked").mkdir(mode=0)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            assert Models([], [folder]).bases == []
        finally:
            os.seteuid(user)


def test_adapters_are_found_for_the_base_model_whose_weights_they_were_trained_on(models, folder):
    assert [found.name for found in models.adapters] == ["lora"]
    assert [found.name for found in models.fitting("base")] == ["lora"]
    assert models.fitting("inpaint") == models.fitting("") == []
    given = Models([folder / "base"], [folder], lora=[f"{folder / 'lora'}:0.5"])
    assert [(found.name, found.scale, found.given) for found in given.adapters] == [(f"{folder.name}/lora", 0.5, True)]


def test_found_adapters_bring_their_base_model_if_it_is_there(folder, tmp_path):
    save_lora(tmp_path / "mine", folder / "base")
    models = Models([], [tmp_path])
    assert [found.name for found in models.bases] == [f"{folder.name}/base"]
    assert [found.name for found in models.fitting(f"{folder.name}/base")] == ["mine"]
    save_lora(tmp_path / "other", tmp_path / "gone")
    both = Models([], [tmp_path, folder])
    assert [found.name for found in both.bases] == ["base", "inpaint"]
    assert [found.name for found in both.adapters] == ["mine", "other", "lora"]


def test_safetensors_files_are_found_too(folder, tmp_path):
    to_kohya(folder / "lora", tmp_path / "mine.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"of another program")
    assert [found.name for found in Models([folder / "base"], [tmp_path]).fitting(f"{folder.name}/base")] == [
        "mine.safetensors"
    ]


def test_adapters_are_added_by_their_scale_and_the_base_model_is_read_once(folder, monkeypatch):
    read, load = [], LoadedModel.from_checkpoint
    monkeypatch.setattr(LoadedModel, "from_checkpoint", lambda path, *how: read.append(path) or load(path, *how))
    models = Models([], [folder], kept=3)
    plain = models.pipeline("base", None).base
    merged, other = (models.pipeline("base", None, {"lora": scale}).base for scale in (0.5, 1.5))
    assert models.pipeline("base", None, {"lora": 1.5}).base is other
    expected = load(folder / "base", lora=[f"{folder / 'lora'}:0.5"])
    jax.tree.map(np.testing.assert_array_equal, merged.params, expected.params)
    assert models.pipeline("base", None, {"lora": 0.0}).base is plain
    assert len(read) == 1


def test_merged_weights_have_room_of_their_own(folder):
    models = Models([], [folder], kept=1)
    base = models.pipeline("base", None).base
    merged = models.pipeline("base", None, {"lora": 0.5}).base
    assert models.pipeline("base", None).base is base
    assert models.pipeline("base", None, {"lora": 0.5}).base is merged
    models.pipeline("base", None, {"lora": 1.5})
    assert models.pipeline("base", None, {"lora": 0.5}).base is not merged
    assert models.pipeline("base", None).base is base


def test_a_file_that_is_overwritten_is_another_version(folder, tmp_path):
    to_kohya(folder / "lora", tmp_path / "mine.safetensors")
    [found] = Models([folder / "base"], [tmp_path]).adapters
    before = Version.of(found)
    assert Version.of(found) == before
    os.utime(tmp_path / "mine.safetensors", ns=(1, 1))
    assert Version.of(found) != before


def test_adapters_that_cannot_be_added_are_one_line_without_paths(models, folder, tmp_path):
    cut_arrays(shutil.copytree(folder / "lora", tmp_path / "cut"))
    damaged = Models([], [tmp_path])
    for these, base, adapters, kind, message in (
        (damaged, f"{folder.name}/base", {"cut": 1.0}, Unloadable, "cut could not be loaded"),
        (models, "inpaint", {"lora": 1.0}, GlideError, "no LoRA 'lora' for inpaint; there are: none"),
        (models, "base", {"../lora": 1.0}, GlideError, "no LoRA '../lora' for base; there are: lora"),
        (models, "inpaint", {"lora": 0.0}, GlideError, "no LoRA 'lora' for inpaint"),
        (models, "base", {"nope": 0.0}, GlideError, "no LoRA 'nope' for base"),
    ):
        with pytest.raises(kind, match=message) as raised:
            these.pipeline(base, None, adapters)
        assert "\n" not in str(raised.value)
        assert str(folder.parent) not in str(raised.value)


def test_what_has_gone_since_is_one_line_without_paths(folder, tmp_path):
    """Also where a base model that is named cannot be used, or the settings of adapters."""
    for name in ("base", "inpaint", "lora"):
        shutil.copytree(folder / name, tmp_path / name)
    save_lora(tmp_path / "odd", folder / "base", sampling={"sampler": "none"})
    save_lora(tmp_path / "alone", tmp_path / "never" / "there")
    models = Models([tmp_path / "alone"], [tmp_path])
    with pytest.raises(Unloadable, match="base, odd could not be loaded: odd: the sampling entry") as settings:
        models.settings("base", "", ["odd"])
    with pytest.raises(Unloadable, match=r"alone could not be loaded: .* has adapters of there, which is not") as base:
        models.pipeline(f"{tmp_path.name}/alone", None)
    for name in ("lora", "inpaint"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(Unloadable, match="lora could not be loaded: no checkpoint at lora") as lora:
        models.pipeline("base", None, {"lora": 1.0})
    with pytest.raises(Unloadable, match="inpaint could not be loaded: no checkpoint at inpaint") as model:
        models.pipeline("inpaint", None)
    for said in (settings, base, lora, model):
        assert "\n" not in str(said.value)
        assert str(tmp_path.parent) not in str(said.value)


@pytest.mark.parametrize(
    ("base", "where"),
    [
        ("C:\\Users\\Anne B\\old base", "our models"),
        ("/srv/Anne's models/old base", 'Anne\'s "own" models'),
        ("Anne B/old base", "models"),
    ],
)
def test_folders_are_not_told_whatever_their_names(base, where, folder, tmp_path):
    mine = tmp_path / where
    save_lora(mine / "lora", base)
    save_lora(mine / "odd", folder / "base", sampling={"sampler": "none"})
    cut_arrays(shutil.copytree(folder / "base", mine / "cut"))
    (mine / "link").symlink_to(mine / "cut")
    models = Models([mine / "lora", mine / "link", mine / "odd"])
    said = []
    for name in ("lora", "link"):
        with pytest.raises(Unloadable, match=f"{name} could not be loaded: ") as raised:
            models.pipeline(f"{where}/{name}", None)
        said.append(str(raised.value).replace(f"{where}/{name}", ""))
    with pytest.raises(Unloadable, match="odd could not be loaded: ") as raised:
        models.settings(f"{where}/odd", "")
    said.append(str(raised.value).replace(f"{where}/odd", ""))
    assert "old base, which is not there" in said[0]
    assert "sampler 'none' is unknown" in said[2]
    for each in said:
        assert not [part for part in (f"{where}/", "Anne", "Users", "srv", tmp_path.name) if part in each]


def test_a_path_that_nobody_knew_of_is_left_to_the_log(folder, monkeypatch, capsys):
    found = Models([], [folder])
    for path in ("/srv/my models/x", "'C:\\my models\\x'", "D:/my models", "\\\\host\\my models"):
        monkeypatch.setattr("glide_jax.ui.models.checkpoint_step", Mock(side_effect=GlideError(f"cannot read {path}")))
        with pytest.raises(Unloadable) as raised:
            found.pipeline("base", None)
        assert str(raised.value) == "base could not be loaded: the server's log says why"
        assert path in capsys.readouterr().err


def test_looking_again_for_what_has_gone_tells_no_path_and_changes_nothing(folder, tmp_path, capsys):
    shutil.copytree(folder / "base", tmp_path / "base")
    models = Models([tmp_path / "base"])
    (tmp_path / "base").rename(tmp_path / "other")
    with pytest.raises(Unloadable) as raised:
        models.search_again()
    assert str(raised.value) == "what is new could not be looked for: the server's log says why"
    assert str(tmp_path) in capsys.readouterr().err
    assert len(models.bases) == 1


def test_only_adapters_of_base_models_are_given_as_such(folder, tmp_path):
    save_lora(tmp_path / "up-lora", folder / "more" / "up", UPSAMPLER)
    for text, message in (
        (folder / "base", "must be adapters of a base model"),
        (tmp_path / "up-lora", "must be adapters of a base model"),
        (f"{folder / 'lora'}:2.5", "a scale of 0 to 2"),
        (tmp_path / "gone", "gone"),
    ):
        with pytest.raises(GlideError, match=message):
            Models([folder / "base"], lora=[str(text)])
    assert [found.name for found in Models([], [tmp_path]).upsamplers] == ["up-lora"]
