"""The compiled training step, the memory that its state takes, and models of other sizes than the published."""

import importlib
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from glide_jax.config import from_ml_collections
from glide_jax.data import DataConfig
from glide_jax.data.transforms import Size
from glide_jax.errors import GlideError
from glide_jax.models import ModelConfig
from glide_jax.parallel import ParallelConfig, bytes_per_device, make_mesh, put_batch, state_shardings, with_shardings
from glide_jax.sample import Inputs, SampleOptions, Stage
from glide_jax.train import RunConfig
from glide_jax.train.program import Program
from tests.parallel.processes import ROOT
from tests.tiny.models import BASE, UPSAMPLER
from tests.tiny.training import compiled_step, make_batch, make_config, make_params, make_program

CONFIG = make_config()


def test_twenty_updates_transfer_nothing_unasked_and_donate_everything():
    # An executable cannot compile again: a batch or state of another shape would be an error.
    step, mesh = compiled_step(CONFIG), make_program(CONFIG).mesh
    state, losses = make_program(CONFIG).state_from(make_params()), set()
    with jax.transfer_guard("disallow"):
        for i in range(20):
            batch = put_batch(make_batch(first=8 * i), mesh)
            before, (state, metrics) = state, step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
            losses.add(jax.device_get(metrics["loss"]).item())
    assert int(state["step"]) == len(losses) == 20
    assert np.isfinite([*losses, metrics["grad_norm"]]).all()
    assert int(metrics["skipped_updates"]) == 0


def test_the_abstract_batch_is_what_the_data_package_makes():
    batch, expected = make_program(CONFIG).abstract_batch(), make_batch()
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }


def test_a_step_takes_images_of_any_shape_with_their_masks_and_low_resolution_inputs():
    run = RunConfig(model=replace(UPSAMPLER, inpaint=True), train=CONFIG)
    program = Program(run, make_mesh(run.parallel))
    assert program.abstract_batch(Size(16, 24))["low_res"].shape == (8, 8, 12, 3)
    assert program.step_flops(Size(16, 24)) > 0  # traced, every shape fits the others


def test_sizes_that_the_model_cannot_halve_are_refused():
    given = {"model": replace(BASE, image_size=16, channel_mult=(1, 1)), "train": CONFIG}
    assert RunConfig(**given, data=DataConfig(buckets=("16x16", "10x14"))).data.sizes == ((16, 16), (10, 14))
    with pytest.raises(
        GlideError, match=r"^data.buckets 34x32 has more than 4 times the pixels of model.image_size 16"
    ):
        RunConfig(**given, data=DataConfig(buckets=("32x32", "34x32")))
    message = "data.buckets 10x15: height and width must be multiples of 2 for this model"
    with pytest.raises(GlideError, match=f"^{message}$"):
        RunConfig(**given, data=DataConfig(buckets=("16x16", "10x15")))
    by_three = replace(given["model"], image_size=24, super_res=True, low_res_size=8)
    with pytest.raises(GlideError, match=r"multiples of 6 for this model"):
        RunConfig(model=by_three, train=CONFIG, data=DataConfig(buckets=("24x24", "24x32")))


ROWS = re.findall(
    r"^\| `(\w+)` \| (\d+) x (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
    (ROOT / "docs" / "training.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("page", ["glide_base", "glide_upsample"])
def test_megabytes_on_each_device(page):
    config = from_ml_collections(importlib.import_module(f"configs.{page}").get_config())
    state = Program(config, make_mesh(config.parallel)).abstract_state
    rows = [row for row in ROWS if row[0] == page]
    assert len(rows) >= 4
    for _, data, fsdp, *figures in rows:
        mesh = AbstractMesh((int(data), int(fsdp)), ("data", "fsdp"))
        placed = with_shardings(state, state_shardings(state, mesh))
        sizes = [bytes_per_device(placed[part]) for part in ("params", "ema", "opt")]
        assert figures == [f"{size / 1e6:.0f}" for size in (*sizes, sum(sizes))], (data, fsdp)


@pytest.mark.slow
def test_a_size_that_nobody_published_takes_one_step_and_gives_one_image():
    model = ModelConfig(
        image_size=96, num_channels=32, num_res_blocks=1, channel_mult=(1, 1), attention_resolutions=(),
        num_head_channels=16, dropout=0.0, text_ctx=4, xf_width=16, xf_layers=1, xf_heads=1, resblock_updown=False,
        super_res=True, low_res_size=48,
    )  # fmt: skip
    program = Program(RunConfig(model=model, train=replace(make_config(), batch_size=1)), make_mesh(ParallelConfig()))
    random = np.random.RandomState(0)
    batch = {
        key: random.randint(0, 256, leaf.shape).astype(leaf.dtype) for key, leaf in program.abstract_batch().items()
    }
    assert batch["image"].shape == (1, model.image_size, model.image_size, 3)
    state, metrics = program.compile()(program.fresh_state(), batch)
    assert np.isfinite(float(metrics["loss"]))
    low_res = random.uniform(-1, 1, (1, 48, 48, 3))
    params, options = (
        program.packing.unpack(state["params"]),
        SampleOptions.of(num_steps=1, schedule="trailing", guidance_scale=1.0),
    )
    image = Stage(program.model, program.config.diffusion).sample(
        params, Inputs(["a cat"], [0], low_res=low_res), options
    )
    assert image.shape == (1, model.image_size, model.image_size, 3)
    assert np.isfinite(jax.device_get(image)).all()


@pytest.mark.parametrize("gpu", [False, True])
def test_on_gpus_alone_gradients_are_arranged_before_their_update(monkeypatch, gpu):
    monkeypatch.setattr(Program, "_on_gpu", lambda program: gpu)
    program = Program(RunConfig(model=BASE, train=CONFIG), make_mesh(ParallelConfig(), jax.devices()[:1]))
    text = program.train_step.lower(program.abstract_packed, program.abstract_batch()).as_text()
    # Norms have barriers of their own, over small arrays.
    assert bool(re.search(r"optimization_barrier %\w+ : tensor<3x3x", text)) == gpu
