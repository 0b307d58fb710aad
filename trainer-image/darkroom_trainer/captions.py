"""What a caption becomes each time its picture is shown: shuffled, or left out.

Text is encoded anew at every step, which costs less than one per cent of it, so both stay alive.
"""

from __future__ import annotations

import random

from darkroom_api.training import Captions


def present(caption: str, spec: Captions, rng: random.Random) -> str:
    """Return the caption as the model will see it this time; kohya's order: dropout, then shuffling."""
    if spec.dropout and rng.random() < spec.dropout:
        return ""
    if not spec.shuffle:
        return caption
    tags = split_tags(caption)
    kept, rest = tags[: spec.keep_tokens], tags[spec.keep_tokens :]
    rng.shuffle(rest)
    return ", ".join(kept + rest)


def split_tags(caption: str) -> list[str]:
    """Return the comma-separated tags of a caption."""
    return [tag for part in caption.split(",") if (tag := part.strip())]
