"""What each kind of training puts into the model, and how fast it learns: one row of functions per kind."""

from __future__ import annotations

from functools import singledispatch

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_trainer.adapters import inject
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.optimizers import text_encoder_learning_rate
from darkroom_trainer.trainees import Trainee
from darkroom_trainer.whole_model import unfreeze


@singledispatch
def open_trainee(spec: object, model: StableDiffusion) -> Trainee:
    """Make trainable in a model what a spec asks for; at first it paints what the base model paints."""
    raise NotImplementedError(f"no training by {type(spec).__name__}")


@open_trainee.register
def _(spec: LoraTrainingSpec, model: StableDiffusion) -> Trainee:
    trains_text = text_encoder_learning_rate(spec.training.optimizer) > 0
    return inject(spec.network, model, seed=spec.training.seed, train_text_encoder=trains_text)


@open_trainee.register
def _(spec: ModelTrainingSpec, model: StableDiffusion) -> Trainee:
    trains_text = text_encoder_learning_rate(spec.training.optimizer) > 0
    return unfreeze(spec, model, train_text_encoder=trains_text)


@singledispatch
def learning_rate_of(spec: object, part: str) -> float:
    """Return the peak learning rate of a part of the model."""
    raise NotImplementedError(f"no learning rates for {type(spec).__name__}")


@learning_rate_of.register(LoraTrainingSpec)
@learning_rate_of.register(ModelTrainingSpec)
def _(spec: LoraTrainingSpec | ModelTrainingSpec, part: str) -> float:
    optimizer = spec.training.optimizer
    return optimizer.learning_rate if part == UNET_PART else text_encoder_learning_rate(optimizer)


@singledispatch
def text_encoder_until(spec: object) -> int | None:
    """Return the steps after which the text encoder stays as it is; None: it never does."""
    return None


@text_encoder_until.register
def _(spec: ModelTrainingSpec) -> int | None:
    return spec.parts.text_encoder_until_step


@singledispatch
def average_decay(spec: object) -> float | None:
    """Return the decay of the trained weights' moving average; None: there is none."""
    return None


@average_decay.register
def _(spec: ModelTrainingSpec) -> float | None:
    return spec.ema.decay if spec.ema else None
