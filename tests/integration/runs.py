"""Runs of the tiny page, or of one that computes the same; in this process all of them share their programs."""

import copy
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from glide_jax.config import from_ml_collections
from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import Glide
from glide_jax.sample import Stage
from glide_jax.train import loop, previews
from tests.integration import page
from tests.programs import call
from tests.tiny.training import MODEL, compiled_step, make_config, make_program, timed_config

FOOD = "datasets/emoji/train-food-3d.tar"
# What the host alone deals with.
_HOSTS = (
    "max_steps", "max_skipped_updates", "log_every", "sample_every", "validate_every", "save_every", "keep_checkpoints",
    "preview", "prior",
)  # fmt: skip


def command(run_dir: Path, *arguments: object) -> list[str]:
    """What to write after the interpreter to train in `run_dir`."""
    return ["train.py", "--config=tests/integration/page.py", f"--config.run_dir={run_dir}", *map(str, arguments)]


def train(run_dir: Path, *arguments: object) -> int:
    """Trains in this process; the exit code."""
    return call(*command(run_dir, *arguments))


def config():
    """The page's run."""
    return from_ml_collections(page.get_config())


def log(run_dir: Path, figure: str) -> dict[int, float]:
    """One figure of the log at every update that it was written at."""
    lines = map(json.loads, (run_dir / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[figure] for line in lines if figure in line}


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    """Loss and norm of the gradient of every update."""
    norms = log(run_dir, "grad_norm")
    return {step: (loss, norms[step]) for step, loss in log(run_dir, "loss").items()}


@contextmanager
def sent_after(number: signal.Signals, condition: Callable[[], bool]) -> Iterator[None]:
    """Sends this process a signal as soon as something is so; it harms nobody who does not listen."""
    left, before = threading.Event(), signal.signal(number, lambda *_: None)

    def send():
        while not left.wait(0.02):
            if condition():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        signal.signal(number, before)


@contextmanager
def compiled_once() -> Iterator[None]:
    """Tracing a run's programs again takes several times as long as all its updates here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("loop", "dry_run"):
            patch.setattr(importlib.import_module(f"glide_jax.train.{module}"), "Program", _program)
        # Programs of one model, whatever their optimizers, draw with the same stage.
        patch.setattr("glide_jax.train.program.Glide", _glide)
        patch.setattr(previews, "Stage", _stage)
        yield


_Program, _glide, _stage = loop.Program, cache(Glide), cache(Stage)


def _program(config, mesh):
    """What this process has compiled already where a run needs the same, else a program of its own."""
    if (config.model, config.diffusion) != (MODEL, DiffusionConfig()) or mesh.size != 1:
        return _Program(config, mesh)
    # That there is a limit of time makes another program, how long it is does not.
    usual = timed_config() if config.train.max_minutes else make_config()
    shared = replace(config.train, **{name: getattr(usual, name) for name in (*_HOSTS, "max_minutes")})
    program = copy.copy(make_program(shared))
    program.config = config
    program.compile = lambda size: compiled_step(shared, size)
    program.fresh_state = lambda: jax.tree.map(jnp.copy, _fresh_state(shared))
    return program


@cache
def _fresh_state(shared):
    return make_program(shared).fresh_state()
