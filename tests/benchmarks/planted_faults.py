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

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
CLEAN_SECONDS = 1800


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
