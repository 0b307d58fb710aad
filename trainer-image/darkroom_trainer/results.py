"""What a run hands over: validation, checkpoints, samples and curves at the end of epochs, and its resume state."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from darkroom_api.layout import (
    EVENTS,
    checkpoint_directory,
    events_file,
    sample_file,
    samples_directory,
    state_directory,
    weights_file,
)
from darkroom_api.progress import Stage
from darkroom_trainer import events
from darkroom_trainer.choosing import is_validated
from darkroom_trainer.metadata import BaseModelFile, metadata
from darkroom_trainer.number_formats import DTYPES
from darkroom_trainer.opening import learning_rate_of, sample_strength
from darkroom_trainer.sampling import paint, wanted_pictures
from darkroom_trainer.services import Services
from darkroom_trainer.session import Session
from darkroom_trainer.validating import validation_loss
from darkroom_trainer.writing import Writer

LOG: Final = logging.getLogger(__name__)

METRICS: Final = "metrics.json"


@dataclass(frozen=True)
class Results:
    """Writes files below the work directory and hands them to the publisher, in the order of their epochs.

    The publisher makes one directory durable after the other, so a state in the store means that all checkpoints and
    samples before it are there too.
    """

    name: str
    session: Session
    services: Services
    base: Future[BaseModelFile]
    _writer: Writer = field(default_factory=Writer, init=False)
    _saves: Iterator[int] = field(default_factory=itertools.count, init=False)

    def close_epoch(self, epoch: int) -> None:
        """Validate an epoch, hand over its checkpoint, samples and curves, then the state; epoch 0 has no checkpoint.

        Raises:
            StopRequested: In the middle of validation or samples; the epoch is not closed, its end will be repeated.
        """
        spec, position = self.session.spec, self.session.position
        with self.session.evaluating():
            if is_validated(spec.validation, epoch, epochs=self.session.course.epochs):
                self._validate(epoch)
            is_last = epoch == self.session.last_epoch  # the validation may have made it so
            has_checkpoint = epoch > 0 and (is_last or epoch % spec.checkpoints.every_epochs == 0)
            if has_checkpoint:
                self._write_checkpoint(epoch, is_last=is_last)
            has_samples = bool(spec.samples.prompts) and (is_last or epoch % spec.samples.every_epochs == 0)
            self._hand_over_events(epoch, self._paint_samples(epoch) if has_samples else [])
        if has_checkpoint:
            position.forget_steps()
        position.closed_epoch = epoch
        if epoch:
            self.save_state()

    def save_state(self) -> None:
        """Hand over the resume state."""
        snapshot, epoch, step = self.session.capture(), self.session.epoch, self.session.position.step
        self.services.reporter.stage(Stage.SAVING, f"State after step {step}")
        directory = state_directory(step)
        # A folder of its own each time: the publisher may still hold an earlier state of the same step.
        folder = self._folder(f"{directory}-{next(self._saves)}")

        def write() -> None:
            self.services.publisher.publish(directory, snapshot.write(folder), epoch=epoch, step=step)

        self._writer.hand_over(write)

    def flush(self) -> None:
        """Wait until everything is durable.

        Raises:
            RunError: Something could not be published.
        """
        self._writer.wait()
        self.services.publisher.flush()

    def salvage(self) -> None:
        """Make durable what was handed over before a failure, as far as that goes; the failure stays the one told."""
        self.services.reporter.stage(Stage.SAVING, "What was finished before the failure")
        for wait in (self._writer.wait, self.services.publisher.flush):
            try:
                wait()
            except Exception as error:  # noqa: BLE001 - it must not hide why the run ends
                LOG.warning("Not everything of the epochs before could be published: %s", error)

    def _validate(self, epoch: int) -> None:
        session, reporter, stop = self.session, self.services.reporter, self.services.stop
        if epoch in session.position.validations:
            return  # measured by an attempt that was stopped later in this epoch's end

        def before_batch(number: int, total: int) -> None:
            stop.check()
            reporter.stage(Stage.VALIDATING, f"Epoch {epoch}: batch {number} of {total}")

        loss = validation_loss(session, before_batch=before_batch)
        session.position.record_validation(epoch, loss)
        reporter.validated(epoch, loss)
        if session.early_stop:
            reporter.stopped_early(session.early_stop)

    def _write_checkpoint(self, epoch: int, *, is_last: bool) -> None:
        self.services.reporter.stage(Stage.SAVING, f"Checkpoint of epoch {epoch}")
        session, publisher, step = self.session, self.services.publisher, self.session.position.step
        directory = checkpoint_directory(epoch)
        weights = self._folder(directory) / weights_file(self.name, epoch=epoch, suffix=session.spec.checkpoints.suffix)
        write_weights = session.trainee.draft(DTYPES[session.spec.checkpoints.precision])
        metrics = json.dumps(self._metrics(epoch))
        loss = session.position.validations.get(epoch)

        def write() -> None:
            base = self.base.result()
            about = metadata(
                session.spec, session.course, base, nature=session.model.nature, name=weights.stem, epoch=epoch
            )
            write_weights(weights, about)
            weights.with_name(METRICS).write_text(metrics)
            files = [weights, weights.with_name(METRICS)]
            publisher.publish(directory, files, epoch=epoch, step=step, validation_loss=loss)
            if is_last:
                publisher.publish_final(weights, epoch, step)

        self._writer.hand_over(write)

    def _metrics(self, epoch: int) -> dict[str, object]:
        position = self.session.position
        metrics: dict[str, object] = {
            "epoch": epoch,
            "steps": position.steps,
            "losses": position.losses,
            "learningRates": position.learning_rates,
        }
        if self.session.spec.validation:
            curve = {"epochs": position.validated_epochs, "losses": position.validation_losses}
            metrics |= {"validationLoss": position.validations.get(epoch), "validations": curve}
        return metrics

    def _paint_samples(self, epoch: int) -> list[Path]:
        session, spec, files = self.session, self.session.spec, []
        folder = self._folder(samples_directory(epoch))
        pictures = wanted_pictures(spec.samples, resolution=spec.training.resolution)
        encoding = spec.training.text_encoding
        with session.trainee.rounded(DTYPES[spec.checkpoints.precision]), sample_strength(spec, session.trainee):
            for number, (prompt, picture) in enumerate(pictures, start=1):
                self.services.reporter.stage(Stage.SAMPLING, f"Epoch {epoch}: picture {number} of {len(pictures)}")
                path = folder / sample_file(prompt, picture.seed)
                paint(session.model, picture, encoding=encoding, before_step=self.services.stop.check).save(path)
                files.append(path)
        return files

    def _hand_over_events(self, epoch: int, samples: list[Path]) -> None:
        """Hand over an epoch's samples, and its curves with these pictures for TensorBoard.

        One job of the writer: samples cannot overtake the checkpoint before them, and once they are the publisher's
        they may be gone.
        """
        publisher, step = self.services.publisher, self.session.position.step
        path = self._folder(EVENTS) / events_file(epoch)
        scalars = curves(self.session, epoch)
        pictures = [events.Picture(step, f"samples/{sample.stem}", sample) for sample in samples]

        def write() -> None:
            if scalars or pictures:
                events.write_events(path, scalars, pictures)
            if samples:
                publisher.publish(samples_directory(epoch), samples, epoch=epoch, step=step)
            if scalars or pictures:
                publisher.publish_events(path, epoch, step)

        self._writer.hand_over(write)

    def _folder(self, directory: str) -> Path:
        # No fsync: this disk lives no longer than the pod, and the publisher verifies what arrives in the store.
        folder = self.services.work / "results" / directory
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def curves(session: Session, epoch: int) -> list[events.Scalars]:
    """Return what TensorBoard is to show of an epoch: loss and learning rates of its steps, loss of its validation."""
    position, spec = session.position, session.spec
    first = (epoch - 1) * session.course.steps_per_epoch + 1
    peaks = {
        part: learning_rate_of(spec, part) for part in session.model.parts if session.trainee.named_parameters(part)
    }
    shares = {part: peak / session.peaks[0] for part, peak in peaks.items()}
    scalars = [
        events.Scalars(step, {"loss": loss} | {f"learning_rate/{part}": rate * share for part, share in shares.items()})
        for step, loss, rate in zip(position.steps, position.losses, position.learning_rates, strict=True)
        if step >= first  # with fewer checkpoints than epochs, those of the epochs before are there still
    ]
    if epoch in position.validations:
        scalars.append(events.Scalars(position.step, {"validation_loss": position.validations[epoch]}))
    return scalars
