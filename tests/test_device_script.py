"""What `tests/benchmarks/device.py` rests on when a GPU is lent: limits of time, results that come as they are made."""

import json
import tarfile
import time

import numpy as np
import pytest

from tests.benchmarks import device, sampling


def test_a_part_that_takes_too_long_ends_and_the_next_one_runs(tmp_path):
    parts = device.Parts(tmp_path, {})
    begun = time.monotonic()
    assert parts.run("slow", 1, "-c", "print('begun', flush=True); import time; time.sleep(60)") != 0
    assert time.monotonic() - begun < 10
    assert parts.run("broken", 20, "-c", "raise SystemExit(3)") == 3
    assert parts.run("good", 20, "-c", "print(1)") == 0
    log = (tmp_path / "device.log").read_text()
    assert [part.splitlines()[1:] for part in log.split("\n--- ")[1:]] == [["begun"], [], ["1"]]
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[:3] for line in summary] == [
        ["slow", "exit", "-15"], ["broken", "exit", "3"], ["good", "exit", "0"],
    ]  # fmt: skip


def test_a_start_is_timed_to_its_sixth_line_and_then_asked_to_end(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text(
        "import json, signal, sys, time\n"
        "folder = next(word for word in sys.argv if 'run_dir' in word).partition('=')[2]\n"
        "__import__('os').makedirs(folder)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "with open(folder + '/log.jsonl', 'w', buffering=1) as log:\n"
        "    for step in range(1000):\n"
        "        log.write(json.dumps({'step': step, 'images_per_second': 9.0}) + '\\n')\n"
        "        time.sleep(0.05)\n"
    )
    monkeypatch.setattr(device, "ROOT", tmp_path)
    out = tmp_path / "out"
    device.startup(device.Parts(out, {}), out, "start", 30, "--config=any")
    cold, warm = map(json.loads, (out / "startup.jsonl").read_text().splitlines())
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    for facts in (cold, warm):
        assert facts["exit"] == 143
        assert len(facts["log"]) >= 6
        assert 0 < facts["first_line_s"] < 10
        assert facts["sigterm_s"] < 5


def test_results_are_packed_in_parts_that_may_be_carried(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "runs", tmp_path / "out"
    (folder / "emoji").mkdir(parents=True)
    out.mkdir()
    noise = np.random.RandomState(0).bytes(3000)
    (folder / "emoji" / "grid.png").write_bytes(noise)
    (folder / "emoji" / "weights.bin").write_bytes(noise)
    monkeypatch.setattr(device, "MOST_BYTES", 1000)
    device.pack("runs", folder, out, ["*.png"], most=4)
    parts = sorted(out.iterdir())
    assert [part.name for part in parts] == [f"runs.tar.gz.{i}" for i in range(len(parts))]
    assert len(parts) == 4
    (tmp_path / "joined.tar.gz").write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(tmp_path / "joined.tar.gz") as packed:
        assert packed.getnames() == ["runs/emoji/grid.png"]
        assert packed.extractfile("runs/emoji/grid.png").read() == noise
    monkeypatch.setattr(device, "MOST_BYTES", 10_000)  # one part now: what was left of four would spoil it
    device.pack("runs", folder, out, ["*"], most=4)
    assert [part.name for part in out.iterdir()] == ["runs.tar.gz.0"]
    with tarfile.open(out / "runs.tar.gz.0") as packed:  # each file once, though its folder matches too
        assert packed.getnames() == ["runs/emoji/grid.png", "runs/emoji/weights.bin"]
    monkeypatch.setattr(device, "MOST_BYTES", 500)
    device.pack("more", folder, out, ["*.png"], most=4)
    assert not list(out.glob("more*"))
    assert capsys.readouterr().out == "more not packed: 0.0 MB are more than 4 files of 0.0005 MB\n"


def test_the_models_it_trains_have_pages():
    for page in device.MODELS:
        name = page.partition(":")[0]
        assert (device.ROOT / "configs" / f"{name}.py").is_file()
    assert sum(device.MODELS.values()) == 1


@pytest.mark.slow
def test_the_speed_of_sampling_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sampling.py", "--tiny", "--models=base", "--steps=1", "--repeats=1"])
    sampling.main()
    header, _, row = capsys.readouterr().out.splitlines()[1:]
    figures = dict(zip(header.split("|"), row.split("|"), strict=True))
    assert figures[" model "] == " base (tiny) "
    assert figures[" programs "] == " 1 "  # however many steps
