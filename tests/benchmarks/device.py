"""Everything that needs a GPU: start-up, tests, speed and profiles; or, with --train, the bundled models.

    tests/benchmarks/device.sh [--wheels DIR] [--out DIR] [--reference DIR] [--tiny]     nine minutes
    tests/benchmarks/device.sh --train [--minutes N] [--out DIR] [--tiny]                N minutes and two for the start

Parts run one after another, the most valuable first. Each has a limit of time, and none stops the next. Their results
lie in DIR as they come (by default $OUT, or ./device-results), in at most eight files of at most 15 MB: device.log with
what all parts print, summary.txt, startup.jsonl and archives. --reference is a checkout of glide-text2im to compare
with, given PyTorch; --tiny takes small models, to try the script on a CPU.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_BYTES = 15_000_000
EMOJI = ROOT / "datasets/emoji"
# Shares of the minutes for the base model and for the upsampler.
MODELS = {"emoji_large": 2 / 3, "emoji_large:upsampler": 1 / 3}


class Parts:
    """Runs commands with a limit of time each; what they print is in device.log, how they ended in summary.txt.

    Args:
        out: the folder of both.
        environment: of all commands.
    """

    def __init__(self, out: Path, environment: dict[str, str]) -> None:
        self._out, self._environment = out, environment
        out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, limit: float, *command: object) -> int:
        """The exit code of a command; past its limit it gets SIGTERM, then SIGKILL."""
        begun = time.monotonic()
        code = ended(self.start(name, *command), limit)
        self.note(f"{name:24} exit {code:4} {time.monotonic() - begun:6.0f} s")
        return code

    def start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        words = [sys.executable, *map(str, command)]
        # Unbuffered, and each write at the file's end, as two commands may run at once.
        with (self._out / "device.log").open("ab", buffering=0) as log:
            log.write(f"\n--- {name}: {shlex.join(words[1:])}\n".encode())
            return subprocess.Popen(
                words, cwd=ROOT, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def note(self, line: str) -> None:
        """Prints a line, and appends it to the summary."""
        print(line, flush=True)
        with (self._out / "summary.txt").open("a") as file:
            file.write(line + "\n")


def ended(process: subprocess.Popen[bytes], limit: float) -> int:
    """The exit code of a process that gets SIGTERM after `limit` seconds, and ten later SIGKILL, its children too."""
    for signal_number, seconds in ((signal.SIGTERM, limit), (signal.SIGKILL, 10)):
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal_number)
    return process.wait()


def startup(parts: Parts, out: Path, name: str, limit: float, *command: object) -> None:
    """Twice, the second time with what the first compiled: seconds to the first steps, speed, the answer to SIGTERM."""
    for turn in ("cold", "warm"):
        run_dir = Path(tempfile.mkdtemp()) / "run"
        begun = time.monotonic()
        facts: dict[str, object] = {"part": name, "start": turn}
        process = parts.start(f"{name}_{turn}", "train.py", *command, f"--config.run_dir={run_dir}")
        lines: list[str] = []
        while len(lines) < 6 and time.monotonic() - begun < limit and process.poll() is None:
            time.sleep(0.1)
            lines = _log_lines(run_dir)
            if lines and "first_line_s" not in facts:
                facts["first_line_s"] = round(time.monotonic() - begun, 1)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        facts["exit"] = ended(process, 20)
        facts["sigterm_s"] = round(time.monotonic() - asked, 1)
        facts["log"] = [json.loads(line) for line in lines]
        with (out / "startup.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")
        parts.note(f"{name} {turn}: first steps after {facts.get('first_line_s')} s, exit {facts['exit']}")


def _log_lines(run_dir: Path) -> list[str]:
    path = run_dir / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if "images_per_second" in line]


def pack(name: str, folder: Path, out: Path, patterns: Sequence[str], most: int = 2) -> None:
    """Packs a folder's files into NAME.tar.gz.0, .1 and so on, to be joined by `cat`.

    Of more than `most` parts, none can be carried home whole: the earlier ones stay, and the size is printed.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        packed = Path(temporary) / "pack.tar.gz"
        with tarfile.open(packed, "w:gz") as tar:
            for pattern in patterns:
                for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
                    tar.add(path, path.relative_to(folder.parent))
        content = packed.read_bytes()
    parts = [content[i : i + MOST_BYTES] for i in range(0, len(content), MOST_BYTES)]
    if len(parts) > most:
        print(f"{name} not packed: {len(content) / 1e6:.1f} MB are more than {most} files of {MOST_BYTES / 1e6:g} MB")
        return
    for stale in out.glob(f"{name}.tar.gz.*"):
        stale.unlink()
    for i, part in enumerate(parts):
        (out / f"{name}.tar.gz.{i}").write_bytes(part)


