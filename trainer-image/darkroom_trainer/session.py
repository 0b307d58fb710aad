"""A run in memory: model, trainee, optimizer and position. `step` moves it by one; `train` decides when."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from darkroom_api.captions import Captions
from darkroom_api.failures import FailureReason
from darkroom_api.memory import Adaptation
from darkroom_api.progress import EarlyStop
from darkroom_api.training import TrainingSpec
from darkroom_trainer import choosing, objectives, state
from darkroom_trainer.adapting import exhausted, next_adaptation, set_checkpointing, told
from darkroom_trainer.averaging import Average
from darkroom_trainer.batches import Course
from darkroom_trainer.captions import present, without_ends
from darkroom_trainer.conditioning import Frame, PromptCache, encode_prompts, unet_arguments
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.fitting import cut, in_a_line, release_memory
from darkroom_trainer.hardware import memory_limit
from darkroom_trainer.items import Item
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.opening import average_decay, learning_rate_of, open_trainee, text_encoder_until
from darkroom_trainer.optimizers import (
    Group,
    build_optimizer,
    evaluation_weights,
    rate_in_force,
)
from darkroom_trainer.randomness import noise_source, shuffler
from darkroom_trainer.reducing import reduction
from darkroom_trainer.schedules import schedule_factor
from darkroom_trainer.team import ALONE, Team
from darkroom_trainer.trainees import Trainee
from darkroom_trainer.weights_file import WeightsFile

LOG: Final = logging.getLogger(__name__)

STEP: Final = "step"
LOAD: Final = "load"
ADAPT: Final = "adapt"
"""What a leader lets the other processes of its run do."""
_LIGHTER_OPTIMIZER: Final = "Take AdamW8bit or Adafactor, which keep less for each weight, or give a larger GPU."

Pieces = list[tuple[Sequence[Item], float, Captions]]
"""What passes through the model together in a step, how much its pictures count, and what becomes of captions."""


@dataclass(frozen=True)
class Stepped:
    """What a step did."""

    loss: float
    learning_rate: float


@dataclass
class Session:
    """Everything that a step reads and changes."""

    spec: TrainingSpec
    course: Course
    model: StableDiffusion
    latents: LatentCache
    accelerator: Accelerator
    trainee: Trainee
    optimizer: Any
    """accelerate's wrapper around torch's, which knows the loss scaler."""
    peaks: list[float]
    """Peak learning rate of each of the optimizer's groups."""
    inputs: str
    """Fingerprint of base model and pictures."""
    position: state.Position = field(default_factory=state.Position)
    prompts: PromptCache | None = None
    """Encoded prompts, where no text encoder is trained, or none any more."""
    average: Average | None = None
    team: Team = ALONE
    """The processes that share each step."""
    adaptation: Adaptation = field(default_factory=Adaptation)
    """What is done otherwise than the spec says, because memory lacked."""

    @property
    def adapted(self) -> Adaptation:
        """Return what is done otherwise than the spec says, in steps and with their pictures."""
        return self.adaptation.model_copy(update={"tiled_latents": self.latents.has_tiled})

    @property
    def is_finished(self) -> bool:
        """Tell whether all epochs that will be trained are closed."""
        return self.position.closed_epoch >= self.last_epoch

    @property
    def early_stop(self) -> EarlyStop | None:
        """Return why the run ends before its last epoch, if it does."""
        return choosing.early_stop(self.spec.validation, self.position.validations, epochs=self.course.epochs)

    @property
    def last_epoch(self) -> int:
        """Return the last epoch that is trained, as far as that is known."""
        stop = self.early_stop
        return stop.epoch if stop else self.course.epochs

    @property
    def epoch_to_close(self) -> int | None:
        """Return the epoch whose end has come and whose results are not handed over yet; 0 is before training."""
        done, rest = divmod(self.position.step, self.course.steps_per_epoch)
        return done if rest == 0 and self.position.closed_epoch < done else None

    @property
    def epoch(self) -> int:
        """Return the epoch of the last step, from 1; 0 before the first."""
        return math.ceil(self.position.step / self.course.steps_per_epoch)

    @property
    def _place(self) -> str:
        """Return what the coming step is called where it fails."""
        step = self.position.step
        return f"step {step + 1} in epoch {step // self.course.steps_per_epoch + 1}"

    def step(self) -> Stepped:
        """Train on the next batches, as many as a step has.

        Raises:
            RunError: The loss or its gradient is not finite; the weights stay as they were.
        """
        self.team.lead(STEP)
        number, training = self.position.step, self.spec.training
        factor = schedule_factor(training.schedule, number, self.course.total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        value = self._fill_gradients(number)
        # Without a limit the norm is still wanted: it tells whether the gradient is finite.
        limit = training.maximum_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.trainee.named_parameters().values(), limit)
        if not self.accelerator.scaler:  # a loss scaler leaves out such a step by itself and scales less
            shown = [it for batch in self.course.window(number) for it in batch]
            require_finite(f"gradient's norm of {self._place}", float(norm), shown)
        rate = rate_in_force(training.optimizer, self.optimizer.optimizer, self.peaks[0] * factor)
        # Not repeated if memory lacks here: weights may have moved.
        with memory_limit(f"the optimizer in {self._place}", advice=_LIGHTER_OPTIMIZER):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # an epoch's end may need their memory
        self.position.record(value, rate)
        if self.average:
            self.average.update(number + 1)
        self._freeze_text_encoders()
        return Stepped(value, rate)

    def _freeze_text_encoders(self) -> None:
        """Leave the text encoders as they are after the spec's step: optimizers skip what has no gradient."""
        until = text_encoder_until(self.spec)
        if until is None or self.position.step < until or self.prompts:
            return
        for part in self.model.text_parts:
            for parameter in self.trainee.named_parameters(part).values():
                parameter.requires_grad_(False)
                parameter.grad = None
        self.prompts = PromptCache(self.model, self.spec.training.text_encoding)

    def _fill_gradients(self, step: int) -> float:
        """Fill the gradients of a step, from the beginning again with less memory if that lacked; return its loss.

        Raises:
            RunError: All that the spec allows was done about it.
        """
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            pieces, value, lacking, problem = self._pieces(step), 0.0, None, None
            try:
                value = self._accumulate(pieces, step)
            except torch.OutOfMemoryError as error:
                lacking = in_a_line(error)
            except RunError as error:
                problem = error
            lacking = self.team.agree(problem, lacking)
            if lacking is None:
                return self.team.sum_up(value, self.trainee.named_parameters().values())
            # Only here the traceback is gone, and with it what it held of the activations.
            self.adapt(self._place, lacking, together=max(len(batch) for batch, *_ in pieces))

    def adapt(self, place: str, lacking: str, *, together: int, trains: bool = True) -> None:
        """Do with less memory from now on; the caller does again what memory lacked for.

        Args:
            place: What that was.
            lacking: How much was missing.
            together: Pictures that passed through the model together at most.
            trains: Whether in a step, not in a validation.

        Raises:
            RunError: All that the spec allows was done already.
        """
        training = self.spec.training
        found = next_adaptation(self.adaptation, training, together=together, trains=trains)
        if found is None:
            raise exhausted(place, lacking, self.adaptation, training)
        self.optimizer.zero_grad(set_to_none=True)
        if not trains:  # in a step all processes come here, in a validation the leader alone
            self.team.lead(ADAPT, found)
        self.follow(found)
        release_memory()
        LOG.warning("Too little memory in %s, so it goes on with %s: %s", place, ", ".join(told(found)), lacking)

    def follow(self, adaptation: Adaptation) -> None:
        """Do from now on what was found to fit into memory."""
        training = self.spec.training
        wanted = training.gradient_checkpointing or adaptation.gradient_checkpointing
        set_checkpointing(self.model.unet, wanted=wanted)
        self.course = replace(self.course, reduction=reduction(training, adaptation.resolution))
        self.adaptation = adaptation

    def _pieces(self, step: int) -> Pieces:
        """Return a step's batches, with a prior those of the class too, cut as memory wants it."""
        course, captions, limit = self.course, self.spec.training.captions, self.adaptation.micro_batch
        parts = [(batch, 1.0, captions) for batch in course.window(step)]
        if course.prior:
            parts += [(it, course.prior.weight, without_ends(captions)) for it in course.prior_window(step)]
        return [(piece, factor, shown_as) for batch, factor, shown_as in parts for piece in cut(batch, limit)]

    def _accumulate(self, pieces: Pieces, step: int) -> float:
        """Add up the gradient of the mean loss over all the step's pictures, and return that loss.

        With a prior, the mean over as many pictures of the class is added, times its weight. What is put around the
        subject's captions stays off theirs: a trigger there would teach that it is nothing but the class.
        """
        num_pictures = sum(len(batch) for batch in self.course.window(step))
        numbered, shown, value = [], 0, 0.0
        for batch, factor, shown_as in pieces:
            numbered.append((batch, factor, shown_as, shown))
            shown += len(batch)
        for batch, factor, shown_as, first in self.team.share(numbered):
            loss = self._loss(batch, step, first=first, captions=shown_as)
            require_finite(f"loss of {self._place}", float(loss.detach()), batch)
            # By pictures, not by batches: a bucket's last batch and an epoch's last window may be short.
            share = factor * len(batch) / num_pictures
            self.accelerator.backward(loss * share)
            value += float(loss.detach()) * share
        return value

    def _loss(self, batch: Sequence[Item], step: int, *, first: int, captions: Captions) -> torch.Tensor:
        noised = objectives.joined(
            [self._noised(item, step, number) for number, item in enumerate(batch, start=first)], self.model.device
        )
        epoch = step // self.course.steps_per_epoch + 1
        shown = [
            present(
                item.picture.caption,
                captions,
                shuffler(self.spec.training.seed, "captions", step, number),
                epoch=epoch,
            )
            for number, item in enumerate(batch, start=first)
        ]
        return self.losses(noised, self.predict(noised, shown, batch)).mean()

    def losses(self, noised: objectives.Noised, predicted_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the loss of each picture (B) as the objective counts it, in training and in validation."""
        objective, alphas_T = self.spec.training.objective, self.model.scheduler.alphas_cumprod
        velocity = self.model.nature.predicts_velocity
        weights_B = objectives.weights(noised.timesteps_B, alphas_T, objective, velocity=velocity)
        return objectives.losses(predicted_BCHW, noised, weights_B, kind=objective.loss, alphas_T=alphas_T)

    def _noised(self, item: Item, step: int, number: int) -> objectives.Noised:
        """Noise one picture of a step by random numbers of its own: how the step is cut into batches changes none."""
        model, generator = self.model, noise_source(self.spec.training.seed, "noise", step, number)
        latents_1CHW = self.latents.draw([item], generator) * model.vae.config.scaling_factor
        return objectives.add_noise(
            latents_1CHW,
            model.scheduler.alphas_cumprod,
            generator,
            objective=self.spec.training.objective,
            velocity=model.nature.predicts_velocity,
        ).weighted(self.latents.weights([item]))

    def predict(self, noised: objectives.Noised, captions: list[str], items: Sequence[Item]) -> torch.Tensor:
        """Return what the model says (B, C, H, W) of noised latents of these pictures under these captions."""
        model, encoding = self.model, self.spec.training.text_encoding
        frames = [Frame(it.picture.size, it.corner, it.placement.bucket) for it in items]
        with self.accelerator.autocast():
            conditions = self.prompts.encode(captions) if self.prompts else encode_prompts(model, captions, encoding)
            predicted_BCHW: torch.Tensor = model.unet(
                noised.latents_BCHW.to(model.dtype),
                noised.timesteps_B.to(model.device),
                return_dict=False,
                **unet_arguments(model, conditions, frames),
            )[0]
        return predicted_BCHW

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the weights that checkpoints, samples and validations are to have; afterwards those that are trained."""
        kept = self.prompts
        if kept and text_encoder_until(self.spec) is not None:
            # Those weights may be averaged ones: neither may read what the others encoded.
            self.prompts = PromptCache(self.model, self.spec.training.text_encoding)
        try:
            with (
                evaluation_weights(self.optimizer.optimizer),
                self.average.applied() if self.average else nullcontext(),
            ):
                yield
        finally:
            self.prompts = kept

    def capture(self) -> state.Snapshot:
        """Copy the resume state to host memory."""
        scaler = self.accelerator.scaler
        return state.capture(
            self.position,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
            scaler=scaler.state_dict() if scaler else {},
            averages=self.average.tensors if self.average else {},
            adaptation=self.adaptation,
            inputs=self.inputs,
        )

    def load(self, directory: Path) -> None:
        """Go on from a resume state."""
        self.team.lead(LOAD, str(directory))
        self.position, scaler, adaptation = state.load(
            directory,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
            averages=self.average.tensors if self.average else {},
            inputs=self.inputs,
        )
        if self.accelerator.scaler and scaler:
            self.accelerator.scaler.load_state_dict(scaler)
        self._freeze_text_encoders()
        self.team.agree(None)  # from here on all have read it
        self.follow(adaptation)


def require_finite(what: str, value: float, items: Sequence[Item]) -> None:
    """Accept a number of a batch.

    Raises:
        RunError: It is not finite; the batch's pictures are named.
    """
    if math.isfinite(value):
        return
    names = ", ".join(item.picture.name for item in items)
    raise RunError(FailureReason.LOSS_NOT_FINITE, f"the {what} is {value}; its pictures: {names[:500]}")


def open_session(
    spec: TrainingSpec,
    course: Course,
    model: StableDiffusion,
    *,
    latents: LatentCache,
    accelerator: Accelerator,
    inputs: str,
    initial: WeightsFile | None = None,
) -> Session:
    """Make trainable what the spec asks for, from its initial weights if it has any, and put an optimizer over it."""
    training = spec.training
    trainee = open_trainee(spec, model, initial)
    set_checkpointing(model.unet, wanted=training.gradient_checkpointing)
    groups = [
        Group(list(weights.values()), learning_rate_of(spec, part))
        for part in model.parts
        if (weights := trainee.named_parameters(part))
    ]
    optimizer = accelerator.prepare(build_optimizer(training.optimizer, groups))
    peaks = [group.learning_rate for group in groups]
    reads_alike = not any(trainee.named_parameters(part) for part in model.text_parts)
    prompts = PromptCache(model, training.text_encoding) if reads_alike else None
    decay = average_decay(spec)
    average = Average(trainee.named_parameters(), decay) if decay is not None else None
    if accelerator.scaler:  # it begins with the first loss, which in an epoch's last step may be another process's
        accelerator.scaler.scale(torch.zeros((), device=model.device))
    session = Session(spec, course, model, latents, accelerator, trainee, optimizer, peaks, inputs)
    session.prompts, session.average = prompts, average
    return session
