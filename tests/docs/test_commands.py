"""Every command of README and docs is understood by its program, and one of each kind runs in miniature."""

import argparse
import re
import shlex
import shutil
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pytest

from glide_jax.config import from_ml_collections
from glide_jax.diffusion.options import canonical_name
from glide_jax.sample.options import base_options, upsampler_options
from tests.docs.blocks import PAGES, commands, fenced, without_blocks
from tests.docs.workspace import FROM_ELSEWHERE, make_models, make_run, make_torch_files, make_workspace
from tests.integration.runs import compiled_once
from tests.programs import call
from tests.tiny.models import UPSAMPLER
from tests.tiny.training import MODEL, make_config

# Why a command is no program of ours, or cannot run here; none may be without use.
FOREIGN = {
    r"uv run pytest": "it is this run",
    r"uv sync|pip install -e|uv pip install": "it installs",
    r"sphinx-build": "test_site.py runs it",
    r"^ssh ": "it needs another machine",
    r"^mkdir|^for |^tar ": "the workspace has what it makes",
}
UNRUNNABLE = FOREIGN | {
    r"srun ": "it needs SLURM",
    r"gcloud ": "it needs TPUs",
    r"--coordinator_address": "it needs two machines",
    r"python app\.py": "it serves until it is stopped; tests/ui/test_browser.py does that",
    r"efficientnet": "it downloads ImageNet weights",
    r"--clip_rerank$": "it downloads OpenCLIP's weights",
}
# The first command of each kind stands for the others; `pytest -m slow` runs those with a further page.
KINDS = (
    r"train\.py", r"sample\.py --prompt", r"sample\.py .*--mask", r"evaluate\.py --prompt_file", r"convert to-flax",
    r"convert to-torch", r"convert inspect", r"convert shrink", r"convert merge", r"convert to-kohya", r"data check",
)  # fmt: skip
# Runs that other runs start from.
STARTS = ("emoji_upsample_parts",)


COMMANDS = commands()


def matching(patterns):
    return [command for command in COMMANDS if any(re.search(pattern, command.text) for pattern in patterns)]


# Once each, where it first appears.
UNIQUE = list({command.text: command for command in COMMANDS[::-1]}.values())[::-1]
EXCEPTIONS = matching(UNRUNNABLE)
RUNNABLE = [command for command in UNIQUE if command not in EXCEPTIONS]
CHOSEN = [next((command for command in RUNNABLE if re.search(kind, command.text)), None) for kind in KINDS]


def that_bring_something():
    """The commands, beside the chosen ones, with a program or a page that none before them had."""
    seen = {part for command in CHOSEN if command for part in parts(command)}
    for command in RUNNABLE:
        if command not in CHOSEN and not parts(command) <= seen:
            seen |= parts(command)
            yield command


def parts(command):
    """The program and the configuration page of a command; that its options exist is tried of every command."""
    program = re.match(r"-m convert [\w-]+|-m \S+|\S+", " ".join(command.words))
    return {*re.findall(r"configs/\w+\.py(?::\w+)?", command.text), program[0]}


FURTHER = [*that_bring_something()]
RUN = [command for command in RUNNABLE if command in CHOSEN or command in FURTHER]
NOT_OURS = matching(FOREIGN)
OURS = [command for command in UNIQUE if command not in NOT_OURS]
_SHORT = {
    "max_steps": 1, "batch_size": 8, "validate_every": 1, "save_every": 1, "preview.count": 2,
    "preview.options.num_steps": 2,
}  # fmt: skip


