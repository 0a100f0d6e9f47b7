"""One-line faults, each planted in a copy of the tree, and the default tests that must notice it.

    python tests/benchmarks/planted_faults.py [--only NAME ...] [--workers 2] [--limit 120] [--list]

For whoever changes the tests: they may become fewer and quicker, but all of these still have to be caught. The tests
named by a fault are the quickest that should; only they are run, first on the tree as it is, where they must pass, then
with the fault. The exit code is 1 where a fault survives, or where its line is no longer to be found. Compiled programs
are kept in JAX_COMPILATION_CACHE_DIR, by default the checkout's.
"""

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CLEAN_SECONDS = 1800


class Fault(NamedTuple):
    """A mistake that a reviewer might miss.

    Attributes:
        name: what is wrong.
        file: where, from the root of the tree.
        old: source that occurs exactly once in the file.
        new: what to put in its place.
        tests: ids of functions or files, any of which may notice; the quickest.
        hangs: whether running out of time also counts as noticing.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    hangs: bool = False


# fmt: off
TOKENIZER = (
    Fault("GLIDE's captions keep their capitals", "glide_jax/tokenizer/glide.py",
          "encode(require_text(text).lower())", "encode(require_text(text))",
          ("tests/tokenizer/test_glide_tokenizer.py::test_ids_equal_the_reference",)),
    Fault("padding counts as text", "glide_jax/tokenizer/glide.py",
          "mask[row, : len(ids)] = True", "mask[row, : len(ids) + 1] = True",
          ("tests/tokenizer/test_glide_tokenizer.py::test_padded_equals_the_reference",)),
    Fault("a long text loses CLIP's end token", "glide_jax/tokenizer/clip.py",
          "[self.start_token, *self.encode(seen)[: text_ctx - 2], self.end_token]",
          "[self.start_token, *self.encode(text), self.end_token][:text_ctx]",
          ("tests/tokenizer/test_clip_tokenizer.py::test_a_long_text_keeps_its_start_and_end_tokens",)),
)
MODELS = (
    Fault("q and k are scaled twice", "glide_jax/models/attention.py",
          "scale = q.shape[-1] ** -0.25", "scale = q.shape[-1] ** -0.5",
          ("tests/models/test_attention.py::test_it_is_the_textbooks_attention",)),
    Fault("GroupNorm's eps is 1e-3", "glide_jax/models/layers.py",
          "num_groups=groups, epsilon=1e-5", "num_groups=groups, epsilon=1e-3",
          ("tests/models/test_glide.py::test_group_norm_is_exact_far_from_zero",)),
    Fault("time embedding is sin, cos", "glide_jax/models/layers.py",
          "[jnp.cos(angles), jnp.sin(angles)]", "[jnp.sin(angles), jnp.cos(angles)]",
          ("tests/models/test_glide.py::test_timesteps_may_be_fractional_and_dimensions_odd",)),
    Fault("the padding embedding is not used", "glide_jax/models/text.py",
          "jnp.where(mask[..., None], x, self.padding_embedding[...][None])", "x",
          ("tests/models/test_glide.py::test_padding_takes_its_own_embedding_whatever_the_token",)),
    Fault("shift and scale are exchanged", "glide_jax/models/unet.py",
          "scale, shift = jnp.split(modulation, 2, axis=-1)", "shift, scale = jnp.split(modulation, 2, axis=-1)",
          ("tests/parity/test_forward.py::test_tiny_forward_equals_the_reference",)),
    Fault("skips come before what they join", "glide_jax/models/unet.py",
          "jnp.concatenate([h, skips.pop()], axis=-1)", "jnp.concatenate([skips.pop(), h], axis=-1)",
          ("tests/parity/test_forward.py::test_tiny_forward_equals_the_reference",)),
    Fault("low_res is enlarged by nearest neighbour", "glide_jax/models/layers.py",
          'method="linear", antialias=False', 'method="nearest", antialias=False',
          ("tests/models/test_glide.py::test_bilinear_enlargement_is_half_pixel_centred",)),
    Fault("all examples share their dropout", "glide_jax/models/layers.py",
          "random.bits(key, (half,), jnp.uint32))(keys)", "random.bits(keys[0], (half,), jnp.uint32))(keys)",
          ("tests/models/test_glide.py::test_dropout_needs_a_key_and_drops_the_given_share",)),
    Fault("adapters count alpha times rank", "glide_jax/models/lora.py", "rank) / self.rank", "rank) * self.rank",
          ("tests/models/test_lora.py::test_fresh_adapters_change_nothing_and_others_do",)),
    Fault("evaluate.py forgets adapters", "glide_jax/evaluate/cli.py",
          "lora=options.lora,", "",
          ("tests/integration/test_lora.py::test_evaluate_py_takes_them_and_a_resumed_run_keeps_them",)),
    Fault("adapters of any weights are taken", "glide_jax/sample/lora.py", "each.base_sha256 != found", "not found",
          ("tests/integration/test_lora.py::test_adapters_of_other_weights_and_adapters_alone_are_refused_in_one_line",)),
)
DIFFUSION = (
    Fault("x_t in v has the wrong sign", "glide_jax/diffusion/forward.py", "alpha * v + alpha", "alpha * v - alpha",
          ("tests/diffusion/test_losses.py::test_the_noise_is_found_in_v_at_every_level_and_between",)),
    Fault("sampling takes v for the noise", "glide_jax/sample/stage.py",
          "as_noise_prediction(self.schedule, ", "(lambda schedule, output, *_: output)(self.schedule, ",
          ("tests/sample/test_pipeline.py::test_a_model_that_predicts_v_is_sampled_as_one",)),
    Fault("guidance leads away from the caption", "glide_jax/diffusion/guidance.py",
          "eps_u + self.scale * (eps_c - eps_u)", "eps_c + self.scale * (eps_u - eps_c)",
          ("tests/diffusion/test_guidance.py::test_guided_noise_and_conditional_variance",)),
    Fault("respacing stops short of a section's end", "glide_jax/diffusion/schedules.py",
          "stride = (length - 1) / (count - 1) if count > 1 else 1.0", "stride = length / count if count > 1 else 1.0",
          ("tests/diffusion/test_schedules.py::test_tables_equal_the_reference",)),
    Fault("the linear schedule leaves out its last beta", "glide_jax/diffusion/schedules.py",
          "scale * 0.02, steps)", "scale * 0.02, steps, endpoint=False)",
          ("tests/diffusion/test_schedules.py::test_tables_equal_the_reference",)),
    Fault("posterior variance at t = 0 is beta", "glide_jax/diffusion/schedules.py",
          "floor = self.posterior_variance[1] if len(self.betas) > 1 else self.betas[0]", "floor = self.betas[0]",
          ("tests/diffusion/test_schedules.py::test_tables_equal_the_reference",)),
    Fault("the bound teaches the noise too", "glide_jax/diffusion/losses.py",
          "jax.lax.stop_gradient(eps), fraction", "eps, fraction",
          ("tests/diffusion/test_losses.py::test_vlb_teaches_the_variance_channels_only",)),
    Fault("dynamic thresholding shrinks tame pictures", "glide_jax/diffusion/denoiser.py",
          "limit = jnp.maximum(size, 1.0)", "limit = size",
          ("tests/diffusion/test_guidance.py::test_thresholds",)),
    Fault("DPM++ extrapolates backwards", "glide_jax/diffusion/solvers/dpmpp.py",
          "x_0 + (h / (2 * h_last)) * (x_0 - last)", "x_0 + (h / (2 * h_last)) * (last - x_0)",
          ("tests/parity/test_kdiffusion.py::test_solvers_on_a_closed_form_denoiser",)),
    Fault("rescaling divides by the wrong spread", "glide_jax/diffusion/guidance.py",
          "_spread(eps_c) / _spread(eps))", "_spread(eps_u) / _spread(eps))",
          ("tests/diffusion/test_guidance.py::test_rescale",)),
    Fault("APG keeps the parallel part", "glide_jax/diffusion/guidance.py",
          "update - parallel + self.eta * parallel", "update - self.eta * parallel",
          ("tests/diffusion/test_guidance.py::test_apg_without_its_three_means_is_cfg",)),
    Fault("churn comes after the model has looked", "glide_jax/diffusion/solvers/solver.py",
          "denoise(row.input_scale * x,", "denoise(row.input_scale * carry.state[0],",
          ("tests/diffusion/test_solvers.py::test_churned_runs_follow_the_noise_of_their_own_steps",)),
    Fault("DDPM's last step keeps its noise", "glide_jax/diffusion/solvers/ddpm.py",
          "np.arange(len(levels)) > 0", "np.arange(len(levels)) >= 0",
          ("tests/diffusion/test_solvers.py::test_the_last_step_is_free_of_noise_and_the_others_are_not",)),
)
DATA = (
    Fault("a filter needs both its bounds to act", "glide_jax/data/filters.py",
          "rule for rule in RULES if any(", "rule for rule in RULES if all(",
          ("tests/data/test_filters.py::test_caption_rules_accept_and_reject",)),
    Fault("min_size bounds the longer side", "glide_jax/data/filters.py",
          "min(facts.size()) >= bounds.min_size", "max(facts.size()) >= bounds.min_size",
          ("tests/data/test_filters.py::test_laion_rules_accept_and_reject",)),
    Fault("EXIF orientation is ignored", "glide_jax/images.py",
          "image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image", "image",
          ("tests/data/test_transforms.py::test_exif_orientation_is_undone",)),
    Fault("captions are never dropped", "glide_jax/data/examples.py",
          'texts.append("" if self._happens("uncond", self._config.uncond_p, example) else caption)',
          "texts.append(caption)",
          ("tests/data/test_loader.py::test_captions_are_dropped_at_the_stated_rate",)),
    Fault("a resumed stream begins anew", "glide_jax/data/loader.py",
          "for start in count(position, batch_size)", "for start in count(0, batch_size)",
          ("tests/data/test_loader.py::test_a_stream_goes_on_bit_for_bit_from_its_position",)),
    Fault("a corrupt image is not counted", "glide_jax/data/examples.py",
          "self.counts[reason] += 1", "pass",
          ("tests/data/test_examples.py::test_bad_samples_are_counted_beside_those_left_out",)),
    Fault("a truncated tar ends in an exception", "glide_jax/data/shards/tar.py",
          "except Damage as damage:", "except OSError as damage:",
          ("tests/data/shards/test_tar.py::test_every_cut_keeps_the_members_before_it",)),
    Fault("a stream's shuffle window is one sample", "glide_jax/data/sources/stream.py",
          "if len(buffer) >= buffer_size:", "if buffer:",
          ("tests/data/sources/test_stream.py",)),
)
PARALLEL = (
    Fault("the least size to split counts elements", "glide_jax/parallel/sharding.py",
          "math.prod(shape) * itemsize < min_bytes", "math.prod(shape) < min_bytes",
          ("tests/parallel/test_sharding.py::test_rule_counts_bytes_not_elements",)),
    Fault("the smallest dimension is split", "glide_jax/parallel/sharding.py",
          "chosen = max(divisible", "chosen = min(divisible",
          ("tests/parallel/test_sharding.py::test_rule",)),
    Fault("a batch is split over the data axis only", "glide_jax/parallel/sharding.py",
          "NamedSharding(mesh, PartitionSpec(AXES))", "NamedSharding(mesh, PartitionSpec(AXES[0]))",
          ("tests/parallel/test_sharding.py::test_eight_devices_share_state_and_batch",)),
)
CHECKPOINT = (
    Fault("one checkpoint too many is kept", "glide_jax/checkpoint/store.py",
          "sorted(steps)[-keep_last:]", "sorted(steps)[-keep_last - 1 :]",
          ("tests/checkpoint/test_store.py::test_retention_rule",)),
    Fault("a half-written checkpoint is complete", "glide_jax/checkpoint/step_format.py",
          'not in folder.name and _json_file(folder, "record").is_file()', "not in folder.name and folder.is_dir()",
          ("tests/checkpoint/test_folders.py::test_only_numbered_complete_folders_are_steps",)),
    Fault("the record is not restored", "glide_jax/checkpoint/store.py",
          "return read_state(folder, abstract_state), read_record(folder)",
          "return read_state(folder, abstract_state), {}",
          ("tests/checkpoint/test_store.py::test_restores_every_bit_and_the_record",)),
)
SAMPLE = (
    Fault("noise depends on the place in the batch", "glide_jax/sample/stage.py",
          "normal_per_example(fold(key, number), arguments.indices, self._shape)",
          "normal_per_example(fold(key, number), jnp.arange(len(arguments.indices)), self._shape)",
          ("tests/sample/test_pipeline.py::test_an_image_is_the_same_in_any_batch",)),
    Fault("a mask is read the other way round", "glide_jax/sample/inputs.py",
          "_square(grey, size, Image.Resampling.BOX)) > 127", "_square(grey, size, Image.Resampling.BOX)) < 127",
          ("tests/sample/test_inputs.py::test_a_mask_is_one_where_white",)),
    Fault("strength is the share to leave out", "glide_jax/sample/stage.py",
          "round(options.strength * len(levels))", "round((1 - options.strength) * len(levels))",
          ("tests/sample/test_pipeline.py::test_the_levels_skipped_are_not_counted",)),
)
TRAIN = (
    Fault("EMA takes in the weights before the update", "glide_jax/train/step.py",
          "update_ema(config.optimizer, old[1], new,", "update_ema(config.optimizer, old[1], old[0],",
          ("tests/train/test_step.py::test_bfloat16_training_keeps_a_float32_state_that_moves",
           "tests/train/test_state.py::test_ema_is_a_float32_average_with_warm_up")),
    Fault("EMA's decay is swapped", "glide_jax/train/state.py",
          "average + (1 - decay) * (new - average)", "average + decay * (new - average)",
          ("tests/train/test_step.py::test_bfloat16_training_keeps_a_float32_state_that_moves",
           "tests/train/test_state.py::test_ema_is_a_float32_average_with_warm_up")),
    Fault("gradients are clipped after Adam", "glide_jax/train/state.py",
          "optax.chain(clip, adamw)", "optax.chain(adamw, clip)",
          ("tests/train/test_state.py::test_first_update_is_a_clipped_adamw_step",)),
    Fault("Muon takes embeddings too", "glide_jax/train/state.py",
          'path.endswith("/kernel") and path not in _OUTER', "path not in _OUTER",
          ("tests/train/test_state.py::test_muon_takes_the_kernels_between_the_first_layer_and_the_last",)),
    Fault("a kernel's output is its first axis for Muon", "glide_jax/train/state.py",
          "MuonDimensionNumbers(range(axes - 1), axes - 1)", "MuonDimensionNumbers(range(1, axes), 0)",
          ("tests/train/test_state.py::"
           "test_first_update_of_muon_is_an_orthogonal_matrix_as_large_as_an_update_of_adam",)),
    Fault("the warm-up ends a step late", "glide_jax/train/state.py",
          "linear_schedule(peak / warmup, peak, warmup - 1)", "linear_schedule(peak / warmup, peak, warmup)",
          ("tests/train/test_state.py::test_warmup_rises_from_the_first_update_to_the_peak",)),
    Fault("micro-batches' gradients are summed", "glide_jax/train/step.py",
          "jax.tree.map(lambda x: x / steps, total)", "total",
          ("tests/train/test_step.py::test_four_micro_batches_equal_the_whole_batch",)),
    Fault("a skipped step moves Adam's moments", "glide_jax/train/step.py",
          "choose(good, (new, ema, opt), old)", "choose(good, (new, ema, opt), (*old[:2], opt))",
          ("tests/train/test_state.py::test_an_update_that_is_not_finite_leaves_the_state_as_it_was",)),
    Fault("large arrays are unpacked in another order", "glide_jax/train/packing.py",
          "zip(self._large, packed.large, strict=True)", "zip(reversed(self._large), packed.large, strict=True)",
          ("tests/train/test_packing.py::test_a_state_is_the_same_after_packing_and_unpacking",)),
    Fault("initial weights share their numbers", "glide_jax/models/functional.py",
          "begin, self.count = self.count, self.count + math.prod(shape)",
          "begin, self.count = 0, max(self.count, math.prod(shape))",
          ("tests/models/test_glide.py::test_fresh_weights_start_at_zero_output_with_live_embeddings",)),
    Fault("the FLOPs of a loop are those of one turn", "glide_jax/train/meter.py",
          'equation.params.get("length", 1)', "1",
          ("tests/train/test_meter.py::test_flops_of_products_in_loops_and_branches",)),
    Fault("training noise depends on the place in the batch", "glide_jax/train/step.py",
          'fold(stream_key(seed, "noise"), step), index, shape)',
          'fold(stream_key(seed, "noise"), step), jnp.arange(len(index)), shape)',
          ("tests/train/test_step.py::test_random_numbers_of_an_example_do_not_depend_on_its_batch",)),
    Fault("every process goes by its own clock", "glide_jax/train/step.py",
          'batch["used"].max()', 'batch["used"][0]',
          ("tests/train/test_step.py::test_a_cosine_over_time_ends_at_zero_by_the_latest_clock",)),
    Fault("a signal waits for the end of a compilation", "glide_jax/train/interrupt.py",
          "before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)", "before = -1",
          ("tests/train/test_interrupt.py::test_before_there_is_anything_to_save_a_signal_ends_the_process_at_once",)),
    Fault("a resumed run forgets its data position", "glide_jax/train/start.py",
          'return int(self.record.get("position", 0))', "return 0",
          ("tests/train/test_start.py::test_a_run_that_trains_another_part_is_refused_with_both",)),
)
EVALUATE = (
    Fault("the worst images are ranked first", "glide_jax/evaluate/run_folder.py",
          "order.sort(key=lambda i: -scores[i])", "order.sort(key=lambda i: scores[i])",
          ("tests/evaluate/test_evaluation.py::test_records_tell_every_candidate",)),
    Fault("a resumed evaluation generates everything again", "glide_jax/evaluate/evaluation.py",
          "for index in range(len(job.prompts)) if not folder.done(index)]", "for index in range(len(job.prompts))]",
          ("tests/evaluate/test_evaluation.py::test_an_interrupted_run_goes_on_with_the_same_pictures",)),
    Fault("the kernel distance counts a picture with itself", "glide_jax/evaluate/distances.py",
          "self._xx -= np.diag(members.T @ _diagonal(x))", "pass",
          ("tests/evaluate/test_distances.py::test_the_kernel_distance_is_the_sum_over_pairs",)),
)
UI = (
    Fault("the page passes errors on as they are", "glide_jax/ui/page.py",
          "return _INTERNAL", "return str(error)",
          ("tests/ui/test_page.py::test_what_nobody_expected_is_one_line_and_in_the_log",)),
    Fault("an image's width alone is limited", "glide_jax/images.py",
          "if size[0] * size[1] > max_pixels:", "if size[0] > max_pixels:",
          ("tests/ui/test_uploads.py::test_more_pixels_than_allowed_are_refused_before_they_are_decoded",)),
    Fault("what is painted is kept", "glide_jax/ui/uploads.py",
          "lambda alpha: 0 if alpha > 32 else 255", "lambda alpha: 255 if alpha > 32 else 0",
          ("tests/ui/test_uploads.py::test_what_is_painted_is_inpainted_and_the_rest_is_kept",)),
    Fault("any number of requests may wait", "glide_jax/ui/page.py",
          "blocks.queue(max_size=service.limits.max_queue,", "blocks.queue(max_size=None,",
          ("tests/ui/test_page.py::test_only_so_many_requests_wait",)),
)
CONVERT = (
    Fault("height and width of kernels are exchanged", "convert/keymap.py",
          '"conv": (2, 3, 1, 0)', '"conv": (3, 2, 1, 0)',
          ("tests/convert/test_architecture.py::test_layouts_move_the_right_axes",)),
    Fault("the way back loses the source's dtypes", "convert/to_torch.py",
          'DTYPES[dtype or wanted.get(key, "float32")]', 'DTYPES[dtype or "float32"]',
          ("tests/convert/test_cli.py::test_there_and_back_again",)),
    Fault("unknown tensors are dropped in silence", "convert/to_flax.py",
          "[key for key in arrays if key not in shapes]", "[]",
          ("tests/convert/test_conversion.py::test_one_error_lists_every_offender",)),
)
LEAVES = (
    Fault("an unknown option is compared with its group", "glide_jax/options.py",
          "difflib.get_close_matches(name, known, n=2)", "difflib.get_close_matches(where, known, n=2)",
          ("tests/configs/test_configs.py::test_unknown_keys_are_refused_with_the_nearest_name",)),
    Fault("an option's upper end is not checked", "glide_jax/options.py",
          "(self.high is None or value <= self.high)", "True",
          ("tests/sample/test_pipeline.py::test_impossible_requests_are_refused",)),
    Fault("an error ends with exit code 1", "glide_jax/errors.py",
          "sys.exit(2)", "sys.exit(1)",
          ("tests/convert/test_cli.py::test_errors_are_one_line_and_exit_code_2",)),
    Fault("pixels are cut off instead of rounded", "glide_jax/images.py",
          "np.clip(np.rint((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255)",
          "np.clip((np.asarray(images, np.float32) + 1.0) * 127.5, 0, 255)",
          ("tests/test_images.py::test_values_are_rounded_and_clipped",)),
    Fault("all streams of a seed are one", "glide_jax/randomness.py",
          "zlib.crc32(stream.encode())", "zlib.crc32(b'stream')",
          ("tests/test_randomness.py::test_streams_and_seeds_are_apart",)),
)
FAULTS = (
    *TOKENIZER, *MODELS, *DIFFUSION, *DATA, *PARALLEL, *CHECKPOINT,
    *SAMPLE, *TRAIN, *EVALUATE, *UI, *CONVERT, *LEAVES,
)
# fmt: on

# Python takes a compiled file for current by its source's size and whole second of change: no two are alike here.
_seconds = count(10**9)


def tracked() -> list[str]:
    """Files of the checkout as they are now, those not yet committed included."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def copied(names: Sequence[str], folder: Path) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    second = next(_seconds)
    os.utime(path, (second, second))


