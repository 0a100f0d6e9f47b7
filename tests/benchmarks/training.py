"""Seconds of a training step, next to the PyTorch reference's where it is installed.

    python tests/benchmarks/training.py [--configs glide_base,glide_upsample] [--batches 2] [--steps 3] [--dtype DTYPE]

Ours is the step of a config in configs/ on random images: noise MSE, AdamW, EMA. The reference's is
glide-finetune's: the same loss by autograd, torch.optim.AdamW, no EMA; bfloat16 by autocast. `--tiny` narrows the
models to 64 channels. Both alternate; the fastest step of each counts. "dispatch" is the host time of one
asynchronous call of the step.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.config import from_ml_collections
from glide_jax.models import ModelConfig
from glide_jax.parallel import make_mesh
from glide_jax.train import RunConfig
from glide_jax.train.meter import peak_flops
from glide_jax.train.program import Program

TINY = {"num_channels": 64, "xf_width": 64, "xf_layers": 2, "xf_heads": 2, "num_res_blocks": 1}


def run_config(page: str, batch: int, dtype: str, tiny: bool) -> RunConfig:
    config = from_ml_collections(importlib.import_module(f"configs.{page}").get_config())
    model = replace(config.model, dropout=0.0, **(TINY if tiny else {}))
    return replace(config, model=model, train=replace(config.train, batch_size=batch, dtype=dtype))


def ours(config: RunConfig) -> tuple[Callable[[], None], dict[str, str]]:
    program = Program(config, make_mesh(config.parallel))
    random = np.random.RandomState(0)
    batch = {
        name: jnp.asarray(random.randint(0, 200, leaf.shape), leaf.dtype)
        for name, leaf in program.abstract_batch().items()
    }
    begun = time.monotonic()
    compiled = program.compile()
    compile_seconds = time.monotonic() - begun
    state = program.fresh_state()
    flops = program.step_flops()

    facts: dict[str, str] = {}
    dispatch = float("inf")

    def step() -> None:
        nonlocal state, dispatch
        begun = time.monotonic()
        state, metrics = compiled(state, batch)
        dispatch = min(dispatch, time.monotonic() - begun)
        facts["dispatch ms"] = f"{1000 * dispatch:.1f}"
        jax.block_until_ready(metrics)

    peak = peak_flops(jax.devices()[0].device_kind)
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    facts |= {"compile s": f"{compile_seconds:.0f}", "TFLOP": f"{flops / 1e12:.2f}", "GB": f"{held / 2**30:.1f}"}
    facts |= {"peak TFLOP/s": f"{peak / 1e12:.0f}" if peak else "unknown", "arrays": str(len(jax.tree.leaves(state)))}
    return step, facts


def reference(config: RunConfig) -> Callable[[], None] | None:
    try:
        import torch
        from glide_text2im.model_creation import create_gaussian_diffusion, create_model
    except ImportError:
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(**_torch_options(config.model)).to(device).train()
    diffusion = create_gaussian_diffusion(1000, config.diffusion.noise_schedule, "")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    size, batch, ctx = config.model.image_size, config.train.batch_size, config.model.text_ctx
    texts = {
        "tokens": torch.zeros(batch, ctx, dtype=torch.long, device=device),
        "mask": torch.ones(batch, ctx, dtype=torch.bool, device=device),
    }
    if config.model.super_res:
        texts["low_res"] = torch.zeros(batch, 3, config.model.low_res_size, config.model.low_res_size, device=device)
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    half = config.train.dtype == "bfloat16"

    def step() -> None:
        t = torch.randint(0, 1000, (batch,), device=device)
        noise = torch.randn_like(images)
        x_t = diffusion.q_sample(images, t, noise=noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            eps = model(x_t, t, **texts)[:, :3]
            loss = torch.nn.functional.mse_loss(eps, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def _torch_options(model: ModelConfig) -> dict[str, object]:
    names = (
        "image_size", "num_channels", "num_res_blocks", "num_heads", "num_head_channels", "num_heads_upsample",
        "dropout", "text_ctx", "xf_width", "xf_layers", "xf_heads", "xf_final_ln", "xf_padding", "use_scale_shift_norm",
        "resblock_updown", "inpaint", "super_res",
    )  # fmt: skip
    options: dict[str, object] = {name: getattr(model, name) for name in names}
    resolutions = ",".join(map(str, model.attention_resolutions))
    return options | {"channel_mult": "", "attention_resolutions": resolutions, "use_fp16": False,
                      "cache_text_emb": False}  # fmt: skip


def fastest(step: Callable[[], None], steps: int) -> float:
    times = []
    for _ in range(steps):
        begun = time.monotonic()
        step()
        times.append(time.monotonic() - begun)
    return min(times)


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--configs", default="glide_base")
    parse.add_argument("--batches", default="2")
    parse.add_argument("--steps", type=int, default=3)
    parse.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parse.add_argument("--tiny", action="store_true")
    parse.add_argument("--trace", default="", help="folder for a profile of three of our steps")
    args = parse.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.dtype}, jax {jax.__version__}")
    header = ["config", "batch", "ours s/step", "images/s", "reference s/step", "ratio"]
    header += ["compile s", "TFLOP", "GB", "peak TFLOP/s", "arrays", "dispatch ms"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for page in args.configs.split(","):
        for batch in map(int, args.batches.split(",")):
            config = run_config(page, batch, args.dtype, args.tiny)
            step, facts = ours(config)
            other = reference(config)
            fastest(step, 1)
            if other:
                fastest(other, 1)
            if args.trace:
                with jax.profiler.trace(args.trace):
                    fastest(step, 3)
            mine = fastest(step, args.steps)
            row = [page + (" (tiny)" if args.tiny else ""), str(batch), f"{mine:.2f}", f"{batch / mine:.2f}"]
            theirs = fastest(other, args.steps) if other else 0.0
            row += [f"{theirs:.2f}", f"{theirs / mine:.2f}x"] if other else ["not installed", ""]
            print("| " + " | ".join([*row, *facts.values()]) + " |", flush=True)
            del step, other


if __name__ == "__main__":
    main()
