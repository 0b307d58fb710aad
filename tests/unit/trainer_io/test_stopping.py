from __future__ import annotations

import os
import signal

import pytest

from darkroom_trainer.errors import StopRequested
from darkroom_trainer.stopping import StopSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_only_set_a_flag(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    stop = StopSignal()
    stop.install()
    try:
        assert not stop.requested
        stop.check()
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(StopRequested):
            stop.check()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
