"""Signals: what waits for the save, and what ends the process at once."""

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from glide_jax.train.interrupt import Interrupt, Stopped, ending_at_once
from tests.programs import ROOT


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT),
     (signal.SIGTERM, signal.SIGTERM)],
)  # fmt: skip
def test_one_ctrl_c_and_any_number_of_sigterms_wait_for_the_save(signals):
    with Interrupt() as interrupt:
        assert not interrupt.stops(1)
        for number in signals:
            signal.raise_signal(number)
        assert interrupt.stops(1)


@pytest.mark.parametrize("between", [(), (signal.SIGTERM,)])
def test_a_second_ctrl_c_stops_at_once(between):
    with Interrupt():
        for number in (signal.SIGINT, *between):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_another_thread_than_the_main_one_leaves_signals_alone():
    def work():
        with ending_at_once(lambda: ""), Interrupt():
            return signal.getsignal(signal.SIGINT), threading.active_count()

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        threads = pool.submit(threading.active_count).result()
        assert pool.submit(work).result() == (before, threads)


def test_a_wait_for_data_does_not_outlast_a_signal():
    with Interrupt() as interrupt:
        with pytest.raises(Stopped), interrupt.waiting():
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.stops(1)
        with pytest.raises(Stopped), interrupt.waiting():
            pytest.fail("it came before")


ENDINGS = """
import json, os, signal, time
from glide_jax.train.interrupt import ending_at_once

def ended(last, *numbers):
    "How a process ends that gets these signals, what it says, and how soon."
    reader, writer = os.pipe()
    begun = time.monotonic()
    if not os.fork():
        os.dup2(writer, 1)
        with ending_at_once(last):
            for number in numbers:
                time.sleep(0.2)
                os.kill(os.getpid(), number)
            time.sleep(60)
    os.close(writer)
    with os.fdopen(reader) as said:
        line = said.read()
    return os.waitstatus_to_exitcode(os.wait()[1]), line, time.monotonic() - begun < 5

def fails():
    raise RuntimeError("no room")

before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
with ending_at_once(str):
    pass
print(json.dumps([
    ended(lambda: "while busy", signal.SIGTERM),
    ended(lambda: "while busy", signal.SIGINT),
    ended(lambda: time.sleep(60), signal.SIGTERM, signal.SIGINT),
    ended(fails, signal.SIGTERM),
    before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
]))
"""


def test_before_there_is_anything_to_save_a_signal_ends_the_process_at_once():
    done = subprocess.run(
        [sys.executable, "-c", ENDINGS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [
        [143, "stopped by SIGTERM while busy\n", True],
        [130, "stopped by SIGINT while busy\n", True],
        [130, "", True],
        [143, "", True],
        True,
    ]
    assert "error: no room" in done.stderr
