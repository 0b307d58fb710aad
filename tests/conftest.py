"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# Before anyone imports torch: threads of torch on busy cores wait for each other and are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A deadline would fail an example for what else the machine does; pytest's own timeout ends a test that hangs.
settings.register_profile("darkroom", deadline=None)
settings.load_profile("darkroom")