def shortened(command):
    """Its words, with a tiny model, few steps and few shards."""
    words = [word.replace("{00000..00331}", "{00000..00001}") for word in command.words]
    if words[0] == "train.py":
        model = asdict(MODEL)
        if any("upsample" in word for word in words):
            model = asdict(UPSAMPLER)
            del model["resblock_updown"]  # pages differ in it, and so do the models that they start from
        train = dict(_SHORT)
        if "configs/few_steps.py:emoji" in words:
            del train["validate_every"]
        # Adapters of a model that predicts v, as the bundled one does.
        if {"configs/few_steps.py:emoji", "configs/few_images.py:emoji"}.intersection(words):
            words.append("--config.init_from=models/v")
        if command in CHOSEN:  # with the step that other tests compile too
            train |= {f"{part}.{name}": value for part in ("loss", "optimizer")
                      for name, value in asdict(getattr(make_config(), part)).items()}  # fmt: skip
        options = {f"model.{name}": value for name, value in model.items()}
        options |= {f"train.{name}": value for name, value in train.items()}
        return [*words, *(f"--config.{name}={value}" for name, value in options.items())]
    upsampler = ["--upsampler_num_steps", "2"]
    if words[0] == "sample.py":
        return [*words, *([] if "--xy" in words else ["--num_steps", "3"]), *upsampler]
    if words[0] == "evaluate.py" and "--resume" not in words:
        return [*words, "--num_images", "2", "--batch_size", "4", "--num_steps", "3", *upsampler]
    return words


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def torch_files(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed: uv sync --inexact --extra torch")
    return make_torch_files(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def evaluated(models, tmp_path_factory):
    """What an evaluation leaves behind."""
    folder = tmp_path_factory.mktemp("evaluated")
    given = ["--checkpoint", models / "base", "--prompts", "a cat|a dog", "--num_steps", 2]
    assert call("evaluate.py", *given, "--output_format", "png", "--output_dir", folder) == 0
    return folder / "00000"


@pytest.fixture
def workspace(tmp_path, monkeypatch, models, run):
    make_workspace(tmp_path, models, run)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # evaluate.py may set it
    return tmp_path


def make_ready(words, workspace, request, monkeypatch):
    """Removes what the command is to make and what stands for its result in other commands; adds what it needs."""
    if words[0] == "train.py":
        for folder in (workspace / "runs").iterdir():
            if folder.name not in STARTS:
                shutil.rmtree(folder)
    if "--resume" in words:
        shutil.copytree(request.getfixturevalue("evaluated"), workspace / words[words.index("--resume") + 1])
    if words[:2] == ["-m", "convert"]:
        cache = shutil.copytree(request.getfixturevalue("torch_files"), workspace / "cache")
        monkeypatch.setenv("GLIDE_JAX_CACHE", str(cache))
        for name in FROM_ELSEWHERE:
            (workspace / f"{name}.pt").symlink_to(cache / f"{name}.pt")
    if "to-flax" in words:
        (workspace / words[words.index("--output") + 1]).unlink(missing_ok=True)


def marked(command):
    slow = [] if command in CHOSEN else [pytest.mark.slow]
    return pytest.param(command, id=str(command), marks=slow)


@pytest.mark.parametrize("command", [marked(command) for command in RUN])
def test_a_command_runs(command, workspace, request, monkeypatch):
    make_ready(command.words, workspace, request, monkeypatch)
    before = files(workspace)
    with compiled_once():
        assert call(*shortened(command), folder=workspace) == 0
    assert "inspect" in command.words or files(workspace) - before, "it wrote nothing"


def files(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_every_kind_of_command_is_on_the_pages():
    assert [kind for kind, command in zip(KINDS, CHOSEN, strict=True) if command is None] == []


@pytest.mark.parametrize("pattern", UNRUNNABLE)
def test_every_exception_is_in_use(pattern):
    assert matching([pattern])


class Understood(Exception):
    """Raised in place of what a program would do with its checked command line."""


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_is_understood(command):
    inner = [word for word in shlex.split(command.text, comments=True) if "python " in word]  # a command in quotes
    text = re.search(r"python (\S+\.py .*|\S+\.py$|-m .*)", inner[0] if inner else command.text)
    assert text, f"{command} is no program of ours: {command.text}; say in FOREIGN what it is"
    words = [word for word in shlex.split(text[1], comments=True) if word != "..."]
    parse = argparse.ArgumentParser.parse_args

    def checked(self, arguments=None, namespace=None):
        given = parse(self, arguments, namespace)
        if hasattr(given, "sampler") and hasattr(given, "thresholding"):
            base_options(vars(given))
            upsampler_options(vars(given))
        for sampler in (getattr(given, "compare", None) or "ddim").split(","):
            canonical_name(sampler)
        raise Understood

    def page(config):
        from_ml_collections(config)
        raise Understood

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", checked),
        mock.patch("glide_jax.config.from_ml_collections", page),
        pytest.raises(Understood),
    ):
        pytest.fail(f"it ended with exit code {call(*words)}")


def test_python_blocks_run(workspace):
    # Clients of the running page are in tests/ui.
    blocks = [content for _, _, content in fenced("python") if "127.0.0.1" not in content]
    assert blocks
    exported = ["--checkpoint", "models/base", "--num_steps", "2", "--platforms", "cpu", "--output", "my-program"]
    assert call("-m", "glide_jax.export", *exported, folder=workspace) == 0
    for content in blocks:
        shorter = content.replace("num_steps=25", "num_steps=2, upsampler_options={'num_steps': 2}")
        with chdir(workspace):
            exec(shorter.replace("num_images=4", "num_images=2"), {})
    assert (workspace / "out" / "grid.png").exists()


def test_no_command_hides_in_an_indented_block():
    hidden = re.compile(r"^    (uv|python|srun|pip) .*", re.MULTILINE)
    assert {page.name: hidden.findall(without_blocks(page)) for page in PAGES} == {page.name: [] for page in PAGES}
