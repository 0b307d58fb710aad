"""The door: hears requests to stop from the first moment on, and only then loads the process proper.

The kernel drops a SIGTERM that PID 1 of a container has no handler for: during a second of imports it would be lost,
and the kubelet would kill the pod after the whole grace period instead. So this module imports next to nothing.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping

from darkroom_trainer.stopping import StopSignal


def main(environ: Mapping[str, str]) -> int:
    """Run, write the termination message and return the exit code."""
    stop = StopSignal()
    stop.install()
    code: int = importlib.import_module("darkroom_trainer.process").main(environ, stop)
    return code


if __name__ == "__main__":
    code = main(os.environ)
    importlib.import_module("logging").shutdown()
    sys.stdout.flush()
    # Not sys.exit: it would wait for transfer threads that may hang on a dead connection, and for torch to unload.
    os._exit(code)
