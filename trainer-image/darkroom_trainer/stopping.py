"""Requests to stop: SIGTERM from the kubelet, SIGINT from a terminal.

The handler only sets a flag. Whoever is at a point where stopping is safe looks at it; thus a second signal
in the middle of a save does no harm.
"""

from __future__ import annotations

import signal
from types import FrameType

from darkroom_trainer.errors import StopRequested


class StopSignal:
    """A flag that a signal sets and nothing clears."""

    def __init__(self) -> None:
        # A plain attribute, not an Event: a handler that runs inside Event.set would wait for a lock it holds itself.
        self._requested = False

    def install(self) -> None:
        """Let SIGTERM and SIGINT set the flag; only the main thread may call this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._requested = True

    def request(self) -> None:
        """Set the flag as a signal would."""
        self._requested = True

    @property
    def requested(self) -> bool:
        """Tell whether the process was asked to stop."""
        return self._requested

    def check(self) -> None:
        """Raise if the process was asked to stop; for places where nothing has to be saved.

        Raises:
            StopRequested: The flag is set.
        """
        if self.requested:
            raise StopRequested
