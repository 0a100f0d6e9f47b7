"""Every file of a checkpoint, damaged in every way: it is loaded as it was written, or refused in one line."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest

from glide_jax.checkpoint import CheckpointStore, load_weights, newest_intact, read_record, resolve, save_weights
from glide_jax.checkpoint.folders import Newest
from glide_jax.checkpoint.step_format import HASHES
from glide_jax.errors import GlideError
from tests.checkpoint.states import abstract, assert_same_bits

PARAMS = {"bias": jnp.float32([1.5, -2.0, 3.25]), "kernel": jnp.arange(64.0).reshape(8, 8)}
RECORD = {"position": 64, "model": {"width": 8}}
FLIPS = 20


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with steps 1 and 2, not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    with CheckpointStore(folder / "checkpoints") as store:
        for step in (1, 2):
            store.save(step, {"params": PARAMS, "step": jnp.int32(step)}, RECORD | {"step": step})
    return folder


@pytest.fixture
def run(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    return tmp_path / "run"


def damages(content: bytes) -> Iterator[bytes | None]:
    """What a file of that content may have become; None where it is no more."""
    yield None
    yield content + b"\0"
    if content:
        yield from (b"", content[: len(content) // 2], content[:-1])
    for place in random.Random(len(content)).choices(range(8 * len(content)), k=FLIPS if content else 0):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def put(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def loaded(path):
    """Parameters and record, or the line that refuses them."""
    try:
        return load_weights(path, abstract(PARAMS)), read_record(path)
    except GlideError as error:
        return str(error)


def test_no_damage_is_loaded(run, capfd):
    step = run / "checkpoints" / "2"
    files = files_of(step)
    assert {str(path.relative_to(step).parts[0]) for path in files} >= {"state", "record", "arrays", HASHES}
    refused = 0
    for path in files:
        content = path.read_bytes()
        for damaged in damages(content):
            put(path, damaged)
            match loaded(run):
                case str(line):
                    refused += 1
                    assert line.startswith(f"checkpoint {step} is damaged: ")
                    assert "\n" not in line
                    choice = newest_intact(run / "checkpoints")
                    assert (choice.step, list(choice.damaged)) == (1, [2])
                case params, record:
                    assert path.name == HASHES, (
                        path,
                        damaged,
                    )  # without one, a step counts as of before there were any
                    assert_same_bits(params, PARAMS)
                    assert record == RECORD | {"step": 2}
        put(path, content)
    assert refused > 200
    assert newest_intact(run / "checkpoints").step == 2
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["record", "arrays"])
def test_damaged_json_without_hashes_is_no_traceback(run, name):
    (run / "checkpoints" / "2" / HASHES).unlink()
    path = run / "checkpoints" / "2" / name / "data.json"
    content = path.read_bytes()
    for damaged in (*damages(content), b"[]", b"7", b'{"params/bias": {"shape": "3"}}', b"[" * 10**5):
        put(path, damaged)
        result = loaded(run)
        assert not isinstance(result, str) or "\n" not in result


@pytest.mark.parametrize("name", ["/proc/kmsg", "../1/record/data.json"])
def test_only_files_of_the_step_are_read(run, name):
    (run / "checkpoints" / "2" / HASHES).write_text(f'{{"{name}": [0, 0], "record/data.json": [0, 0]}}')
    with pytest.raises(GlideError, match=f"{HASHES} lists '{name}', which is no file of it; use another step"):
        load_weights(run, abstract(PARAMS))


def test_arrays_far_larger_than_their_files_are_not_made(tmp_path):
    """What a file does not hold is zeros: of a stranger's, as many as he likes."""
    zeros = {"table": jnp.zeros((1000, 1000))}
    save_weights(tmp_path / "zeros", zeros, {}, compress=True)
    with pytest.raises(GlideError, match=r"zeros is damaged: arrays/data.json lists 1000000 numbers, .* \d+ bytes;"):
        load_weights(tmp_path / "zeros", abstract(zeros))


def test_a_step_without_hashes_is_one_of_before_and_loads(run):
    (run / "checkpoints" / "2" / HASHES).unlink()
    params, record = loaded(run)
    assert_same_bits(params, PARAMS)
    assert record == RECORD | {"step": 2}
    assert newest_intact(run / "checkpoints") == Newest(2, {})


@pytest.mark.parametrize("given", ["run@1", "run/checkpoints@1", "run/@1", "run/checkpoints/1@1"])
def test_a_path_may_name_the_step(run, given):
    assert resolve(run.parent / given) == run / "checkpoints" / "1"
    assert read_record(run.parent / given)["step"] == 1


def test_a_folder_with_such_a_name_is_that_folder(run, tmp_path):
    save_weights(tmp_path / "run@1", PARAMS, {"named": True})
    assert read_record(tmp_path / "run@1") == {"named": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("run@7", r"^no checkpoint of step 7 in .*/checkpoints; there are 1, 2$"),
        ("run@", "no such folder"),
        ("none@1", "^no checkpoint at .*none@1: no such folder$"),
        ("run/checkpoints/2@1", "is one checkpoint already; leave out step 1"),
    ],
)
def test_a_step_that_is_not_there_is_one_line(run, given, message):
    with pytest.raises(GlideError, match=message):
        resolve(run.parent / given)


def test_half_a_step_is_not_passed_over_without_a_word(run):
    (run / "checkpoints" / "2" / "record" / "data.json").unlink()
    with pytest.raises(GlideError, match=r"^checkpoint .*/2 is damaged: record/data.json is missing; use another step"):
        resolve(run)
    assert resolve(f"{run}@1").name == "1"


def test_where_all_are_damaged_none_is_chosen(run):
    for step in "12":
        (run / "checkpoints" / step / "arrays" / "data.json").write_text("{}")
    with pytest.raises(GlideError, match=r"/2 is damaged: arrays/data.json has 2 bytes, not .*; so are all others in"):
        newest_intact(run / "checkpoints")


def test_a_damaged_step_set_aside_can_be_written_again(run):
    folder = run / "checkpoints"
    (folder / "2" / "arrays" / "data.json").write_text("{}")
    (folder / "2.damaged").mkdir()  # of another time
    with CheckpointStore(folder) as store:
        store.set_aside(newest_intact(folder).damaged)
        assert store.steps() == [1]
        store.save(2, {"params": PARAMS}, {"new": True})
    assert read_record(run) == {"new": True}
    assert (folder / "2.damaged" / "arrays" / "data.json").read_text() == "{}"


def test_an_old_damaged_step_does_not_stop_the_next_save(run):
    (run / "checkpoints" / "1" / "record" / "data.json").write_text("x")
    with CheckpointStore(run / "checkpoints", keep_last=1, keep_best=1) as store:
        store.save(3, {"params": PARAMS}, {"validation_mse": 0.5})
        store.wait()
        assert store.steps() == [3]
