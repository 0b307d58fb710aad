"""What a run does when a step does not fit into the device's memory: a ladder, climbed one rung at a time.

First the same mathematics with less at once, then the same with more arithmetic, and only if the spec allows it, less
resolution. Where the ladder stands is part of the state: a resumed run begins there, so it does the same sums.
Neighbours: `session` repeats the step, `reducing` makes buckets smaller, `fitting` is for what is not part of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from diffusers import UNet2DConditionModel

from darkroom_api.memory import Adaptation, OutOfMemory
from darkroom_api.training import Training
from darkroom_trainer.errors import RunError
from darkroom_trainer.hardware import out_of_memory
from darkroom_trainer.reducing import smaller_resolution

Rung = Callable[[Adaptation, Training, int], Adaptation | None]
"""Returns what to do next, of what is done already, the spec and how many pictures were passed through together; None
if this rung has nothing left to give."""


def _split(now: Adaptation, _training: Training, together: int) -> Adaptation | None:
    return now.model_copy(update={"micro_batch": -(-together // 2)}) if together > 1 else None


def _checkpoint(now: Adaptation, training: Training, _together: int) -> Adaptation | None:
    if training.gradient_checkpointing or now.gradient_checkpointing:
        return None
    return now.model_copy(update={"gradient_checkpointing": True})


def _reduce(now: Adaptation, training: Training, _together: int) -> Adaptation | None:
    resolution = smaller_resolution(training, now.resolution or training.resolution)
    return now.model_copy(update={"resolution": resolution}) if resolution else None


LADDERS: Final[dict[OutOfMemory, tuple[Rung, ...]]] = {
    "Fail": (),
    "SplitBatch": (_split,),
    "SplitBatchThenCheckpoint": (_split, _checkpoint),
    "ReduceResolution": (_split, _checkpoint, _reduce),
}
_WITHOUT_GRADIENT: Final = (_split,)
"""What helps where no activation is kept for a backward pass."""


def next_adaptation(now: Adaptation, training: Training, *, together: int, trains: bool = True) -> Adaptation | None:
    """Return what to do now that memory lacked; None if nothing is left that the spec allows.

    Args:
        now: What is done already.
        training: The spec.
        together: Pictures that passed through the model together at most.
        trains: Whether in a step, not in a validation.
    """
    rungs = [rung for rung in LADDERS[training.out_of_memory] if trains or rung in _WITHOUT_GRADIENT]
    return next((found for rung in rungs if (found := rung(now, training, together))), None)


def exhausted(place: str, lacking: str, now: Adaptation, training: Training) -> RunError:
    """Return the error that ends a run whose ladder has no rung left, with what was tried."""
    tried = told(now)
    said = f"{place}: {lacking}; training.outOfMemory {training.out_of_memory}: "
    return out_of_memory(
        said + (f"tried {', '.join(tried)}" if tried else "nothing was to be tried"), _advice(training)
    )


def told(adaptation: Adaptation) -> list[str]:
    """Return in words what a run does otherwise than its spec says."""
    return list(_words(adaptation))


def _words(adaptation: Adaptation) -> Iterator[str]:
    if adaptation.micro_batch:
        yield f"micro-batches of {adaptation.micro_batch}"
    if adaptation.gradient_checkpointing:
        yield "gradient checkpointing"
    if adaptation.resolution:
        yield f"resolution {adaptation.resolution}"
    if adaptation.tiled_latents:
        yield "pictures encoded in tiles"


def _advice(training: Training) -> str:
    allowed = {
        "Fail": "Set training.outOfMemory to SplitBatchThenCheckpoint",
        "SplitBatch": "Set training.outOfMemory to SplitBatchThenCheckpoint",
        "SplitBatchThenCheckpoint": "Allow less with training.outOfMemory ReduceResolution, lower training.resolution",
        "ReduceResolution": "Lower training.resolution",
    }[training.out_of_memory]
    half = "" if training.precision != "FP32" else ", set training.precision to BF16"
    return f"{allowed}{half}, or give a larger GPU."


def set_checkpointing(unet: UNet2DConditionModel, *, wanted: bool) -> None:
    """Let a UNet compute its activations twice, or hold them."""
    if wanted:
        unet.enable_gradient_checkpointing()
    elif unet.is_gradient_checkpointing:
        unet.disable_gradient_checkpointing()
    unet.train(wanted)  # diffusers heeds it in training mode only; no family has dropout that this would wake
