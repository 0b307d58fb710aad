"""A run in memory: model, trainee, optimizer and position. `step` moves it by one; `train` decides when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator

from darkroom_api.captions import Captions
from darkroom_api.failures import FailureReason
from darkroom_api.progress import EarlyStop
from darkroom_api.training import TrainingSpec
from darkroom_trainer import choosing, objectives, state
from darkroom_trainer.averaging import Average
from darkroom_trainer.batches import Course
from darkroom_trainer.captions import present, without_ends
from darkroom_trainer.conditioning import Frame, PromptCache, encode_prompts, unet_arguments
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import StableDiffusion
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
from darkroom_trainer.schedules import schedule_factor
from darkroom_trainer.team import ALONE, Team
from darkroom_trainer.trainees import Trainee

STEP: Final = "step"
LOAD: Final = "load"
"""What a leader lets the other processes of its run do."""


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
        window = self.course.window(number)
        self._freeze_text_encoders(number)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._accumulate_together(window, number)
        # Without a limit the norm is still wanted: it tells whether the gradient is finite.
        limit = training.maximum_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.trainee.named_parameters().values(), limit)
        if not self.accelerator.scaler:  # a loss scaler leaves out such a step by itself and scales less
            require_finite(f"gradient's norm of {self._place}", float(norm), [it for batch in window for it in batch])
        rate = rate_in_force(training.optimizer, self.optimizer.optimizer, self.peaks[0] * factor)
        self.optimizer.step()
        self.position.record(value, rate)
        if self.average:
            self.average.update(number + 1)
        return Stepped(value, rate)

    def _freeze_text_encoders(self, step: int) -> None:
        """Leave the text encoders as they are from the spec's step on: optimizers skip what has no gradient."""
        until = text_encoder_until(self.spec)
        if until is None or step < until or self.prompts:
            return
        for part in self.model.text_parts:
            for parameter in self.trainee.named_parameters(part).values():
                parameter.requires_grad_(False)
                parameter.grad = None
        self.prompts = PromptCache(self.model, self.spec.training.text_encoding)

    def _accumulate_together(self, window: list[list[Item]], step: int) -> float:
        """Add up gradient and loss over all processes.

        Raises:
            RunError: One of them cannot go on; all raise it.
        """
        value, problem = 0.0, None
        try:
            value = self._accumulate(window, step)
        except RunError as error:
            problem = error
        self.team.agree(problem)
        return self.team.sum_up(value, self.trainee.named_parameters().values())

    def _accumulate(self, window: list[list[Item]], step: int) -> float:
        """Add up the gradient of the mean loss over all the window's pictures, and return that loss.

        With a prior, the mean over as many pictures of the class is added, times its weight. What is put around the
        subject's captions stays off theirs: a trigger there would teach that it is nothing but the class.
        """
        num_pictures, shown, value = sum(len(batch) for batch in window), 0, 0.0
        weight = self.course.prior.weight if self.course.prior else 0.0
        captions = self.spec.training.captions
        parts = [(batch, 1.0, captions) for batch in window]
        parts += [(batch, weight, without_ends(captions)) for batch in self.course.prior_window(step)]
        numbered = []
        for batch, factor, shown_as in parts:
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

    def _loss(self, batch: list[Item], step: int, *, first: int, captions: Captions) -> torch.Tensor:
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
        with evaluation_weights(self.optimizer.optimizer), self.average.applied() if self.average else nullcontext():
            yield

    def capture(self) -> state.Snapshot:
        """Copy the resume state to host memory."""
        scaler = self.accelerator.scaler
        return state.capture(
            self.position,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
            scaler=scaler.state_dict() if scaler else {},
            averages=self.average.tensors if self.average else {},
            inputs=self.inputs,
        )

    def load(self, directory: Path) -> None:
        """Go on from a resume state."""
        self.team.lead(LOAD, str(directory))
        self.position, scaler = state.load(
            directory,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
            averages=self.average.tensors if self.average else {},
            inputs=self.inputs,
        )
        if self.accelerator.scaler and scaler:
            self.accelerator.scaler.load_state_dict(scaler)


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
    team: Team = ALONE,
) -> Session:
    """Make trainable what the spec asks for, and put an optimizer over it."""
    training = spec.training
    trainee = open_trainee(spec, model)
    if training.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.unet.train()  # diffusers heeds it in training mode only; no family has dropout that this would wake
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
    session = Session(spec, course, model, latents, accelerator, trainee, optimizer, peaks, inputs)
    session.prompts, session.average, session.team = prompts, average, team
    return session
