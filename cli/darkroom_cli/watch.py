"""``kubectl darkroom watch``: follow a training to its end, on a terminal with a live bar, elsewhere with plain lines.

It reads the resource once a second and keeps nothing else, so a lost connection or a restarted API server costs a line
and no more; a watch would save the server little and bring its own ways of missing something.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from darkroom_api.status import TERMINAL_PHASES, Phase, TrainingStatus
from darkroom_cli.errors import UserError
from darkroom_cli.lines import final_lines, is_worth_a_line, milestones, state_text
from darkroom_cli.resources import ClusterAwayError, Reader, Reference, Training, read_existing
from darkroom_cli.text import duration_text

LONGEST_PAUSE_SECONDS = 15.0
"""Between two attempts to reach a cluster that does not answer."""


@dataclass(frozen=True)
class Clock:
    """Time, so that a test can pass its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def watch(
    reader: Reader, reference: Reference, *, console: Console, interval: float = 1.0, clock: Clock | None = None
) -> int:
    """Follow a training to its end; return 0 if it succeeded and 1 if it failed.

    Raises:
        UserError: There is no such training, or it was deleted meanwhile.
    """
    clock = clock or Clock()
    training = read_existing(reader, reference)
    view = _LiveView(console) if console.is_terminal else _PlainView(console)
    with view:
        view.show(training)
        while training.status.phase not in TERMINAL_PHASES:
            clock.sleep(interval)
            training = _read_again(reader, before=training, view=view, clock=clock)
            view.show(training)
    for line in final_lines(training.status, namespace=training.namespace):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0 if training.status.phase is Phase.SUCCEEDED else 1


def _read_again(reader: Reader, *, before: Training, view: _PlainView, clock: Clock) -> Training:
    """Read until the cluster answers: a restarted API server must not end a watch of hours."""
    pause, since = 1.0, clock.now()
    told = False
    while True:
        try:
            now = reader.read()
        except ClusterAwayError as error:
            if not told:
                view.say(f"the cluster does not answer ({error}); trying again")
                told = True
            clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            continue
        if told:
            view.say(f"the cluster answers again, after {duration_text(clock.now() - since)}")
        if now is None or now.uid != before.uid:
            raise UserError(f"{before.reference} was deleted meanwhile; its objects in the store stay")
        return now


class _PlainView:
    """Prints lines: what happened, and the state when it has moved enough."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: TrainingStatus | None = None
        self._printed: TrainingStatus | None = None

    def __enter__(self) -> _PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, training: Training) -> None:
        status = training.status
        for line in milestones(self._before, status):
            self.say(line)
        self._state(status, epochs=training.epochs)
        self._before = status

    def _state(self, status: TrainingStatus, *, epochs: int) -> None:
        if status.phase not in TERMINAL_PHASES and is_worth_a_line(self._printed, status):
            self.say(state_text(status, epochs=epochs))
            self._printed = status


class _LiveView(_PlainView):
    """Draws the state in place, below the lines of what happened."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> _LiveView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _state(self, status: TrainingStatus, *, epochs: int) -> None:
        row = Table.grid(padding=(0, 1))
        percentage = status.progress.percentage if status.progress else 0
        row.add_row(ProgressBar(total=100, completed=percentage, width=20), Text(state_text(status, epochs=epochs)))
        self._live.update(row)
