import json
import os
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

from glide_jax.errors import GlideError
from glide_jax.ui import app
from tests.parallel.processes import free_port
from tests.programs import ROOT, call


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What `serve` was called with, in place of serving."""
    calls = []

    def serve(service, server, folder):
        assert os.environ["GRADIO_TEMP_DIR"].startswith(f"{folder}/")
        assert folder.is_dir()
        calls.append((service, server, folder))

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setattr(app, "require_port", lambda server: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "images"))
    monkeypatch.setattr(app, "keep_compiled_programs", lambda: None)
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    return calls


def test_with_nothing_given_and_nothing_there_it_says_how_to_get_a_model(started, tmp_path, capsys):
    assert call("app.py", folder=tmp_path) == 2
    assert not started
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("error: no model:")
    assert "--checkpoint DIR" in line


def test_a_missing_gradio_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(GlideError, match="uv sync --inexact --extra app"):
        app.main(["--port", str(free_port())])


def test_it_starts_on_the_bundled_models(started, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "base", "checkpoints/emoji/base")
    shutil.copytree(folder / "more" / "up", "checkpoints/emoji/upsample")
    shutil.copy(ROOT / "checkpoints/emoji/model_index.json", "checkpoints/emoji")
    app.main([])
    [(service, server, _)] = started
    assert server == app.Server("127.0.0.1", 7860, (), None)
    assert (service.base, service.upsampler) == ("emoji/base", "emoji/upsample")
    assert (service.fields["sampler"].default, service.fields["upsampler_num_steps"].default) == ("ddpm", 10)
    assert "a 3d render of a banana" in service.examples


def test_the_settings_are_those_of_the_models_that_it_opens_with(started, folder, tmp_path, capsys):
    shutil.copytree(folder / "base", tmp_path / "mine" / "base")
    shutil.copytree(folder / "more" / "up", tmp_path / "mine" / "up")
    settings = {"sampler": "lms", "guidance_interval": [1, 5], "upsampler_eta": 0.5, "upsample_temp": 0.9}
    index = {"base": "base", "upsampler": "up", "settings": settings}
    (tmp_path / "mine" / "model_index.json").write_text(json.dumps(index))
    mine, other, up = (str(path) for path in (tmp_path / "mine", folder / "base", folder / "more" / "up"))
    app.main(["--checkpoint", mine])
    assert capsys.readouterr().err == "warning: the page has no field for upsampler_eta, which the pipeline sets\n"
    app.main(["--checkpoint", mine, "--upsampler", up])
    app.main(["--checkpoint", other, "--checkpoint", mine])
    (alone, *_), (with_other, *_), (behind, *_) = started
    shown = lambda service, *names: [service.fields[name].default for name in names]  # noqa: E731
    assert (alone.base, alone.upsampler) == ("mine/base", "mine/up")
    assert shown(alone, "sampler", "interval_low", "interval_high", "upsample_temp") == ["lms", 1, 5, 0.9]
    assert "lms" in alone.fields["sampler"].option.choices
    assert (with_other.base, with_other.upsampler) == ("mine/base", "more/up")
    assert shown(with_other, "sampler", "upsample_temp") == ["lms", None]
    assert shown(with_other, "upsampler_num_steps") == [2]
    assert behind.base == f"{folder.name}/base"
    assert shown(behind, "sampler", "num_steps") == ["ddim", 3]


def test_what_is_given_comes_first_and_nothing_is_left(started, folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a cup\n\na hat\n")
    (tmp_path / "accounts").write_text("ann: two words \n\nbob:a:b\n", encoding="utf-8-sig")
    given = ["--checkpoint", folder / "inpaint", "--upsampler", folder / "more" / "up", "--models", folder]
    more = ["--examples", tmp_path / "prompts.txt", "--max_images", 2, "--host", "0.0.0.0"]
    app.main(list(map(str, [*given, *more, "--auth", tmp_path / "accounts"])))
    [(service, server, own)] = started
    assert (service.base, service.upsampler) == (f"{folder.name}/inpaint", "more/up")
    assert service.fields["num_steps"].default == 50
    assert [found.name for found in service.models.bases] == [service.base, "base"]
    assert (service.limits.max_images, service.examples, server.host) == (2, ["a cup", "a hat"], "0.0.0.0")
    assert server.accounts == (("ann", "two words"), ("bob", "a:b"))
    assert not capsys.readouterr().err
    assert own.parent == tmp_path / "images"
    assert not list(own.parent.iterdir())


def test_adapters_that_are_given_are_chosen_with_the_model_they_belong_to(started, folder, tmp_path):
    base, inpaint, lora = (str(folder / name) for name in ("base", "inpaint", "lora"))
    other = shutil.copytree(lora, tmp_path / "other")
    record = json.loads((other / "record" / "data.json").read_text())
    record["lora"]["base_sha256"] = "0" * 64
    (other / "record" / "data.json").write_text(json.dumps(record))
    (other / "hashes.json").unlink()
    other = str(other)
    app.main(["--checkpoint", base, "--lora", f"{lora}:0.5"])
    app.main(["--checkpoint", inpaint, "--checkpoint", base, "--lora", lora])
    (first, *_), (second, *_) = started
    assert (first.adapters, first.fields["lora_scale"].default) == ((f"{folder.name}/lora",), 0.5)
    assert second.adapters == ()
    for flags, message in (
        (["--checkpoint", inpaint, "--lora", lora], "lora: trained on other weights than those of models./inpaint"),
        (
            ["--checkpoint", inpaint, "--checkpoint", base, "--lora", other],
            "other: trained on other weights than those",
        ),
        (["--checkpoint", base, *["--lora", lora] * 4], "--lora is given 4 times: at most 3"),
    ):
        with pytest.raises(GlideError, match=message):
            app.main(flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--models", "nowhere"], "--models nowhere: no such folder"),
        (["--max_images", "0"], "--max_images must be at least 1, not 0"),
        (["--port", "70000"], r"--port must be in \[1, 65535\]"),
        (["--clip_model", "noised"], "give --clip TEXT IMAGE"),
        (["--allowed_host", "https://glide.example"], "without scheme and port"),
        (["--auth", "nowhere.txt"], "--auth nowhere.txt: not a text file with lines of USER:PASSWORD"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(started, folder, flags, message):
    with pytest.raises(GlideError, match=message):
        app.main(["--models", str(folder), *flags])
    assert not started


@pytest.mark.parametrize("content", ["", "\n", "ann", "ann:", ":secret", "bob:secret\nann", b"\xff:\xff"])
def test_a_file_of_accounts_has_users_and_passwords(tmp_path, content):
    (tmp_path / "accounts").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GlideError, match="--auth ") as refused:
        app.read_accounts(tmp_path / "accounts")
    assert "secret" not in str(refused.value)


def test_a_password_in_place_of_the_file_is_not_repeated():
    with pytest.raises(GlideError, match="--auth FILE: not a text file with lines of USER:PASSWORD"):
        app.read_accounts(Path("ann:secret"))


@pytest.mark.parametrize(("host", "warned"), [("[::1]", 0), ("0.0.0.0", 1)])
def test_what_others_reach_without_a_password_is_warned_of(started, folder, capsys, host, warned):
    app.main(["--models", str(folder), "--host", host])
    assert capsys.readouterr().err.count("warning: whoever reaches this machine can use the page") == warned


def test_a_folder_without_models_is_said(started, tmp_path):
    with pytest.raises(GlideError, match="no model in"):
        app.main(["--models", str(tmp_path)])


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_port_in_use_is_said_before_anything_is_loaded(capsys, host, family):
    try:
        taken = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with taken:
        port = taken.getsockname()[1]
        assert call("app.py", "--models", "nowhere", "--host", host, "--port", port) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: cannot listen on {host}:{port}: is it in use? give another --port"
    app.require_port(app.Server(host, port))