@contextmanager
def planted(fault: Fault, tree: Path) -> Iterator[None]:
    path = tree / fault.file
    source = path.read_text(encoding="utf-8")
    write(path, source.replace(fault.old, fault.new))
    try:
        yield
    finally:
        write(path, source)


def pytest(tree: Path, tests: Sequence[str], seconds: int, *options: str) -> tuple[int | None, str]:
    """Exit code, None where time ran out, and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *options, *tests]
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    # The path is for programs that tests start: glide_jax may be installed from the checkout itself.
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def outcomes(output: str, word: str) -> list[str]:
    """Ids in the lines of pytest's short summary that begin with a word."""
    return [line.split(" - ")[0] for line in re.findall(rf"^{word} (tests/.*)$", output, re.MULTILINE)]


def judged(code: int | None, output: str, fault: Fault) -> tuple[str, str]:
    """A verdict, "caught" if all is well, and what led to it."""
    if code is None:
        return ("caught" if fault.hangs else "TIME OUT"), "still running"
    if code == 1:
        return "caught", next(iter(outcomes(output, "(?:FAILED|ERROR)")), "")
    if code == 5 or (code == 0 and not outcomes(output, "PASSED")):
        return "SKIPPED", "no test ran"
    return ("SURVIVED", "") if code == 0 else ("ERROR", output[-2000:])


