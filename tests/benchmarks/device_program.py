"""What XLA makes of our programs for an NVIDIA H100 or for TPUs, seen on a machine that has neither.

    V=$(python -c "import jax; print(jax.__version__)")
    pip install --no-deps jax-cuda13-plugin==$V jax-cuda13-pjrt==$V     # for --device h100
    pip install --no-deps libtpu        # for --device v5e:2x2; jax[tpu] names the version
    python tests/benchmarks/device_program.py [--configs emoji,glide_base] [--programs init,train,sample] [--batch 32]

Prints for each program the seconds of tracing and of compiling, kernels by kind, gigabytes that they read and write by
their shapes (of an array of which a kernel takes slices, those), memory of each device, and what should not be there;
for TPUs also the cycles that their compiler expects. What only a GPU can choose is missing: cuDNN's and cuBLAS's
algorithms, and the memory they work in. Messages about cuInit, PJRT_Api and the TPU's missing host are harmless.
`--dump DIR` keeps the programs' text.
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

# Before jax is imported; what is compiled here is never run, so kernels need no choice of the quickest.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # there is no TPU to share
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from glide_jax.config import from_ml_collections, override, read_config
from glide_jax.models import Conditioning, Params, attention
from glide_jax.parallel import make_mesh
from glide_jax.train import RunConfig
from glide_jax.train.program import Program
from tests.benchmarks.hlo import report

PROGRAMS = ("init", "train", "sample")

# NVIDIA's figures for the H100 SXM, as its data sheet, the CUDA C++ programming guide (compute capability 9.0) and
# cudaGetDeviceProperties have them.
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def absent_devices(name: str) -> list[jax.Device]:
    """Devices to compile for that are not there: "h100" is one, "h100:8" a node of eight, "v5e:2x2" four TPU chips.

    Raises:
        ImportError: no CUDA plugin of jax is installed.
        jax.errors.JaxRuntimeError: libtpu is not installed, or does not know the topology.
    """
    if not name.startswith("h100"):
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    from jax._src.cudnn import fused_attention_stablehlo as cudnn
    from jax_plugins import xla_cuda13

    # JAX looks for cuDNN on this machine before it writes a call of it.
    attention.cuda_capability = lambda: 9.0
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda capability: True
    try:
        xla_cuda13.initialize()
    except jax.errors.JaxRuntimeError as error:
        if "already exists" not in str(error):  # jax has found it by itself
            raise
    count = int(name.partition(":")[2] or 1)
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}")
    return list(topology.devices)


def lowered(name: str, config: RunConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The program of that name for a config's model and `mesh`; "sample" is one guided evaluation, with its text."""
    program = Program(config, mesh)
    if name == "train":
        return program.train_step.lower(program.abstract_packed, program.abstract_batch())
    if name == "init":
        whole = NamedSharding(mesh, PartitionSpec())
        return program.make_state.lower(jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole))
    batch, model = program.abstract_batch(), config.model
    sharding = batch["tokens"].sharding

    def evaluate(params: Params, x: Array, low_res: Array | None, tokens: Array, mask: Array) -> Array:
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), (x, low_res))
        t = jnp.full(len(x) * 2, 500.0)
        return program.model(
            params, twice[0], t, Conditioning(program.model.encode_text(params, tokens, mask), twice[1])
        )

    def images(side: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.train.batch_size, side, side, 3), jnp.float32, sharding=sharding)

    texts = [jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype, sharding=sharding)
             for x in (batch["tokens"], batch["mask"])]  # fmt: skip
    low_res = images(model.low_res_size) if model.super_res else None
    return jax.jit(evaluate).lower(program.abstract_state["params"], images(model.image_size), low_res, *texts)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", default="h100", help="h100, h100:8, or TPUs as v5e:2x2, v5p:2x2x1 or v6e:4x4")
    parse.add_argument("--configs", default="emoji,glide_base")
    parse.add_argument("--programs", default=",".join(PROGRAMS))
    parse.add_argument("--batch", type=int, default=32)
    parse.add_argument("--dtype", default="bfloat16")
    parse.add_argument("--dump", type=Path)
    args, changes = parse.parse_known_args()
    devices = absent_devices(args.device)
    for name in args.configs.split(","):
        file, colon, variant = name.partition(":")
        options = read_config(f"configs/{file}.py{colon}{variant}")
        for change in changes:
            override(options, *change.removeprefix("--config.").split("=", 1))
        config = from_ml_collections(options)
        config = replace(config, train=replace(config.train, batch_size=args.batch, dtype=args.dtype))
        mesh = make_mesh(config.parallel, devices)
        for program in args.programs.split(","):
            begun, busy = time.monotonic(), time.process_time()
            traced = lowered(program, config, mesh)
            tracing, begun = time.monotonic() - begun, time.monotonic()
            compiled = traced.compile()
            compiling, busy = time.monotonic() - begun, time.process_time() - busy
            memory, text = compiled.memory_analysis(), compiled.as_text()
            print(
                f"{name} {program}, batch {args.batch}: {tracing:.1f} s tracing, {compiling:.1f} s compiling"
                f" ({busy:.0f} s of CPU in all), {memory.temp_size_in_bytes / 1e9:.2f} GB besides"
                f" {memory.argument_size_in_bytes / 1e9:.2f} GB of arguments"
            )
            print(report(text, args.dtype == "bfloat16"), flush=True)
            if args.dump:
                args.dump.mkdir(parents=True, exist_ok=True)
                (args.dump / f"{name}-{program}.txt").write_text(text)


if __name__ == "__main__":
    main()
