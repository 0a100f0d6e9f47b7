"""Every command of README and docs: run in miniature, or, where that is impossible for a stated reason, parsed."""

import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from absl import flags

from convert.cli import main as convert
from glide_jax.config import from_ml_collections
from glide_jax.evaluate.cli import parser as evaluate_parser
from glide_jax.ui.cli import parser as app_parser
from tests.docs.blocks import PAGES, ROOT, commands, fenced, without_blocks
from tests.docs.workspace import make_models, make_torch_files, make_workspace

# Why a command cannot run here; none may be without use.
UNRUNNABLE = {
    r"uv run pytest": "it is this run",
    r"uv sync|pip install -e|uv pip install": "it installs",
    r"sphinx-build": "test_site.py runs it",
    r"^ssh ": "it needs another machine",
    r"srun ": "it needs SLURM",
    r"gcloud ": "it needs TPUs",
    r"--coordinator_address": "it needs two machines",
    r"python app\.py": "it serves until it is stopped; tests/ui/test_browser.py does that",
    r"efficientnet": "it downloads ImageNet weights",
    r"--clip_rerank$": "it downloads OpenCLIP's weights",
}
# Runs that other runs start from.
STARTS = ("emoji_upsample_parts",)
COMMANDS = commands()
EXCEPTIONS = [command for command in COMMANDS if any(re.search(pattern, command.text) for pattern in UNRUNNABLE)]
# Once each, where it first appears.
RUNNABLE = list({command.text: command for command in COMMANDS[::-1] if command not in EXCEPTIONS}.values())[::-1]

_TINY = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "attention_resolutions": (8,),
    "num_head_channels": 16, "dropout": 0.0, "text_ctx": 8, "xf_width": 32, "xf_layers": 1, "xf_heads": 2,
}  # fmt: skip
_TINY_UPSAMPLER = _TINY | {"image_size": 32, "low_res_size": 16}
_SHORT = {
    "max_steps": 1, "batch_size": 4, "validate_every": 1, "save_every": 1, "preview.count": 2,
    "preview.options.num_steps": 2,
}  # fmt: skip


def shortened(words: list[str]) -> list[str]:
    """The same command with a tiny model, few steps and few shards."""
    words = [word.replace("{00000..00331}", "{00000..00001}") for word in words]
    if words[0] == "train.py":
        model = _TINY_UPSAMPLER if any("upsample" in word for word in words) else _TINY
        options = {f"model.{name}": value for name, value in model.items()}
        options |= {f"train.{name}": value for name, value in _SHORT.items()}
        # A tuple given twice is joined, not replaced.
        words = [word for word in words if not word.startswith("--config.model.")]
        return [*words, *(f"--config.{name}={value}" for name, value in options.items())]
    if words[0] == "sample.py":
        few = ["--steps", "4"] if "--compare" in words else ["--num_steps", "3"]
        return [*words, *few, *(["--upsampler_num_steps", "2"] if "--upsampler" in words else [])]
    if words[0] == "evaluate.py" and "--resume" not in words:
        return [*words, "--num_steps", "2", *(["--upsampler_num_steps", "2"] if "--upsampler" in words else [])]
    return words


@contextmanager
def as_a_program() -> Iterator[None]:
    """Warnings as a user gets them; the flags of train.py are forgotten, for its next run defines them anew."""
    known = set(flags.FLAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)


def execute(words: list[str]) -> None:
    """Runs a Python program of ours in this process, which saves its start; raises what it raises."""
    sys.argv, code = words, None
    with as_a_program():
        try:
            if words[:2] == ["-m", "convert"]:
                convert(words[2:])
            elif words[0] == "-m":
                sys.argv = words[1:]
                # Else runpy keeps what jaxtyping's import hook compiled as the module's ordinary bytecode.
                with mock.patch.object(sys, "dont_write_bytecode", new=True):
                    runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code, f"exit code {code}"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    try:
        import torch  # noqa: F401
    except ImportError:
        return folder
    make_torch_files(folder)
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """What README's first commands leave behind."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [])
        train = ["train.py", "--config", "configs/emoji.py", f"--config.run_dir={folder / 'emoji'}"]
        execute(shortened(train))
        drawn = ["--prompts", "a cat|a dog", "--output_format", "png", "--output_dir", str(folder)]
        execute(shortened(["evaluate.py", "--checkpoint", str(folder / "emoji"), *drawn]))
    (folder / "00000").rename(folder / "evaluated")
    return folder


@pytest.fixture
def workspace(tmp_path, monkeypatch, models, torch_files, runs):
    make_workspace(tmp_path, models, torch_files, runs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in torch_files.glob("*.pt"):
        shutil.copy(path, cache)
    monkeypatch.setenv("GLIDE_JAX_CACHE", str(cache))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # evaluate.py may set it
    return tmp_path


def make_way(words: list[str], workspace: Path) -> None:
    """Removes what the command is to make and what stands for its result in other commands."""
    if words[0] == "train.py":
        for run in (workspace / "runs").iterdir():
            if run.name not in STARTS:
                shutil.rmtree(run)
    if "to-flax" in words:
        output = workspace / words[words.index("--output") + 1]
        output.unlink(missing_ok=True)


def marked(command):
    """Training is the slowest: of the pages' many runs, README's and those of the first steps stand for the others."""
    slow = command.words[:1] == ["train.py"] and command.page not in ("README.md", "start.md")
    return pytest.param(command, id=str(command), marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("command", [marked(command) for command in RUNNABLE])
def test_a_command_runs(command, workspace):
    assert command.words, f"{command} is no program of ours: {command.text}; say in UNRUNNABLE why it cannot run"
    if "convert" in command.words:
        pytest.importorskip("torch", reason="torch is not installed: pip install 'glide-jax[torch]'")
    make_way(command.words, workspace)
    before = files(workspace)
    execute(shortened(command.words))
    assert "inspect" in command.words or files(workspace) - before, "it wrote nothing"


def files(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pattern", UNRUNNABLE)
def test_every_exception_is_in_use(pattern):
    assert [command for command in COMMANDS if re.search(pattern, command.text)]


PARSERS = {"evaluate": evaluate_parser, "app": app_parser}
OTHERS = [command for command in EXCEPTIONS if re.search(r"python \w+\.py", command.text)]


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_a_command_that_cannot_run_is_understood(command, monkeypatch):
    words = shlex.split(command.text, comments=True)
    inner = [word for word in words if "python " in word]  # a whole command in quotes
    script, rest = re.search(r"python (\w+)\.py(.*)", inner[0] if inner else command.text).groups()
    arguments = [word for word in shlex.split(rest, comments=True) if word != "..."]
    if script in PARSERS:
        PARSERS[script]().parse_args(arguments)
        return
    assert script == "train"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with as_a_program():
        from_ml_collections(runpy.run_path("train.py")["_parse"](sys.argv))


def test_python_blocks_run(workspace):
    # Clients of the running page are in tests/ui.
    blocks = [content for _, _, content in fenced("python") if "gradio_client" not in content]
    assert blocks
    for content in blocks:
        exec(content.replace("num_steps=25", "num_steps=2, upsampler_options={'num_steps': 2}"), {})
    assert (workspace / "bicycle.png").exists()


def test_no_command_hides_in_an_indented_block():
    hidden = re.compile(r"^    (uv|python|srun|pip) .*", re.MULTILINE)
    assert {page.name: hidden.findall(without_blocks(page)) for page in PAGES} == {page.name: [] for page in PAGES}
