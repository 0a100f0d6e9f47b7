"""Training under repeated kill -9: the final state must equal an undisturbed run's bit for bit.

    python tests/benchmarks/kills.py pairs --kills 20      kill both processes of a two-process run at once
    python tests/benchmarks/kills.py one                   kill one of two: how does the other end?
    python tests/benchmarks/kills.py soak --minutes 180    kill a single-process run once a minute
                                                           (--share 0.05 leaves the machine to others between)

Runs use tests/integration/page.py; compiled programs are kept in JAX_COMPILATION_CACHE_DIR.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np

from glide_jax.checkpoint import CheckpointStore, complete_steps
from glide_jax.checkpoint.step_format import TEMPORARY_SUFFIX
from glide_jax.parallel import make_mesh
from glide_jax.train.program import Program
from tests.integration.runs import command, config
from tests.parallel.processes import free_port
from tests.programs import ROOT

SAVES = ["--config.train.save_every=5", "--config.train.keep_checkpoints=2"]
PATIENCE = 300


def begin(run_dir: Path, steps: int, processes: int) -> list[subprocess.Popen[bytes]]:
    flags: list[str] = []
    if processes > 1:
        flags = [f"--num_processes={processes}", f"--coordinator_address=127.0.0.1:{free_port()}",
                 "--config.parallel.data=1", f"--config.parallel.fsdp={processes}"]  # fmt: skip
    given = [*command(run_dir, f"--config.train.max_steps={steps}", *SAVES), *flags]
    log = run_dir.with_suffix(".txt").open("ab")
    return [
        subprocess.Popen(
            [sys.executable, *given, *([f"--process_id={number}"] if processes > 1 else [])],
            cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for number in range(processes)
    ]  # fmt: skip


def lines(run_dir: Path) -> int:
    """Number of logged steps; a step logged twice counts twice."""
    log = run_dir / "log.jsonl"
    return log.read_bytes().count(b'"grad_norm"') if log.exists() else 0


def wait_until(running: list[subprocess.Popen[bytes]], condition: Callable[[], bool]) -> bool:
    """False where a process ended first."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if any(process.poll() is not None for process in running):
            return False
        if time.monotonic() > deadline:
            raise TimeoutError("no step was logged")
        time.sleep(0.01)
    return True


def killed(run_dir: Path, processes: int, kills: Iterator[float], share: float = 1) -> int:
    """Restarts a run and kills it that many seconds after its first new step; returns the number of kills.

    For all but a share of these seconds its processes are stopped.
    """
    count = 0
    for seconds in kills:
        before = lines(run_dir)
        running = begin(run_dir, 10**6, processes)
        if not wait_until(running, lambda before=before: lines(run_dir) > before):
            raise RuntimeError(run_dir.with_suffix(".txt").read_text()[-2000:])
        slices = max(round(seconds), 1) if share < 1 else 1
        for _ in range(slices):
            signal_all(running, signal.SIGCONT)
            time.sleep(share * seconds / slices)
            if share < 1:
                signal_all(running, signal.SIGSTOP)
                time.sleep((1 - share) * seconds / slices)
        signal_all(running, signal.SIGKILL)
        for process in running:
            process.wait()
        count += 1
        print(f"kill {count}: checkpoints {complete_steps(run_dir / 'checkpoints')}", flush=True)
    return count


def signal_all(running: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in running:
        process.send_signal(number)


def compare(run_dir: Path, processes: int) -> None:
    """Lets the run finish, runs another undisturbed, and compares their states bit for bit."""
    end = max(complete_steps(run_dir / "checkpoints"), default=0) + 10
    whole = run_dir.with_name("whole")
    for folder in (run_dir, whole):
        codes = [process.wait() for process in begin(folder, end, processes)]
        if any(codes):
            raise RuntimeError(folder.with_suffix(".txt").read_text()[-2000:])
    abstract = Program(config(), make_mesh(config().parallel)).abstract_state
    states = []
    for folder in (run_dir, whole):
        with CheckpointStore(folder / "checkpoints", keep_last=9) as store:
            states.append(jax.tree.leaves(store.restore(abstract, end)[0]))
    same = [np.array_equal(*map(np.asarray, pair), equal_nan=True) for pair in zip(*states, strict=True)]
    partial = [path.name for path in (run_dir / "checkpoints").iterdir() if TEMPORARY_SUFFIX in path.name]
    print(f"after {end} steps {sum(same)} of {len(same)} arrays are bit-equal; partial saves left: {len(partial)}")
    if not all(same):
        sys.exit(1)


def pairs(folder: Path, args: argparse.Namespace) -> None:
    delays = random.Random(0)
    killed(folder / "run", 2, (delays.uniform(2, 20) for _ in range(args.kills)))
    compare(folder / "run", 2)


def one(folder: Path, args: argparse.Namespace) -> None:
    run_dir = folder / "run"
    for victim in (1, 0):
        before = lines(run_dir)
        running = begin(run_dir, 10**6, 2)
        if not wait_until(running, lambda before=before: lines(run_dir) > before + 30):
            raise RuntimeError(run_dir.with_suffix(".txt").read_text()[-2000:])
        begun = time.monotonic()
        running[victim].kill()
        code = running[1 - victim].wait(PATIENCE)
        seconds, kept = time.monotonic() - begun, complete_steps(run_dir / "checkpoints")
        print(
            f"process {victim} killed: the other ended with {code} after {seconds:.1f} s; checkpoints {kept}",
            flush=True,
        )
    compare(run_dir, 2)


def soak(folder: Path, args: argparse.Namespace) -> None:
    end = time.monotonic() + 60 * args.minutes
    killed(folder / "run", 1, until(end, args.every), args.share)
    compare(folder / "run", 1)


def until(end: float, seconds: float) -> Iterator[float]:
    while time.monotonic() < end:
        yield seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pairs", "one", "soak"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=180)
    parser.add_argument("--every", type=float, default=60, help="seconds from the first new step to the kill")
    parser.add_argument("--share", type=float, default=1, help="of these seconds the run works; stopped in the others")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills") as folder:
        {"pairs": pairs, "one": one, "soak": soak}[args.what](Path(folder), args)


if __name__ == "__main__":
    main()
