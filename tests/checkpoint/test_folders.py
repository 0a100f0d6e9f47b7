import shutil

import jax
import jax.numpy as jnp
import pytest
import tensorstore

from glide_jax.checkpoint import (
    CheckpointStore,
    complete_steps,
    load_weights,
    read_record,
    require_blocks,
    resolve,
    save_weights,
)
from glide_jax.errors import GlideError
from tests.checkpoint.states import abstract, assert_same_bits, tiny_state


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


@pytest.mark.parametrize("path", ["a" * 5000, "~nobody-of-this-name/base"])
def test_what_cannot_be_looked_at_is_one_line(path):
    with pytest.raises(GlideError, match=r"^(cannot read .*: (File name too|Could not determine)|no checkpoint at)"):
        resolve(path)


@pytest.fixture
def run(tmp_path):
    """A run folder with steps 1 and 2."""
    with CheckpointStore(tmp_path / "checkpoints") as store:
        for step in (1, 2):
            store.save(step, tiny_state(step), {"step": step})
    return tmp_path


def test_any_folder_of_a_run_names_its_weights(run):
    params = abstract(tiny_state()["params"])
    for path in (run, run / "checkpoints", run / "checkpoints" / "2", str(run)):
        assert resolve(path) == run / "checkpoints" / "2"
        assert_same_bits(load_weights(path, params), tiny_state(2)["ema"])
    assert_same_bits(load_weights(run, params, step=1), tiny_state(1)["ema"])
    assert read_record(run, step=1) == {"step": 1}


def test_ema_weights_are_preferred_and_raw_ones_to_be_had(run):
    params = abstract(tiny_state()["params"])
    assert_same_bits(load_weights(run, params, prefer="ema"), tiny_state(2)["ema"])
    assert_same_bits(load_weights(run, params, prefer="params"), tiny_state(2)["params"])


def _bytes_read_from_disk() -> int:
    return tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")[0]["values"][0][
        "value"
    ]


def test_only_the_weights_are_read(tmp_path):
    weights = {"kernel": jnp.arange(1000.0)}
    with CheckpointStore(tmp_path) as store:
        store.save(1, {"params": weights, "opt": jnp.ones(2**22)}, {})
    before = _bytes_read_from_disk()
    assert_same_bits(load_weights(tmp_path, abstract(weights)), weights)
    assert 4000 <= _bytes_read_from_disk() - before < 100_000


def test_plain_weights_are_the_same_format(tmp_path):
    params = tiny_state()["params"]
    record = {"source": {"dtypes": {"text.embedding": "float16"}, "order": ["b", "a"]}}
    path = tmp_path / "models" / "base"
    save_weights(path, params, record)
    assert resolve(path) == path
    assert_same_bits(load_weights(path, abstract(params)), params)  # no EMA there: the parameters themselves
    assert read_record(path) == record


def test_blocks_that_a_record_claims_must_be_there(tmp_path):
    blocks = {str(number): {"kernel": jnp.zeros(2)} for number in (0, 1, 11)}
    save_weights(tmp_path / "base", {"unet": {"up": blocks, "upward": {"12": jnp.zeros(2)}}}, {})
    require_blocks(tmp_path / "base", {"unet/up": 3})
    require_blocks(tmp_path / "base", {"unet/up": 5, "text/blocks": 4}, unseen=5)
    for claimed, unseen in ((4, 0), (6, 5)):
        with pytest.raises(GlideError, match=rf"it has 3 of unet/up, not {claimed}$"):
            require_blocks(tmp_path / "base", {"unet/up": claimed}, unseen=unseen)


def test_weights_come_in_the_dtype_and_on_the_device_asked_for(tmp_path):
    save_weights(tmp_path / "base", {"kernel": jnp.float32([1.0, 3.14159265])}, {})
    wanted = {"kernel": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}
    loaded = load_weights(tmp_path / "base", wanted)
    assert_same_bits(loaded, {"kernel": jnp.bfloat16([1.0, 3.14159265])})
    assert loaded["kernel"].devices() == {jax.devices()[0]}


def test_weights_never_replace_what_is_there(tmp_path):
    save_weights(tmp_path / "base", {"kernel": jnp.zeros(2)}, {"first": True})
    with pytest.raises(GlideError, match=f"^{tmp_path}/base exists already; choose another name or remove it$"):
        save_weights(tmp_path / "base", {"kernel": jnp.ones(2)}, {})
    assert read_record(tmp_path / "base") == {"first": True}


def test_weights_under_a_file_are_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GlideError, match=r"^cannot write checkpoint .*/file/base: File exists; "):
        save_weights(tmp_path / "file" / "base", {"kernel": jnp.zeros(2)}, {})


def test_another_size_is_refused_without_its_optimizer(run):
    with pytest.raises(GlideError) as error:
        load_weights(run, abstract(tiny_state(width=12)["params"]))
    for part in (
        "ema/text/embedding is 16x8 in the checkpoint, 16x12 wanted; ",
        "ema/unet/kernel is 3x3x4x8 in the checkpoint, 3x3x4x12 wanted; use the configuration it was written with",
    ):
        assert part in str(error.value)
    assert " more" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "step", "message"),
    [
        ("nowhere", None, "^no checkpoint at .*nowhere: no such folder$"),
        ("models/clip-text", None, "no such folder; .* python -m convert to-flax clip/text-enc --output .*/clip-text$"),
        ("zip.pt", None, r"zip\.pt is a PyTorch file: convert it first, python -m convert to-flax .*/zip\.pt --output"),
        ("pickle.ckpt", None, "is a PyTorch file"),
        ("a.txt", None, r"a\.txt is a file, and no checkpoint: give a folder, or a \.safetensors file"),
        (".", 7, r"^no checkpoint of step 7 in .*checkpoints; there are 1, 2$"),
        ("checkpoints/2", 1, r"^.*checkpoints/2 is one checkpoint already; leave out step 1"),
        ("empty", None, "^no complete checkpoint in .*empty$"),
    ],
)
def test_a_missing_checkpoint_is_one_line(run, path, step, message):
    (run / "empty").mkdir()
    for name, content in {"zip.pt": b"PK\3\4", "pickle.ckpt": b"\x80\2", "a.txt": b"a"}.items():
        (run / name).write_bytes(content)
    with pytest.raises(GlideError, match=message):
        read_record(run / path, step)
