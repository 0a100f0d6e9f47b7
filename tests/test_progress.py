"""What programs show while they work: phases and bars, on a terminal and elsewhere."""

import time

import pytest

from glide_jax import progress


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(progress, "_PLAIN_DELAY", 0.01)
    monkeypatch.setattr(progress, "_PLAIN_INTERVAL", 0.05)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.usefixtures("fast")
def test_a_phase_says_that_it_goes_on_and_what_is_short_says_nothing(capsys):
    with progress.phase("compiling"):
        with progress.phase("linking"):
            assert progress.doing() == "linking"
        assert progress.doing() == "compiling"
        time.sleep(0.2)
    with progress.phase("compiling", quiet=True):
        time.sleep(0.1)
    first, *more = capsys.readouterr().err.splitlines()
    assert first == "compiling"
    assert set(more) == {"compiling: 0 s"}
    assert progress.doing() == ""


@pytest.mark.usefixtures("fast")
def test_a_bar_with_a_deadline_does_not_promise_more_time(capsys):
    with progress.bar("training", 10**6, deadline=time.monotonic() + 7.4) as bar:
        time.sleep(0.1)
        bar.update(figures="loss 0.1")
    assert capsys.readouterr().err == "training 1/1000000  loss 0.1  7 s left\n"


@pytest.mark.parametrize(
    ("seconds", "told"), [(99, "99 s"), (130, "2 min"), (26754, "7 h 26 min"), (float("inf"), "days")]
)
@pytest.mark.usefixtures("fast")
def test_the_time_left_is_readable(seconds, told, capsys):
    with progress.bar("training", 10**9, deadline=time.monotonic() + seconds + 0.3) as bar:
        time.sleep(0.1)
        bar.update()
    assert capsys.readouterr().err.endswith(f"  {told} left\n")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_has_one_display_for_bars_and_phases(capsys):
    with progress.phase("opening the data"):
        assert list(progress.tracked("checking shards", range(3), 3)) == [0, 1, 2]
    with progress.bar("training", 8, deadline=time.monotonic() + 61) as bar:
        bar.update()
        with progress.phase("drawing"):
            time.sleep(0.2)
        bar.update(7, "loss 0.1")
    shown = capsys.readouterr().err
    for part in ("opening the data", "checking shards", "training", "1/8", "drawing", "1:00", "8/8", "loss 0.1"):
        assert part in shown
    *_, last = (line for line in shown.splitlines() if "training" in line)
    assert "drawing" not in last
