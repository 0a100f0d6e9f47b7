import socket
import subprocess
import uuid

import jax
import pytest

from glide_jax.errors import GlideError
from glide_jax.parallel import initialize_from_environment
from tests.parallel.processes import finish, free_port, run, start

# The mesh orders the devices of the two processes in turn, as a TPU's topology may.
TWO_PROCESSES = """
from glide_jax.parallel import *
initialize_from_environment()

import jax, numpy as np
assert jax.process_count() == 2 and jax.device_count() == 4
devices = [jax.devices()[i] for i in (0, 2, 1, 3)]
mesh = jax.sharding.Mesh(np.array(devices).reshape(2, 2), AXES)
slices = batch_sharding(mesh).addressable_devices_indices_map((8,)).values()
rows = np.sort(np.concatenate([np.arange(8)[index] for index in slices]))
images = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
batch = put_batch({"images": images[rows]}, mesh)["images"]
assert batch.shape == (8, 3)
weights = np.arange(1.0, 9.0, dtype=np.float32)[:, None]
total = jax.jit(lambda x: (x * weights).sum())(batch)
import time
from glide_jax.errors import GlideError
if jax.process_index() == 0:
    try:
        wait_for_all("nobody else comes", timeout=1)
    except GlideError as error:
        assert str(error).startswith("not all processes came to 'nobody else comes': "), error
    else:
        raise AssertionError("it did not wait")
time.sleep(jax.process_index())
arrived = time.monotonic()
wait_for_all("here")
print(rows.tolist(), float(total) == float((images * weights).sum()), arrived, time.monotonic())
"""


def _slurm(process: int, port: int) -> dict[str, object]:
    names = {"JOB_ID": 1, "STEP_NODELIST": socket.gethostname(), "NTASKS": 2, "STEP_NUM_TASKS": 2}
    names |= {"PROCID": process, "LOCALID": process}
    return {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"} | {f"SLURM_{k}": v for k, v in names.items()}


def test_two_slurm_tasks_feed_one_global_batch_and_wait_for_each_other():
    port = free_port()
    processes = [start(TWO_PROCESSES, devices=2, **_slurm(i, port)) for i in range(2)]
    last_lines = [finish(process).splitlines()[-1] for process in processes]  # gloo prints before them
    results, arrived, left = zip(*(line.rsplit(maxsplit=2) for line in last_lines), strict=True)
    assert results == ("[0, 1, 4, 5] True", "[2, 3, 6, 7] True")
    assert min(map(float, left)) >= max(map(float, arrived))


TWO_MACHINES = """
import sys
from glide_jax.parallel import *
initialize_from_environment("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))

import jax, numpy as np
assert [device.slice_index for device in jax.devices()] == [0, 0, 1, 1]
for fsdp in (1, 2, 4):
    mesh = make_mesh(ParallelConfig(fsdp=fsdp))
    images = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    batch = put_batch({"images": np.split(images, 2)[jax.process_index()]}, mesh)["images"]
    weights = np.arange(1.0, 9.0, dtype=np.float32)[:, None]
    assert float(jax.jit(lambda x: (x * weights).sum())(batch)) == (images * weights).sum()
print([[device.process_index for device in row] for row in make_mesh(ParallelConfig(fsdp=2)).devices])
"""


@pytest.fixture
def machines(tmp_path):
    """Commands that start a program as if on two machines, which jax tells apart by the kernel's boot id."""
    commands = []
    for i in range(2):
        boot_id = tmp_path / f"boot_id_{i}"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        mount = f'mount --bind {boot_id} /proc/sys/kernel/random/boot_id && exec "$@"'
        commands.append(["unshare", "--mount", "sh", "-c", mount, "sh"])
    try:
        subprocess.run([*commands[0], "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace for the boot id: {error}")
    return commands


def test_two_machines_are_one_mesh(machines):
    port = free_port()
    processes = [start(TWO_MACHINES, port, i, devices=2, within=machine) for i, machine in enumerate(machines)]
    assert [finish(process).splitlines()[-1] for process in processes] == ["[[0, 0], [1, 1]]"] * 2


# Once a device is in use jax refuses to join other processes, so what follows shows whether it was asked to.


def test_alone_it_does_nothing(monkeypatch):
    jax.devices()
    initialize_from_environment()
    # An sbatch script without srun: four tasks were asked for, one process runs.
    for name, value in {"JOB_ID": 1, "NTASKS": 4, "PROCID": 0, "LOCALID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    initialize_from_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "2"), ("TPU_ML_PLATFORM", "JAX")],
)
def test_launchers_and_tpu_hosts_are_recognised(monkeypatch, name, value):
    jax.devices()
    monkeypatch.setenv(name, value)
    with pytest.raises(GlideError, match=r"^cannot join the other processes at the launcher's address: "):
        initialize_from_environment()


@pytest.mark.parametrize(("tasks", "warned"), [("1(x2)", True), ("4(x2),2", True), ("8(x2)", False), ("", False)])
def test_gpus_of_a_node_that_no_task_will_use_are_told(monkeypatch, capsys, tasks, warned):
    jax.devices()
    for name, value in {"STEP_NUM_TASKS": 2, "GPUS_ON_NODE": 8, "STEP_TASKS_PER_NODE": tasks}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(GlideError, match=r"^cannot join the other processes at the launcher's address: "):
        initialize_from_environment()
    assert (
        "on a node of 8 GPUs, and a task uses one GPU: start --ntasks-per-node=8" in capsys.readouterr().err
    ) == warned


def test_a_tpu_host_that_no_service_describes_is_alone():
    """As notebooks rent them: the runtime is there, and nothing names other hosts."""
    program = "from glide_jax.parallel import *; initialize_from_environment(); import jax; print(jax.process_count())"
    assert run(program, TPU_ML_PLATFORM="JAX", TPU_SKIP_MDS_QUERY=1).split() == ["1"]


def test_a_late_call_is_refused_in_one_line():
    jax.devices()
    with pytest.raises(GlideError, match=r"^cannot join the other processes at 127.0.0.1:1234: .*$"):
        initialize_from_environment("127.0.0.1:1234", 2, 0)


def test_half_an_address_is_refused():
    with pytest.raises(GlideError, match=r"^give coordinator_address, num_processes and process_id together"):
        initialize_from_environment("127.0.0.1:1234")
