"""What holds for every test."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Before anyone imports torch: threads of torch on busy cores wait for each other and are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline would fail an example for what else the machine does; pytest's own timeout ends a test that hangs.
settings.register_profile("darkroom", deadline=None)
settings.load_profile("darkroom")

# A shell without job control starts programs in the background with SIGINT ignored, nohup with SIGHUP, and both pass to
# children. Tests that send them would wait for nothing.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)
