"""Which files of a folder in diffusers' layout a run needs, judged by their names and the folder's index alone.

No torch: a folder that will not do is refused before that is loaded. Neighbours: `fetching` asks the store,
`families.folders` makes one file of what was chosen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError

INDEX: Final = "model_index.json"
SCHEDULER: Final = "scheduler/scheduler_config.json"
_ONE_TEXT_ENCODER: Final = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
PIPELINES: Final[dict[str, dict[str, str]]] = {
    "StableDiffusionPipeline": _ONE_TEXT_ENCODER,
    "StableDiffusionXLPipeline": _ONE_TEXT_ENCODER | {"text_encoder_2": "CLIPTextModelWithProjection"},
}
"""The classes of a folder's parts that hold weights, by the class of the whole."""
_TEXT_STEMS: Final = {".safetensors": "model", ".bin": "pytorch_model"}
_OTHER_STEMS: Final = dict.fromkeys(_TEXT_STEMS, "diffusion_pytorch_model")
_VARIANTS: Final = ("", ".fp16")
"""Best first: what was rounded is only taken where there is nothing else."""
_SHARD: Final = r"-(?P<number>\d{5})-of-(?P<total>\d{5})"


def classes_of(index: bytes) -> dict[str, str]:
    """Return the parts of a folder with their classes, from its `model_index.json`.

    Raises:
        RunError: It is of another pipeline, or has parts of other classes; all of them are told at once.
    """
    try:
        content = json.loads(index)
        kind = str(content["_class_name"])
    except (ValueError, KeyError, TypeError) as error:
        raise _rejected(f"its {INDEX} cannot be read: {type(error).__name__} {error}") from error
    if kind not in PIPELINES:
        raise _rejected(f"it is a folder for {kind}; allowed: {' and '.join(PIPELINES)}")
    problems = [
        f"its {part} is {_shown(content.get(part))}; allowed: {wanted}"
        for part, wanted in PIPELINES[kind].items()
        if _class_of(content.get(part)) != wanted
    ]
    if problems:
        raise _rejected("\n".join(problems))
    return PIPELINES[kind]


def wanted_files(names: Collection[str], parts: Collection[str]) -> list[str]:
    """Choose the files that a run needs: configurations, and the best weights that there are of each part.

    Args:
        names: All files of the folder, as paths below it.
        parts: The parts that hold weights.

    Raises:
        RunError: Some are missing; all of them are told at once.
    """
    wanted = [INDEX, SCHEDULER, *(f"{part}/config.json" for part in parts)]
    missing = [name for name in wanted if name not in names]
    for part in parts:
        weights = next((found for found in _candidates(names, part) if found), [])
        wanted += weights
        if not weights:
            missing.append(f"{part}/{_stems(part)['.safetensors']}.safetensors, whole or in all its shards")
    if missing:
        raise _rejected(f"the folder lacks {'; '.join(missing)}")
    return wanted


def _candidates(names: Collection[str], part: str) -> Iterator[list[str]]:
    """Yield the weights of a part as one file or in shards, the best first; empty where there are none of a sort."""
    for variant in _VARIANTS:
        for suffix, stem in _stems(part).items():
            whole = f"{part}/{stem}{variant}{suffix}"
            yield [whole] if whole in names else _shards(names, f"{part}/{stem}", variant, suffix)


def _shards(names: Collection[str], stem: str, variant: str, suffix: str) -> list[str]:
    """Return all shards of a file of weights, or nothing; a variant is named before the number or behind it."""
    begin, middle, end = map(re.escape, (stem, variant, suffix))
    for pattern in (f"{begin}{middle}{_SHARD}{end}", f"{begin}{_SHARD}{middle}{end}"):
        sets: dict[int, list[str]] = {}
        for name in sorted(names):
            if match := re.fullmatch(pattern, name):
                sets.setdefault(int(match["total"]), []).append(name)
        if whole := [found for total, found in sorted(sets.items()) if len(found) == total]:
            return whole[0]
    return []


def _stems(part: str) -> dict[str, str]:
    return _TEXT_STEMS if part.startswith("text_encoder") else _OTHER_STEMS


def _class_of(entry: Any) -> str | None:
    """Return the class in an entry such as ["diffusers", "AutoencoderKL"]."""
    return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None


def _shown(entry: Any) -> str:
    return _class_of(entry) or "not there"


def _rejected(problem: str) -> RunError:
    return RunError(
        FailureReason.MODEL_REJECTED,
        problem,
        advice="Give a folder that `save_pretrained` of a text-to-image pipeline wrote, or a single file.",
    )
