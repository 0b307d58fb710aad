"""What ``/progress`` and ``/metrics`` say, gathered from every thread of the trainer.

`serving` hands it out, `pace` does the arithmetic, `metrics` the Prometheus names.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from darkroom_api.memory import AS_ASKED, Adaptation, Memory
from darkroom_api.progress import CheckpointRecord, EarlyStop, Plan, Progress, Stage
from darkroom_trainer.choosing import best_epoch
from darkroom_trainer.pace import Pace

LOG: Final = logging.getLogger(__name__)

MAXIMUM_CHECKPOINTS: Final = 1024
"""What `Progress` may carry; the newest are told, index.json has all."""
MAXIMUM_MESSAGE: Final = 512
_LINE_SECONDS: Final = 10.0
_LINE_SHARE: Final = 0.05
_EPOCH_END: Final = frozenset({Stage.VALIDATING, Stage.SAMPLING})
"""What an epoch's end consists of, and comes before training as well."""


Follower = Callable[[int, Mapping[str, float]], None]
"""Takes optimizer steps done and what was measured after the last of them."""


@dataclass(frozen=True)
class Counters:
    """What only the metrics tell."""

    uploaded_bytes: int = 0
    downloaded_bytes: int = 0
    storage_failures: int = 0
    waiting_uploads: int = 0
    checkpoint_age: float | None = None
    """Seconds since a checkpoint became durable in this attempt."""
    state_age: float | None = None
    """The same for the resume state."""


