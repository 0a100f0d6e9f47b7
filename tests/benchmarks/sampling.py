"""Seconds of a sampling step at the published sizes, next to the PyTorch reference where it is installed.

    python tests/benchmarks/sampling.py [--models base,upsample] [--batches 1,16] [--steps 3] [--dtype bfloat16]

The base model is guided (two rows per image), the upsampler is not. Both sides run DDIM in turn, `--repeats` times,
after a warm-up run that compiles; a step is the time by which a longer run exceeds a short one, best of each.
The reference caches its text (cache_text_emb); "fixed" is the time outside the steps, text encoding included.
`--tiny` narrows the models to 64 channels.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from glide_jax.diffusion.schedules import DiffusionConfig
from glide_jax.models import Glide, ModelConfig
from glide_jax.sample import Inputs, SampleOptions, Stage
from tests.benchmarks.training import TINY

SCHEDULES = {"base": "squaredcos_cap_v2", "upsample": "linear"}
PROMPT = "an oil painting of a corgi"
SHORT = 2  # steps


def ours(kind: str, batch: int, dtype: str, tiny: bool) -> tuple[Callable[[int], None], dict[str, str]]:
    """A function that samples for so many steps, and what compiling it took."""
    config = replace(ModelConfig.published(kind), **(TINY if tiny else {}))
    model = Glide(config, dtype)
    stage = Stage(model, DiffusionConfig(noise_schedule=SCHEDULES[kind]))
    params = jax.jit(model.init)(jax.random.key(0))
    low_res = None if kind == "base" else np.zeros((batch, config.low_res_size, config.low_res_size, 3), np.float32)
    inputs = Inputs([PROMPT] * batch, range(batch), low_res=low_res)
    scale = 3.0 if kind == "base" else 1.0

    def sample(steps: int) -> None:
        options = SampleOptions.of(num_steps=steps, guidance_scale=scale)
        jax.block_until_ready(stage.sample(params, inputs, options))

    first = seconds(sample, SHORT)
    again = seconds(sample, SHORT)
    sample(SHORT + 5)
    return sample, {
        "compile s": f"{first - again:.0f}",
        "programs": str(stage._run._cache_size()),
        "peak GB": f"{_peak_bytes() / 2**30:.1f}",
    }


def _peak_bytes() -> float:
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reference(kind: str, batch: int, dtype: str, tiny: bool) -> Callable[[int], None] | None:
    """The same with the PyTorch reference; None where it is not installed."""
    try:
        import torch
        from glide_text2im.model_creation import create_gaussian_diffusion, create_model, model_and_diffusion_defaults
        from glide_text2im.model_creation import model_and_diffusion_defaults_upsampler as upsampler_defaults
    except ImportError:
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = model_and_diffusion_defaults() if kind == "base" else upsampler_defaults()
    options |= {"cache_text_emb": True, "use_fp16": dtype != "float32"} | (TINY if tiny else {})
    named = {name: options.pop(name) for name in ("diffusion_steps", "noise_schedule", "timestep_respacing")}
    model = create_model(**options).eval().to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    if dtype != "float32":
        model.convert_to_fp16()
    tokens, mask = model.tokenizer.padded_tokens_and_mask(model.tokenizer.encode(PROMPT), options["text_ctx"])
    nothing, no_mask = model.tokenizer.padded_tokens_and_mask([], options["text_ctx"])
    rows = batch if kind == "upsample" else 2 * batch
    texts = {
        "tokens": torch.tensor([tokens] * batch + [nothing] * (rows - batch), device=device),
        "mask": torch.tensor([mask] * batch + [no_mask] * (rows - batch), device=device),
    }
    if kind == "upsample":
        texts["low_res"] = torch.zeros(batch, 3, 64, 64, device=device)

    def guided(x: Any, t: Any, **_: Any) -> Any:
        output = model(torch.cat([x[:batch], x[:batch]]), t, **texts)
        conditional, unconditional = torch.chunk(output[:, :3], 2)
        eps = unconditional + 3.0 * (conditional - unconditional)
        return torch.cat([torch.cat([eps, eps]), output[:, 3:]], dim=1)

    def sample(steps: int) -> None:
        diffusion = create_gaussian_diffusion(named["diffusion_steps"], named["noise_schedule"], str(steps))
        network = guided if kind == "base" else lambda x, t, **_: model(x, t, **texts)
        side = options["image_size"]
        with torch.no_grad():
            diffusion.ddim_sample_loop(network, (rows, 3, side, side), device=device)
        if device.type == "cuda":
            torch.cuda.synchronize()

    sample(SHORT)
    return sample


def seconds(sample: Callable[[int], None], steps: int) -> float:
    begun = time.monotonic()
    sample(steps)
    return time.monotonic() - begun


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--models", default="base,upsample")
    parse.add_argument("--batches", default="1")
    parse.add_argument("--steps", type=int, default=3)
    parse.add_argument("--repeats", type=int, default=3)
    parse.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parse.add_argument("--tiny", action="store_true")
    args = parse.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.dtype}, jax {jax.__version__}")
    header = ["model", "batch", "ours s/step", "s/image/step", "fixed s", "reference s/step", "ratio"]
    header += ["compile s", "programs", "peak GB"]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for kind in args.models.split(","):
        for batch in map(int, args.batches.split(",")):
            sample, facts = ours(kind, batch, args.dtype, args.tiny)
            other = reference(kind, batch, args.dtype, args.tiny)
            sides = [sample, *([other] if other else [])]
            lengths = SHORT, SHORT + args.steps
            runs = [[[seconds(side, steps) for steps in lengths] for side in sides] for _ in range(args.repeats)]
            short, long = np.min(runs, axis=0).T
            steps = (long - short) / args.steps
            row = [kind + (" (tiny)" if args.tiny else ""), str(batch), f"{steps[0]:.3f}", f"{steps[0] / batch:.3f}"]
            row.append(f"{short[0] - SHORT * steps[0]:.2f}")
            row += [f"{steps[1]:.3f}", f"{steps[1] / steps[0]:.2f}x"] if other else ["not installed", ""]
            print("| " + " | ".join([*row, *facts.values()]) + " |", flush=True)
            del sample, other


if __name__ == "__main__":
    main()
