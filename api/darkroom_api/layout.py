"""Where a run's objects lie below its output: pure functions from names to keys.

``<output.uri>/<name>-<run id>/`` holds ``plan.json``, ``checkpoints/``, ``samples/``, ``state/``, ``events/`` and
``index.json``. A directory exists only once its ``manifest.json``, written last, names its files; ``events/`` has none,
since TensorBoard takes one folder for one run: each of its files is an object of its own, there whole or not at all.
"""

from __future__ import annotations

from typing import Final

from darkroom_api.uris import S3Location

MANIFEST: Final = "manifest.json"
INDEX: Final = "index.json"


def run_prefix(output: S3Location, *, name: str, run: str) -> S3Location:
    """Return the prefix that a run writes below, and nowhere else."""
    return output.join(f"{name}-{run}")


def epoch_directory(kind: str, epoch: int) -> str:
    """Return ``checkpoints/epoch-000007`` or ``samples/epoch-000007``."""
    return f"{kind}/epoch-{epoch:06d}"


def checkpoint_directory(epoch: int) -> str:
    """Return the directory of an epoch's checkpoint, below the run's prefix."""
    return epoch_directory("checkpoints", epoch)


def samples_directory(epoch: int) -> str:
    """Return the directory of an epoch's sample pictures; epoch 0 is before training."""
    return epoch_directory("samples", epoch)


def regularization_directory(number: int) -> str:
    """Return the directory of a set of class pictures that the run painted, counted from 0."""
    return f"regularization/set-{number:06d}"


def state_directory(step: int) -> str:
    """Return the directory of the resume state after this many steps."""
    return f"state/step-{step:08d}"


EVENTS: Final = "events"
"""The folder, below the run's prefix, that TensorBoard reads as one run."""


def events_file(epoch: int) -> str:
    """Return the name of an epoch's event file: TensorBoard reads names with ``tfevents``, in their order."""
    return f"events.out.tfevents.{epoch:06d}"


def weights_file(name: str, *, epoch: int, suffix: str = ".safetensors") -> str:
    """Return the weights' file name after an epoch, as kohya's sd-scripts name it."""
    return f"{name}-{epoch:06d}{suffix}"


def final_weights_file(name: str, *, suffix: str = ".safetensors") -> str:
    """Return the name that the last epoch's weights have besides their numbered one, below the run's prefix."""
    return f"{name}{suffix}"


def sample_file(prompt: int, seed: int) -> str:
    """Return the name of the picture of the prompt at this index (from 0) with this seed."""
    return f"p{prompt}-s{seed}.png"
