import signal

import pytest

from glide_jax.train.interrupt import Interrupt


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
