"""A run in memory: model, trainee, optimizer and position. `step` moves it by one; `train` decides when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from darkroom_api.failures import FailureReason
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.progress import EarlyStop
from darkroom_trainer import choosing, objectives, state
from darkroom_trainer.batches import Course, Item
from darkroom_trainer.captions import present
from darkroom_trainer.conditioning import Frame, PromptCache, encode_prompts, unet_arguments
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.latents import LatentCache
from darkroom_trainer.networks.adapter import inject
from darkroom_trainer.optimizers import (
    Group,
    build_optimizer,
    evaluation_weights,
    rate_in_force,
    text_encoder_learning_rate,
)
from darkroom_trainer.randomness import noise_source, shuffler
from darkroom_trainer.schedules import schedule_factor
from darkroom_trainer.trainees import Trainee


@dataclass(frozen=True)
class Stepped:
    """What a step did."""

    loss: float
    learning_rate: float


@dataclass
class Session:
    """Everything that a step reads and changes."""

    spec: LoraTrainingSpec
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
    """Encoded prompts, where no text encoder is trained."""

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
        number, training = self.position.step, self.spec.training
        factor = schedule_factor(training.schedule, number, self.course.total_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        window = self.course.window(number)
        self.optimizer.zero_grad(set_to_none=True)
        value = self._accumulate(window, number)
        # Without a limit the norm is still wanted: it tells whether the gradient is finite.
        limit = training.maximum_gradient_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.trainee.named_parameters().values(), limit)
        if not self.accelerator.scaler:  # a loss scaler leaves out such a step by itself and scales less
            require_finite(f"gradient's norm of {self._place}", float(norm), [it for batch in window for it in batch])
        rate = rate_in_force(training.optimizer, self.optimizer.optimizer, self.peaks[0] * factor)
        self.optimizer.step()
        self.position.record(value, rate)
        return Stepped(value, rate)

    def _accumulate(self, window: list[list[Item]], step: int) -> float:
        """Add up the gradient of the mean loss over all the window's pictures, and return that loss."""
        num_pictures, shown, value = sum(len(batch) for batch in window), 0, 0.0
        for batch in window:
            loss = self._loss(batch, step, first=shown)
            require_finite(f"loss of {self._place}", float(loss.detach()), batch)
            # By pictures, not by batches: a bucket's last batch and an epoch's last window may be short.
            share = len(batch) / num_pictures
            self.accelerator.backward(loss * share)
            value += float(loss.detach()) * share
            shown += len(batch)
        return value

    def _loss(self, batch: list[Item], step: int, *, first: int) -> torch.Tensor:
        training = self.spec.training
        noised = objectives.joined(
            [self._noised(item, step, number) for number, item in enumerate(batch, start=first)], self.model.device
        )
        captions = [
            present(item.picture.caption, training.captions, shuffler(training.seed, "captions", step, number))
            for number, item in enumerate(batch, start=first)
        ]
        return self.losses(noised, self.predict(noised, captions, batch)).mean()

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
        )

    def predict(self, noised: objectives.Noised, captions: list[str], items: Sequence[Item]) -> torch.Tensor:
        """Return what the model says (B, C, H, W) of noised latents of these pictures under these captions."""
        model, encoding = self.model, self.spec.training.text_encoding
        frames = [Frame(it.picture.size, it.placement.crop[:2], it.placement.bucket) for it in items]
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
        with evaluation_weights(self.optimizer.optimizer):
            yield

    def capture(self) -> state.Snapshot:
        """Copy the resume state to host memory."""
        scaler = self.accelerator.scaler
        return state.capture(
            self.position,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
            scaler=scaler.state_dict() if scaler else {},
            inputs=self.inputs,
        )

    def load(self, directory: Path) -> None:
        """Go on from a resume state."""
        self.position, scaler = state.load(
            directory,
            parameters=self.trainee.named_parameters(),
            optimizer=self.optimizer.optimizer,
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
    spec: LoraTrainingSpec,
    course: Course,
    model: StableDiffusion,
    *,
    latents: LatentCache,
    accelerator: Accelerator,
    inputs: str,
) -> Session:
    """Put what is trained into the model and an optimizer over it."""
    training = spec.training
    text_rate = text_encoder_learning_rate(training.optimizer)
    trainee = inject(spec.network, model, seed=training.seed, train_text_encoder=text_rate > 0)
    if training.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        model.unet.train()  # diffusers heeds it in training mode only; no family has dropout that this would wake
    rates = {part: training.optimizer.learning_rate if part == UNET_PART else text_rate for part in model.parts}
    groups = [
        Group(list(weights.values()), rate)
        for part, rate in rates.items()
        if (weights := trainee.named_parameters(part))
    ]
    optimizer = accelerator.prepare(build_optimizer(training.optimizer, groups))
    peaks = [group.learning_rate for group in groups]
    reads_alike = not any(trainee.named_parameters(part) for part in model.text_parts)
    prompts = PromptCache(model, training.text_encoding) if reads_alike else None
    return Session(spec, course, model, latents, accelerator, trainee, optimizer, peaks, inputs, prompts=prompts)
