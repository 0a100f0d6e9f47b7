"""A dry run: what would be trained, the memory it would take, the first batch, and whether the step compiles."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from glide_jax import progress
from glide_jax.images import grid, save_png
from glide_jax.models.lora import GROUP
from glide_jax.parallel import make_mesh, together, wait_for_all
from glide_jax.train.config import RunConfig
from glide_jax.train.interrupt import ending_at_once
from glide_jax.train.memory import fitting
from glide_jax.train.previews import open_previews
from glide_jax.train.processes import check_alike
from glide_jax.train.program import Program
from glide_jax.train.start import StartPoint, training_data, validation_data, warn_of_warm_up
from glide_jax.train.state import is_trained

_DEPTH = 2
_CELL = 96


def dry_run(config: RunConfig) -> int:
    """Prints tables of the model and of the memory on each device, shows the first batch, compiles one step.

    Writes `RUN/samples/dry_run.png` and nothing else. Raises `GlideError` as a run would before its first step, except
    that `train.prior` is left out.
    """
    with ending_at_once(lambda: f"while {progress.doing() or 'starting'}"):
        return _dry_run(config)


def _dry_run(config: RunConfig) -> int:
    first = jax.process_index() == 0
    console = Console(quiet=not first)
    if first:
        warn_of_warm_up(config.train)
    mesh = make_mesh(config.parallel)
    with together("checkpoint found"):
        start = StartPoint.of(config)
    program = Program(config, mesh)
    opening = progress.phase("opening the data", quiet=not first)
    with opening, together("data open"), training_data(config, start) as data:
        batch, sizes = next(data), [size for size, count in data.buckets.counts.items() if count]
        validation = validation_data(config)
        open_previews(config, program.model)
    check_alike(config, data, validation)
    console.print(model_table(program))
    if first:
        path = Path(config.run_dir).expanduser() / "samples" / "dry_run.png"
        save_png(path, grid(list(batch.arrays["image"]), batch.captions, cell=_CELL))
        print(f"{'first batch' if jax.process_count() == 1 else 'part of the first batch'}: {path}")
    begun = time.perf_counter()
    largest = max(sizes, key=math.prod)
    with progress.phase("compiling the training step", quiet=not first), fitting(config.train):
        compiled = program.compile(largest)
    seconds = time.perf_counter() - begun
    console.print(memory_table(program, compiled))
    if first:
        flops = program.step_flops(largest)
        of = f" of {largest}, which has the most pixels of {len(sizes)} sizes" if len(sizes) > 1 else ""
        print(f"one step{of}: compiled in {seconds:.1f} s, {flops / 1e12:.3g} TFLOP a device")
    wait_for_all("end")
    return 0


def model_table(program: Program) -> Table:
    """The parameters in each part of the model, and how many of them are trained."""
    trained_set = program.config.train.trained
    counts: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for path, leaf in jax.tree.leaves_with_path(program.abstract_params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        part = _part(name, program.config.train.lora.targets)
        counts[part] += leaf.size
        trained[part] += leaf.size * is_trained(name, trained_set)
    table = Table("part", "parameters", "trained", title=program.config.model.kind)
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", f"{trained[part]:,}")
    table.add_section()
    table.add_row("all", f"{counts.total():,}", f"{trained.total():,}")
    return table


def _part(name: str, targets: Sequence[str]) -> str:
    """The table row a parameter belongs to: its part of the model or, for an adapter, its target."""
    path = name.split("/")
    if path[0] != GROUP:
        return "/".join(path[:_DEPTH])
    layer = "/".join(path[1:-1])
    return f"{GROUP}: {next(target for target in targets if fnmatchcase(layer, target))}"


def memory_table(program: Program, compiled: jax.stages.Compiled) -> Table:
    """Bytes on each device: each part of the state, the batch, and what the compiled step needs on top."""
    shape = dict(program.mesh.shape)
    table = Table("on each device", "MB", title=f"memory, mesh {shape['data']} x {shape['fsdp']} (data x fsdp)")
    for name, size in program.state_bytes().items():
        table.add_row(name, _megabytes(size))
    analysis: Any = compiled.memory_analysis()
    if analysis is not None:
        table.add_section()
        table.add_row("state and batch", _megabytes(analysis.argument_size_in_bytes))
        table.add_row("activations and gradients", _megabytes(analysis.temp_size_in_bytes))
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"
