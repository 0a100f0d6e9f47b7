import pytest

from glide_jax.checkpoint import CheckpointStore
from tests.checkpoint.states import abstract, assert_same_bits, tiny_state
from tests.parallel.processes import finish, free_port, run, start

RESTORE_AND_SAVE = """
import sys
import jax
from glide_jax.checkpoint import CheckpointStore
from glide_jax.parallel import *
initialize_from_environment(*([sys.argv[4], 2, int(sys.argv[5])] if len(sys.argv) > 4 else []))
from tests.checkpoint.states import *

folder, data, fsdp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
target = abstract(tiny_state(), data=data, fsdp=fsdp)
with CheckpointStore(folder + "/new") as store:
    assert store.latest() is None
with CheckpointStore(folder) as store:
    assert store.latest() == 1
    state, record = store.restore(target)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding
    assert state["params"]["unet"]["kernel"].addressable_shards[0].data.shape == (3, 3, 4, 8 // fsdp)
    assert record == {"position": 64}
    store.save(2, state, record)
    store.wait()
    assert store.steps() == [1, 2]
"""


@pytest.fixture
def folder(tmp_path):
    """A checkpoints folder with step 1, written on one device."""
    with CheckpointStore(tmp_path) as store:
        store.save(1, tiny_state(1), {"position": 64})
    return tmp_path


def _assert_second_step_equals_first(folder) -> None:
    with CheckpointStore(folder) as store:
        assert store.steps() == [1, 2]
        state, record = store.restore(abstract(tiny_state()))
    assert_same_bits(state, tiny_state(1))
    assert record == {"position": 64}
    assert all((folder / step / "hashes.json").is_file() for step in "12")


def test_one_device_to_eight_and_back(folder):
    run(RESTORE_AND_SAVE, folder, 2, 4, devices=8)
    _assert_second_step_equals_first(folder)


def test_one_process_to_two_and_back(folder):
    address = f"127.0.0.1:{free_port()}"
    for process in [start(RESTORE_AND_SAVE, folder, 1, 4, address, i, devices=2) for i in range(2)]:
        finish(process)
    _assert_second_step_equals_first(folder)