class Reporter:
    """The state of a run as others may see it; every method is safe in any thread and quick."""

    def __init__(
        self,
        run: str,
        pod: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._run, self._pod, self._clock, self._now = run, pod, clock, now
        self._lock = threading.RLock()
        self._pace = Pace()
        self._stage, self._stage_since, self._message, self._note = Stage.STARTING, clock(), "", ""
        self._plan: Plan | None = None
        self._epoch = self._step = self._lined_step = 0
        self._learning_rate: float | None = None
        self._checkpoints: dict[int, CheckpointRecord] = {}
        self._validations: dict[int, float] = {}
        self._early_stop: EarlyStop | None = None
        self._memory: Memory | None = None
        self._updated, self._lined_at = now(), clock()
        self._bytes = {"up": 0, "down": 0}
        self._storage_failures = self._waiting = 0
        self._durable: dict[str, float] = {}
        self._followers: list[Follower] = []

    def follow(self, follower: Follower) -> None:
        """Have every measurement told to somebody else as well; it is called in the training's thread."""
        self._followers.append(follower)

    def stage(self, stage: Stage, message: str = "") -> None:
        """Say what the pod is doing now; the log gets a line when that changes."""
        with self._lock:
            if stage is not self._stage:
                if self._stage in _EPOCH_END and self._pace.last_step_at is None:
                    self._pace.before_first = (self._pace.before_first or 0.0) + self._clock() - self._stage_since
                self._stage_since = self._clock()
                if stage is not Stage.TRAINING or self._pace.last_step_at is None:
                    LOG.info("%s%s", stage.value, f": {message}" if message else "")
            self._stage, self._message = stage, message[:MAXIMUM_MESSAGE]
            self._touch()

    def transfer(self, what: str) -> Callable[[int, int], None]:
        """Return a callback for downloads that keeps the stage's message at ``what: 120 of 4000 MB``."""
        last = 0

        def progressed(done: int, total: int) -> None:
            nonlocal last
            with self._lock:
                self._bytes["down"] += max(0, done - last)
                last = done
                self._message = f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"[:MAXIMUM_MESSAGE]
                self._touch()

        return progressed

    def planned(self, plan: Plan) -> None:
        """Tell what the dataset turned out to mean."""
        with self._lock:
            self._plan = plan
            self._touch()
        LOG.info(
            "%d images in %d buckets: %d steps per epoch, %d in all",
            plan.images,
            len(plan.buckets),
            plan.steps_per_epoch,
            plan.total_steps,
        )
        for sentence in plan.advice:
            LOG.info("Advice: %s", sentence)

    def restored(self, *, epoch: int, step: int, validations: Mapping[int, float] | None = None) -> None:
        """Tell where an earlier attempt had come to."""
        with self._lock:
            self._epoch, self._step = epoch, step
            self._validations |= validations or {}
            self._touch()
        LOG.info("Going on after step %d of epoch %d", step, epoch)

    def stepped(self, *, epoch: int, step: int, loss: float, learning_rate: float, seconds: float) -> None:
        """Count an optimizer step.

        Args:
            epoch: The epoch it belongs to, from 1.
            step: Optimizer steps done, this one included.
            loss: Its mean loss.
            learning_rate: Its learning rate.
            seconds: How long it took, data loading included, sampling and saving not.
        """
        with self._lock:
            self._pace.stepped(epoch=epoch, loss=loss, seconds=seconds, now=self._clock())
            self._epoch, self._step = epoch, step
            self._learning_rate = learning_rate if math.isfinite(learning_rate) and learning_rate >= 0 else None
            self._estimate()
            self._touch()
            self._line()
        self._tell(step, {"loss": loss, "learning_rate": learning_rate, "epoch": epoch})

    def validated(self, epoch: int, loss: float) -> None:
        """Tell an epoch's validation loss; 0 is before training."""
        with self._lock:
            self._validations[epoch] = loss
            step = self._step
            self._touch()
        LOG.info("epoch %d, validation loss %.6f", epoch, loss)
        self._tell(step, {"validation_loss": loss})

    def stopped_early(self, stop: EarlyStop) -> None:
        """Tell that the run ends with the epoch at hand: from now on its steps are all that were ever to be done."""
        with self._lock:
            self._early_stop = stop
            if self._plan:
                self._plan = shortened(self._plan, epochs=stop.epoch)
            self._touch()
        LOG.info("Stopping early after epoch %d; validations without improvement: %d", stop.epoch, stop.validations)

    def adapted(self, adaptation: Adaptation) -> None:
        """Tell what is done otherwise than the spec says because memory lacked; nothing is, if all is as it was made.

        What is known already may be told again.
        """
        with self._lock:
            known = self._memory or Memory()
            told = known.model_copy(update={"adaptation": adaptation if adaptation != AS_ASKED else None})
            if told != self._memory:
                self._memory = told
                self._touch()

    def checkpointed(self, record: CheckpointRecord, *, fresh: bool = False) -> None:
        """Tell of a checkpoint whose manifest lies in the store; a later record of the same epoch takes its place.

        Args:
            record: The checkpoint.
            fresh: Whether it became durable just now rather than in an earlier attempt.
        """
        with self._lock:
            self._checkpoints[record.epoch] = record
            if fresh:
                self._durable["checkpoint"] = self._clock()
            self._touch()

    def state_saved(self) -> None:
        """Tell that a resume state became durable."""
        with self._lock:
            self._durable["state"] = self._clock()

    def uploaded(self, size: int) -> None:
        """Count bytes that are in the store."""
        with self._lock:
            self._bytes["up"] += size

    def waiting(self, tasks: int) -> None:
        """Tell how many directories wait for their upload."""
        with self._lock:
            self._waiting = tasks

    def storage_away(self, note: str) -> None:
        """Tell that the store did not answer; shown until it does again."""
        with self._lock:
            self._storage_failures += 1
            self._note = note[:MAXIMUM_MESSAGE]
            self._touch()

    def storage_back(self) -> None:
        """Tell that the store answers again."""
        with self._lock:
            self._note = ""
            self._touch()
        LOG.info("The store answers again.")

    def records(self) -> list[CheckpointRecord]:
        """Return all checkpoints, oldest first."""
        with self._lock:
            return [self._checkpoints[epoch] for epoch in sorted(self._checkpoints)]

    def validations(self) -> dict[int, float]:
        """Return the validation losses by epoch, oldest first; those that earlier attempts published among them."""
        with self._lock:
            published = {it.epoch: it.validation_loss for it in self.records() if it.validation_loss is not None}
            return dict(sorted((self._validations | published).items()))

    @property
    def best_epoch(self) -> int | None:
        """Return the epoch of the least validation loss among those whose checkpoint is in the store."""
        return best_epoch(self.records())

    @property
    def early_stop(self) -> EarlyStop | None:
        """Return why the run ends before its last epoch, if it does."""
        with self._lock:
            return self._early_stop

    @property
    def memory(self) -> Memory | None:
        """Return what is known of the run's memory; None before training begins."""
        with self._lock:
            return self._memory

    @property
    def plan(self) -> Plan | None:
        """Return what the dataset means in steps, once that is known."""
        with self._lock:
            return self._plan

    @property
    def epochs_done(self) -> int:
        """Return how many epochs are complete."""
        with self._lock:
            per_epoch = self._plan.steps_per_epoch if self._plan else 0
            return self._step // per_epoch if per_epoch else 0

    def snapshot(self) -> Progress:
        """Return the report as it stands; ``updated`` is when anything in it last changed."""
        with self._lock:
            remaining, validations = self._remaining(), self.validations()
            return Progress(
                run=self._run,
                pod=self._pod,
                stage=self._stage,
                message=self._note or self._message,
                plan=self._plan,
                epoch=self._epoch,
                step=self._step,
                steps_per_second=self._pace.steps_per_second,
                estimated_remaining_seconds=None if remaining is None else round(remaining),
                loss=self._pace.loss,
                learning_rate=self._learning_rate,
                validation_loss=validations[max(validations)] if validations else None,
                best_epoch=self.best_epoch,
                checkpoints=self.records()[-MAXIMUM_CHECKPOINTS:],
                memory=self._memory,
                updated=self._updated,
            )

    def counters(self) -> Counters:
        """Return what only the metrics tell."""
        with self._lock:
            ages = {what: self._clock() - since for what, since in self._durable.items()}
            return Counters(
                uploaded_bytes=self._bytes["up"],
                downloaded_bytes=self._bytes["down"],
                storage_failures=self._storage_failures,
                waiting_uploads=self._waiting,
                checkpoint_age=ages.get("checkpoint"),
                state_age=ages.get("state"),
            )

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        for follower in self._followers:
            follower(step, values)

    def _touch(self) -> None:
        self._updated = self._now()

    def _remaining(self) -> float | None:
        if self._stage is Stage.DONE:
            return 0.0
        if self._plan is None or not self._plan.steps_per_epoch:
            return None
        return self._pace.remaining(
            steps=max(0, self._plan.total_steps - self._step),
            epoch_ends=max(0, _epochs_of(self._plan) - self._epoch + 1),
            now=self._clock(),
        )

    def _estimate(self) -> None:
        """Add to the plan how long it takes: once, when the speed is measured well, since each change is written."""
        plan = self._plan
        if plan is None or plan.estimated_seconds is not None or not self._pace.is_settled:
            return
        seconds = self._pace.whole(steps=plan.total_steps, epochs=_epochs_of(plan))
        if seconds is not None:
            self._plan = plan.model_copy(update={"estimated_seconds": round(seconds)})

    def _line(self) -> None:
        total = self._plan.total_steps if self._plan else 0
        due = self._clock() - self._lined_at >= _LINE_SECONDS
        if not (due or (total and self._step - self._lined_step >= _LINE_SHARE * total) or self._step == total):
            return
        self._lined_at, self._lined_step = self._clock(), self._step
        remaining, loss, speed = self._remaining(), self._pace.loss, self._pace.steps_per_second
        LOG.info(
            "epoch %d, step %d/%d, loss %s, lr %s, %s steps/s, %s left",
            self._epoch,
            self._step,
            total,
            "?" if loss is None else f"{loss:.4f}",
            "?" if self._learning_rate is None else f"{self._learning_rate:.3g}",
            "?" if speed is None else f"{speed:.2f}",
            "?" if remaining is None else clock_time(remaining),
        )


def _epochs_of(plan: Plan) -> int:
    return math.ceil(plan.total_steps / plan.steps_per_epoch) if plan.steps_per_epoch else 0


def shortened(plan: Plan, *, epochs: int) -> Plan:
    """Return a plan that ends with an earlier epoch."""
    total, seconds = epochs * plan.steps_per_epoch, plan.estimated_seconds
    if seconds is not None and plan.total_steps:
        seconds = round(seconds * total / plan.total_steps)
    return plan.model_copy(update={"total_steps": total, "estimated_seconds": seconds})


def clock_time(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