def does_not_apply(fault: Fault) -> str:
    text = (ROOT / fault.file).read_text(encoding="utf-8") if (ROOT / fault.file).is_file() else ""
    found = text.count(fault.old)
    return "" if found == 1 else f"{fault.name}: {fault.old!r} occurs {found} times in {fault.file}"


def unclean(tree: Path, tests: Sequence[str]) -> str:
    """What keeps the tests from passing without any fault; empty if nothing does."""
    code, output = pytest(tree, tests, CLEAN_SECONDS, "-rpfE")
    if code != 0:
        return output[-6000:]
    passed = [node.split("[")[0] for node in outcomes(output, "PASSED")]
    idle = [test for test in tests if not any(node == test or node.startswith(f"{test}::") for node in passed)]
    return f"skipped, or marked slow: {', '.join(idle)}" if idle else ""


def tried(fault: Fault, tree: Path, limit: int) -> bool:
    begun = time.monotonic()
    with planted(fault, tree):
        code, output = pytest(tree, fault.tests, limit, "-x", "-rpfE")
    verdict, why = judged(code, output, fault)
    line = f"{verdict:8} {time.monotonic() - begun:4.0f} s  {fault.name}: {why}\n"
    print(line, end="", flush=True)  # in one piece, as others print too
    return verdict == "caught"


