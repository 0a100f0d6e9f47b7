"""Every file of configs/, and the edge between ml_collections and the dataclasses."""

import importlib
import json
import re
import shlex
from dataclasses import replace
from operator import attrgetter

import pytest
from ml_collections import ConfigDict

import train
from glide_jax.config import default_config, from_ml_collections, override, read_config
from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from glide_jax.train import RunConfig
from tests.programs import ROOT

PAGES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
FULL_PAGES = {
    "glide_base": "base",
    "glide_upsample": "upsample",
    "glide_base_inpaint": "base-inpaint",
    "glide_upsample_inpaint": "upsample-inpaint",
}
EARLIER_NAMES = {
    "base64": "glide_base",
    "upsample256": "glide_upsample",
    "base64_inpaint": "glide_base_inpaint",
    "upsample256_inpaint": "glide_upsample_inpaint",
}


def page(name, *arguments):
    return from_ml_collections(importlib.import_module(f"configs.{name}").get_config(*arguments))


def commands(name):
    """The commands in a page's docstring, continuation lines joined, as words."""
    text = importlib.import_module(f"configs.{name}").__doc__.replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]


def parsed(words):
    """The configuration that train.py would make of its arguments."""
    args, changes = train.parsed(words[1:])
    config = read_config(args.config)
    for key, text in changes:
        override(config, key, text)
    return from_ml_collections(config)


@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_a_valid_run(name):
    assert page(name).run_dir == f"runs/{name}"


@pytest.mark.parametrize(("earlier", "name"), EARLIER_NAMES.items())
@pytest.mark.parametrize("widths", ["published", "tiny"])
def test_earlier_names_are_the_same_pages_with_their_own_run_folders(earlier, name, widths):
    assert page(earlier, widths) == replace(page(name, widths), run_dir=f"runs/{earlier}")


