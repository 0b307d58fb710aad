"""Whether captions show the word that an embedding is trained for: from a picture whose caption lacks it, nothing is.

Neighbour: `prompts` finds the word; what it does not find here, no step would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from transformers import CLIPTokenizer

from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.failures import FailureReason
from darkroom_trainer.captions import lines_shown, whole
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.tokenizer import load_tokenizer
from darkroom_trainer.prompts import has_word, new_word, tokenize

_SHOWN: Final = 20
_OUTSIDE: Final = -1
"""No id of the vocabulary."""


def require_word(spec: EmbeddingTrainingSpec, pictures: Sequence[Picture], *, field: str) -> None:
    """Refuse pictures whose captions never show the word, or only behind the last token that is read.

    Args:
        spec: The training's spec.
        pictures: A set of them.
        field: Where the spec names it.

    Raises:
        RunError: There are such pictures; all are told at once.
    """
    token, tokenizer = spec.embedding.token, load_tokenizer()
    found = {caption: _problem(caption, spec, tokenizer) for caption in {picture.caption for picture in pictures}}
    problems = [f"{it.name}: {problem}" for it in pictures if (problem := found[it.caption])]
    if not problems:
        return
    more = f"\n… and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise RunError(
        FailureReason.DATASET_REJECTED,
        f"{field}: nothing of {token!r} (spec.embedding.token) can be learnt from {len(problems)} of {len(pictures)} "
        "pictures:\n" + "\n".join(problems[:_SHOWN]) + more,
        advice=f"Write {token!r} into these captions as a word of its own, or put it before all of them by "
        f"training.captions.prefix: '{token},'.",
    )


def _problem(caption: str, spec: EmbeddingTrainingSpec, tokenizer: CLIPTokenizer) -> str | None:
    """Return why no showing of a caption has the word, if none has."""
    token, captions, encoding = spec.embedding.token, spec.training.captions, spec.training.text_encoding
    around = [captions.prefix, captions.suffix]
    lines = [line for line in lines_shown(caption, captions) if any(has_word(it, token) for it in (line, *around))]
    if not lines:
        return f"its caption lacks the word: {caption.splitlines()[0][:60]!r}"
    words = {new_word(token): [_OUTSIDE] * spec.embedding.num_vectors}
    for line in lines:
        shown = whole(line, captions)
        read = tokenize(
            shown, tokenizer, maximum_tokens=encoding.maximum_tokens, weighted=encoding.weighted, words=words
        )
        if any(_OUTSIDE in chunk for chunk in read.ids) or not has_word(shown, token):  # another alternative has it
            return None
    return (
        f"its caption has the word, with its {spec.embedding.num_vectors} vectors, behind the "
        f"{encoding.maximum_tokens} tokens that are read"
    )