def run(faults: Sequence[Fault], trees: Sequence[Path], limit: int) -> int:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def with_tree(work: Callable[[Path], object]) -> object:
        tree = free.get()
        try:
            return work(tree)
        finally:
            free.put(tree)

    tests = sorted({test for fault in faults for test in fault.tests})
    shares = [share for i in range(len(trees)) if (share := tests[i :: len(trees)])]
    with ThreadPoolExecutor(len(trees)) as pool:
        begun = time.monotonic()
        wrong = [said for said in pool.map(lambda share: with_tree(lambda tree: unclean(tree, share)), shares) if said]
        if wrong:
            print("the tests must pass without a fault:", *wrong, sep="\n")
            return 1
        print(f"{len(tests)} tests or files pass without a fault ({time.monotonic() - begun:.0f} s)", flush=True)
        caught = list(pool.map(lambda fault: with_tree(lambda tree: tried(fault, tree, limit)), faults))
    left = [fault.name for fault, was in zip(faults, caught, strict=True) if not was]
    seconds = time.monotonic() - begun
    print(f"{sum(caught)} of {len(faults)} faults caught in {seconds:.0f} s", *(f"not caught: {name}" for name in left),
          sep="\n")  # fmt: skip
    return 1 if left else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="faults whose name or file holds one")
    parser.add_argument("--workers", type=int, default=2, help="trees at work at once (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=120, help="seconds for a fault's tests (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if any(part in f"{fault.name} {fault.file}" for part in args.only)]
    if args.list:
        print("\n".join(f"{fault.file}: {fault.name}" for fault in faults), f"{len(faults)} faults", sep="\n")
        return 0
    lost = [said for fault in faults if (said := does_not_apply(fault))]
    if lost or not faults:
        print("\n".join(lost) or "no fault of that name")
        return 1
    with tempfile.TemporaryDirectory(prefix="planted_faults") as folder:
        names = tracked()
        trees = [copied(names, Path(folder, str(worker))) for worker in range(args.workers)]
        return run(faults, trees, args.limit)


if __name__ == "__main__":
    sys.exit(main())
