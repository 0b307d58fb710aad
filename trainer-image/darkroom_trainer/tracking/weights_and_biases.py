"""Weights & Biases by its own package, in a process of its own: their protocol is not published.

In ours it would cost two seconds of every start, print into the log, and hold up the end for as long as its server does
not answer. So the two halves here talk in lines of JSON, and the child is killed when it is out of time:
`WandBTracker` asks, `main` (``python -m darkroom_trainer.tracking.weights_and_biases``) does and answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from darkroom_api.trackers import WandB
from darkroom_trainer.tracking.feed import About, Point, TrackerAwayError, TrackerRefusedError

CLOUD: Final = "https://api.wandb.ai"
BEGIN_SECONDS: Final = 30
END_SECONDS: Final = 8
"""For what is not uploaded yet at the end; then the package gives it up."""
_OTHERS_SECRETS: Final = ("AWS_", "MLFLOW_", "HF_")
"""Beginnings of variables that the child has no use for."""
_Message = dict[str, Any]


class WandBTracker:
    """One run of ours as one run there, through all attempts: W&B itself drops steps that it has."""

    def __init__(self, spec: WandB, about: About, *, environ: Mapping[str, str], directory: Path) -> None:
        self.name = f"Weights & Biases at {spec.base_url or CLOUD}"
        self.environ = {key: value for key, value in environ.items() if not key.startswith(_OTHERS_SECRETS)}
        self._directory = directory
        self.child: subprocess.Popen[str] | None = None
        self._beginning: _Message = {
            "base_url": spec.base_url or CLOUD,
            "entity": spec.entity,
            "project": spec.project or about.namespace,
            "id": about.title,
            "config": dict(about.parameters),
            "directory": str(directory),
        }

    def begin(self) -> None:
        """Open the run under its own id, which a later attempt opens again."""
        self.abandon()  # the package does not try twice in one process
        self._directory.mkdir(parents=True, exist_ok=True)
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={**self.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._ask("begin", self._beginning)

    def send(self, points: Sequence[Point]) -> None:
        """Log every value of these points."""
        if self.child is None:
            self.begin()
        self._ask("log", [[point.step, dict(point.values)] for point in points])

    def end(self, outcome: str) -> None:
        """Close the run."""
        self._ask("end", outcome)
        self.abandon()

    def abandon(self) -> None:
        """End the child and the process that the package started in turn."""
        child, self.child = self.child, None
        if child is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _ask(self, what: str, content: object) -> None:
        child = self.child
        assert child
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(json.dumps({what: content}) + "\n")
            child.stdin.flush()
            answer = json.loads(child.stdout.readline() or "{}")
        except (OSError, ValueError) as error:
            answer = {"away": str(error)}
        if "refused" in answer:
            raise TrackerRefusedError(answer["refused"])
        if "done" not in answer:
            self.abandon()
            raise TrackerAwayError(answer.get("away", "its process ended"))


def serve(lines: Iterable[str]) -> Iterable[str]:
    """Do what each line asks for, and yield an answer for each."""
    import wandb

    run: Any = None
    for line in lines:
        ((what, content),) = json.loads(line).items()
        try:
            if what == "begin":
                run = _begin(content)
            elif what == "log":
                for step, values in content:
                    run.log(values, step=step)
            elif what == "end":
                _end(run, content)
            answer = {"done": what}
        except wandb.errors.AuthenticationError as error:
            answer = {"refused": f"{error}; look at the Secret in credentials"}
        except wandb.errors.CommError as error:
            answer = {"away": str(error)}
        except Exception as error:  # noqa: BLE001 - told by the parent
            answer = {"refused": f"{type(error).__name__}: {error}"}
        yield json.dumps(answer)


def _begin(content: _Message) -> Any:
    import wandb

    settings = wandb.Settings(
        base_url=content["base_url"],
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        init_timeout=BEGIN_SECONDS,
        finish_timeout=END_SECONDS,
    )
    return wandb.init(
        entity=content["entity"],
        project=content["project"],
        id=content["id"],
        name=content["id"],
        config=content["config"],
        dir=content["directory"],
        resume="allow",
        settings=settings,
    )


def _end(run: Any, outcome: str) -> None:
    if outcome == "Preempted":
        run.mark_preempting()
    run.finish(exit_code=0 if outcome == "Succeeded" else 1)


def main() -> None:
    """Serve the parent until it ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what the package prints is no answer
        for answer in serve(sys.stdin):
            print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()