@pytest.mark.parametrize("name", ["base64", "upsample256_inpaint"])
def test_commands_with_earlier_names_work(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed(["train.py", "--config", f"configs/{name}.py:tiny", "--config.data.path=x"])
    assert (config.run_dir, config.data.path, config.model.num_channels) == (f"runs/{name}", "x", 32)


@pytest.mark.parametrize("name", [name for name in PAGES if name not in EARLIER_NAMES])
def test_the_commands_of_a_page_are_those_of_a_run_by_it(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = commands(name)
    assert runs
    for python, *words in runs:
        assert [python, *words[:2]] == ["python", "train.py", "--config"]
        assert re.fullmatch(rf"configs/{name}\.py(:\w+)?", words[2])
        config = parsed(words)
        assert config.run_dir.startswith(f"runs/{name}")
        assert config.data.path
        for word in words[3:]:
            key, value = word.removeprefix("--config.").split("=")
            found = attrgetter(key)(config)
            assert found == ((value,) if isinstance(found, tuple) else type(found)(value))


def test_every_option_that_a_page_speaks_of_exists():
    pages = [importlib.import_module(f"configs.{name}") for name in PAGES]
    keys = {key for page in pages for key in re.findall(r"--config\.([\w.]*\w)", page.__doc__)}
    assert {"data.path", "train.remat"} <= keys
    assert keys <= {*names_in(default_config())}


def names_in(config):
    for name, value in config.items():
        yield from (f"{name}.{inner}" for inner in names_in(value)) if isinstance(value, ConfigDict) else [name]


def test_a_command_with_a_wrong_option_would_be_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(GlideError, match=r"unknown configuration key data\.paths; did you mean path"):
        parsed(["train.py", "--config", "configs/emoji.py", "--config.data.paths=x"])


@pytest.mark.parametrize("given", ["emoji_finetun", "emoji_finetune", "configs/emojifinetune.py:emoji"])
def test_the_page_that_was_meant_is_named(given, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(GlideError, match=r"no such Python file; did you mean configs/emoji_finetune\.py\?$"):
        read_config(given)


@pytest.mark.parametrize(
    ("words", "trim_white", "max_steps"),
    [
        (["--config.data.trim_white", "--config.train.max_steps=7"], True, 7),
        (["--config.train.max_steps", "7", "--config.data.trim_white"], True, 7),
        (["--config.data.trim_white=true", "--noconfig.data.trim_white"], False, None),
        (["--config.data.trim_white", "false"], False, None),
    ],
)
def test_options_are_written_with_and_without_an_equals_sign(words, trim_white, max_steps, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed(["train.py", "--config", "configs/emoji.py", *words])
    page = importlib.import_module("configs.emoji").get_config()
    assert (config.data.trim_white, config.train.max_steps) == (trim_white, max_steps or page.train.max_steps)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.run_dir"], r"--config\.run_dir needs a value"),
        (["--config.run_dir=a", "b"], "unexpected argument 'b'"),
        (["--noconfig.run_dir=a"], r"unknown option --noconfig\.run_dir: "),
        (["--dry_rum"], r"^unknown option --dry_rum; did you mean --dry_run\?$"),
        (["--batch_size=8"], r"^unknown option --batch_size: write --config\.train\.batch_size=VALUE; train"),
        (["--optimizer.kind=muon"], r"^unknown option --optimizer.kind: write --config\.train\.optimizer\.kind=VALUE;"),
        (["train.seed=1"], r"^unexpected argument 'train.seed=1': write --config\.train\.seed=VALUE;"),
        (["configs/emoji.py"], r"^unexpected argument 'configs/emoji.py': write --config configs/emoji.py;"),
        (["--lr=1"], r"^unknown option --lr: options of a config are written --config\.NAME=VALUE \(docs"),
        (["--num_processes=two"], r"^argument --num_processes: invalid int value: 'two'; train\.py --help lists"),
        (["--noconfig.train.max_steps"], "train.max_steps cannot be False: it takes int"),
        (["--config.train.seed.x=1"], "seed has no options of its own"),
        (["--config.train=1"], "is a group of options"),
        (["--config.train.learning_rate=1"], r"did you mean train\.optimizer\.learning_rate\?"),
        (["--config.lora_rank=4"], r"did you mean train\.lora\.rank\?"),
        (["--config", "configs/emoji.py:foo"], r"configs/emoji\.py has no variants; leave out :foo$"),
    ],
)
def test_what_is_no_option_is_one_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(GlideError, match=message):
        parsed(["train.py", "--config", "configs/emoji.py", *words])


@pytest.mark.parametrize(("name", "kind"), FULL_PAGES.items())
def test_the_full_pages_are_the_published_models(name, kind):
    config = page(name)
    assert config.model == ModelConfig.published(kind)
    assert config.diffusion.noise_schedule == ("linear" if kind.startswith("upsample") else "squaredcos_cap_v2")
    parameters = json.loads((ROOT / "tests" / "golden" / f"manifest_full_{kind}.json").read_text())["parameters"]
    assert f"{parameters:,} parameters" in importlib.import_module(f"configs.{name}").get_config.__doc__


@pytest.mark.parametrize(("name", "kind"), FULL_PAGES.items())
def test_the_full_pages_have_small_widths_for_a_trial(name, kind):
    small, full = page(name, "tiny"), page(name)
    assert small.model.num_channels == 32
    assert (small.model.kind, small.model.image_size) == (kind, full.model.image_size)
    assert (small.data, small.diffusion) == (full.data, full.diffusion)


def test_fine_tuning_defaults():
    base, upsample = page("glide_base"), page("glide_upsample")
    for config in (base, upsample):
        optimizer = config.train.optimizer
        assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.ema_decay) == (1e-4, 0.0, 0.9999)
    assert (base.data.uncond_p, upsample.data.uncond_p) == (0.2, 0.0)


def test_the_defaults_of_the_page_are_those_of_the_dataclasses():
    assert from_ml_collections(default_config()) == RunConfig()


def test_a_changed_size_takes_its_own_channel_multipliers():
    config = default_config()
    config.model.image_size = 256
    assert from_ml_collections(config).model.channel_mult == (1, 1, 2, 2, 4, 4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch_size", "8", "config.train.batch_size cannot be '8': it takes int"),
        ("train.batch_size", True, "config.train.batch_size cannot be True: it takes int"),
        ("train.remat", "some", "config.train.remat cannot be 'some': it takes 'none', 'full', 'dots'"),
        ("train", 3, "config.train is a group of options; set one of them (config.train.NAME=...)"),
        ("model.attention_resolutions", ("8",), "config.model.attention_resolutions cannot be ('8',): it takes tuple"),
        ("model.image_size", 48, "model.channel_mult must be given for image_size 48 (known: 64, 128, 256)"),
        ("model.dropout", 1.0, "model.dropout must be in [0, 1), not 1.0"),
        ("train.optimizer.ema_decay", 1.0, "train.optimizer.ema_decay must be in [0, 1), not 1.0"),
        ("train.loss.kind", "l1", "config.train.loss.kind cannot be 'l1': it takes 'simple', 'hybrid'"),
        (
            "diffusion.noise_schedule",
            "cosine",
            "diffusion.noise_schedule must be one of linear or squaredcos_cap_v2, not 'cosine'",
        ),
        ("parallel.fsdp", 0, "parallel.fsdp=0: must be at least 1, or -1 for the devices that are left"),
    ],
)
def test_impossible_values_are_refused(key, value, message):
    config = default_config()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value}) if "." in key else config.__setattr__(key, value)
    with pytest.raises(GlideError, match=f"^{re.escape(message)}") as caught:
        from_ml_collections(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("unknown", "near"), [("batchsize", "batch_size"), ("max_step", "max_steps")])
def test_unknown_keys_are_refused_with_the_nearest_name(unknown, near):
    config = default_config()
    with config.unlocked():
        config.train[unknown] = 8
    with pytest.raises(GlideError, match=rf"^config\.train\.{unknown} is unknown; did you mean {near}\?$"):
        from_ml_collections(config)


def test_a_key_like_no_other_is_refused_with_all_names():
    config = default_config()
    with config.unlocked():
        config.parallel.zzz = 8
    with pytest.raises(GlideError, match=r"^config\.parallel\.zzz is unknown; choose from data, fsdp$"):
        from_ml_collections(config)