def measure(parts: Parts, out: Path, tiny: bool, traces: Path) -> None:
    """All parts but training."""
    shards = f"{EMOJI}/train-{{animals,food,objects,travel}}-{{3d,flat,drawing}}.tar"
    data = [f"--config.data.path={shards}", "--config.data.validation_path="]
    data += [f"--config.data.filters.{name}" for name in ("min_size=0", "min_aspect=0", "max_aspect=100")]
    often = ["--config.train.log_every=5", "--config.train.sample_every=0", "--config.train.save_every=0"]
    page, small = ("glide_base:tiny", ["--tiny"]) if tiny else ("glide_base", [])
    batch, limit = ("4", 200) if tiny else ("256", 120)
    emoji = ["--config=configs/emoji.py", f"--config.train.batch_size={batch}", "--config.train.dtype=bfloat16"]
    startup(parts, out, "start_emoji", limit, *emoji, *often, *data)
    base = [f"--config=configs/{page.replace(':', '.py:') if tiny else page + '.py'}"]
    base += [f"--config.train.batch_size={'2' if tiny else '32'}"]
    startup(parts, out, "start_base", limit, *base, *often, *data)
    tests = ["tests/parity", "tests/models/test_attention.py"]
    select = ["-k", "attention"] if tiny else []
    parts.run("tests", 150, "-m", "pytest", "-q", "-rfE", "--tb=short", *tests, *select)
    parts.run("tests_gpu", 60, "-m", "pytest", "-q", "-rfE", "--tb=short", "-m", "gpu", "tests/models")
    half = ["--dtype", "bfloat16"]
    for size in ("2",) if tiny else ("32", "64", "128"):
        parts.run(f"training_{size}", 100, "tests/benchmarks/training.py", "--batches", size, *half, *small)
    for models, batches in (("base", "1,2" if tiny else "1,16"), ("upsample", "1")):
        sampling = ["tests/benchmarks/sampling.py", "--models", models, "--batches", batches, *half, *small]
        parts.run(f"sampling_{models}", 70, *sampling)
    command = ["tests/benchmarks/training.py", "--batches", "2" if tiny else "32", *half, *small, "--trace", traces]
    parts.run("trace", 80, *command)
    pack("trace", traces, out, ["*.xplane.pb"], most=4)


def train(parts: Parts, out: Path, work: Path, minutes: float, tiny: bool) -> None:
    """Trains both models, and packs logs, grids and shrunken checkpoints each minute."""
    few = ["--config.train.batch_size=2", "--config.train.max_steps=3", "--config.train.preview.options.num_steps=2"]
    few += ["--config.model.num_channels=32", "--config.model.xf_layers=1"]
    done = threading.Event()
    # Of all groups, where checkpoints/emoji/captions.txt has those of two: other words would lose their embeddings.
    known = map(json.loads, (EMOJI / "captions.jsonl").read_text(encoding="utf-8").splitlines())
    captions = Path(tempfile.mkdtemp()) / "captions.txt"
    captions.write_text("\n".join(text for line in known for text in line["captions"]), encoding="utf-8")

    def keep() -> None:
        while not done.wait(20 if tiny else 60):
            collect()

    def collect() -> None:
        pack("runs", work, out, ["log.jsonl", "*.png"])
        for run in work.glob("emoji*"):
            small = Path(tempfile.mkdtemp()) / run.name
            shrink = ["-m", "convert", "shrink", run, "--output", small, "--captions", captions]
            if any((run / "checkpoints").glob("[0-9]*")) and parts.run(f"shrink_{run.name}", 60, *shrink) == 0:
                pack(run.name, small, out, ["*"])

    keeper = threading.Thread(target=keep)
    keeper.start()
    for page, share in MODELS.items():
        name, colon, variant = page.partition(":")
        command = ["train.py", f"--config=configs/{name}.py{colon}{variant}"]
        command += [
            f"--config.run_dir={work / page.replace(':', '_')}",
            f"--config.train.max_minutes={minutes * share}",
        ]
        parts.run(page.replace(":", "_"), 60 * minutes * share + 60, *command, *(few if tiny else []))
    done.set()
    keeper.join()
    collect()


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--out", type=Path, default=os.environ.get("OUT", "device-results"))
    parse.add_argument("--reference", default="")
    parse.add_argument("--train", action="store_true")
    parse.add_argument("--minutes", type=float, default=7.0)
    parse.add_argument("--tiny", action="store_true")
    args = parse.parse_args()
    out, work = args.out.resolve(), Path(tempfile.mkdtemp())
    paths = [str(ROOT), *filter(None, [args.reference, os.environ.get("PYTHONPATH")])]
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "GLIDE_JAX_CACHE": str(work / "cache"),
    }
    parts = Parts(out, {**os.environ, **environment})
    versions = "import jax, flax, optax; print(jax.__version__, flax.__version__, optax.__version__, jax.devices())"
    parts.run("machine", 60, "-c", f"{versions}; import os; os.system('nvidia-smi')")
    if args.train:
        train(parts, out, work / "runs", args.minutes, args.tiny)
    else:
        measure(parts, out, args.tiny, work / "traces")


if __name__ == "__main__":
    main()
