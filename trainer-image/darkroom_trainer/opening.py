"""What each kind of training puts into the model, and how fast it learns: one row of functions per kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import singledispatch

from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.training import TrainingSpec
from darkroom_trainer.dataset import Picture
from darkroom_trainer.embeddings import insert
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.networks.adapter import Adapter, build_layers, inject
from darkroom_trainer.networks.selection import choose_places
from darkroom_trainer.optimizers import text_encoder_learning_rate
from darkroom_trainer.trainees import Trainee
from darkroom_trainer.weights_file import WeightsFile
from darkroom_trainer.whole_model import unfreeze
from darkroom_trainer.word_check import require_word


@singledispatch
def open_trainee(spec: object, model: StableDiffusion, initial: WeightsFile | None) -> Trainee:
    """Make trainable in a model what a spec asks for.

    At first it paints what the base model does, a new word aside, or what the spec's initial weights make of it.
    """
    raise NotImplementedError(f"no training by {type(spec).__name__}")


@open_trainee.register
def _(spec: LoraTrainingSpec, model: StableDiffusion, initial: WeightsFile | None) -> Trainee:
    trains_text = text_encoder_learning_rate(spec.training.optimizer) > 0
    return inject(spec.network, model, seed=spec.training.seed, train_text_encoder=trains_text, initial=initial)


@open_trainee.register
def _(spec: ModelTrainingSpec, model: StableDiffusion, initial: WeightsFile | None) -> Trainee:
    trains_text = text_encoder_learning_rate(spec.training.optimizer) > 0
    return unfreeze(spec, model, train_text_encoder=trains_text)


@open_trainee.register
def _(spec: EmbeddingTrainingSpec, model: StableDiffusion, initial: WeightsFile | None) -> Trainee:
    return insert(spec.embedding, model, seed=spec.training.seed)


@singledispatch
def check_model(spec: object, model: StableDiffusion, initial: WeightsFile | None) -> None:
    """Refuse what only the loaded model tells to be wrong, before anything long is computed with it.

    Raises:
        RunError: Options and model do not fit.
    """


@check_model.register
def _(spec: LoraTrainingSpec, model: StableDiffusion, initial: WeightsFile | None) -> None:
    trains_text = text_encoder_learning_rate(spec.training.optimizer) > 0
    if initial is None:
        choose_places(spec.network, model, train_text_encoder=trains_text)
        return
    build_layers(spec.network, model, seed=spec.training.seed, train_text_encoder=trains_text, initial=initial)


@singledispatch
def learning_rate_of(spec: object, part: str) -> float:
    """Return the peak learning rate of a part of the model."""
    raise NotImplementedError(f"no learning rates for {type(spec).__name__}")


@learning_rate_of.register(LoraTrainingSpec)
@learning_rate_of.register(ModelTrainingSpec)
def _(spec: LoraTrainingSpec | ModelTrainingSpec, part: str) -> float:
    optimizer = spec.training.optimizer
    return optimizer.learning_rate if part == UNET_PART else text_encoder_learning_rate(optimizer)


@learning_rate_of.register(EmbeddingTrainingSpec)
def _(spec: EmbeddingTrainingSpec, part: str) -> float:
    return spec.training.optimizer.learning_rate


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


@singledispatch
def check_pictures(spec: object, pictures: Sequence[Picture], *, field: str) -> None:
    """Refuse pictures that a kind of training can learn nothing from; most kinds take all.

    Args:
        spec: The training's spec.
        pictures: A set of them, looked through.
        field: Where the spec names it.

    Raises:
        RunError: There are such pictures.
    """


@check_pictures.register
def _(spec: EmbeddingTrainingSpec, pictures: Sequence[Picture], *, field: str) -> None:
    require_word(spec, pictures, field=field)


def sample_strength(spec: TrainingSpec, trainee: Trainee) -> AbstractContextManager[None]:
    """Let an adapter count in pictures for what the spec says; nothing else has a strength."""
    if isinstance(spec, LoraTrainingSpec) and isinstance(trainee, Adapter):
        return trainee.at_strength(spec.samples.lora_scale)
    return nullcontext()
