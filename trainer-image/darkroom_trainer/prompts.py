"""Prompts as token ids: chunks of 75 tokens between the two marks, each token with a weight.

Longer prompts than CLIP's 75 tokens are read chunk by chunk, and weights are written as in A1111: ``(word:1.2)``,
``(word)`` for 1.1, ``[word]`` for 1/1.1, backslashes before brackets that are meant as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from transformers import CLIPTokenizer

CHUNK: Final = 75
_ROUND: Final = 1.1
_SQUARE: Final = 1 / 1.1
_PIECES: Final = re.compile(r"\\[()\[\]\\]|[\\()\[\]]|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)|[^\\()\[\]:]+|:")


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt's chunks, all of 77 ids, and the weight of each id."""

    ids: list[list[int]]
    weights: list[list[float]]

    @property
    def is_weighted(self) -> bool:
        """Tell whether any token counts more or less than the others."""
        return any(weight != 1.0 for chunk in self.weights for weight in chunk)


def tokenize(text: str, tokenizer: CLIPTokenizer, *, maximum_tokens: int, weighted: bool = False) -> TokenizedPrompt:
    """Turn a prompt into chunks of ids; what is longer than the maximum is left out.

    Args:
        text: The prompt.
        tokenizer: The text encoder's.
        maximum_tokens: 75, 150 or 225; the number of chunks follows from it alone.
        weighted: Read brackets as weights, not as characters.
    """
    ids: list[int] = []
    weights: list[float] = []
    for piece, weight in parse_weights(text) if weighted else [(text, 1.0)]:
        found = tokenizer(piece, add_special_tokens=False, truncation=False, verbose=False).input_ids
        ids += found
        weights += [weight] * len(found)
    ids, weights = ids[:maximum_tokens], weights[:maximum_tokens]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    chunks, chunk_weights = [], []
    for first in range(0, maximum_tokens, CHUNK):
        inside, rest = ids[first : first + CHUNK], CHUNK - len(ids[first : first + CHUNK])
        chunks.append([start, *inside, end, *[pad] * rest])
        chunk_weights.append([1.0, *weights[first : first + CHUNK], *[1.0] * (rest + 1)])
    return TokenizedPrompt(chunks, chunk_weights)


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Return the pieces of a prompt with their weights, brackets taken out; unclosed brackets count to the end."""
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []

    def multiply(since: int, factor: float) -> None:
        pieces[since:] = [(piece, weight * factor) for piece, weight in pieces[since:]]

    for match in _PIECES.finditer(text):
        piece = match.group()
        if piece in {"(", "["}:
            opened.append((piece, len(pieces)))
        elif piece.startswith(":") and piece.endswith(")") and opened and opened[-1][0] == "(":
            multiply(opened.pop()[1], float(piece[1:-1]))
        elif piece == ")" and opened and opened[-1][0] == "(":
            multiply(opened.pop()[1], _ROUND)
        elif piece == "]" and opened and opened[-1][0] == "[":
            multiply(opened.pop()[1], _SQUARE)
        else:
            pieces.append((piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece, 1.0))
    for bracket, since in reversed(opened):
        multiply(since, _ROUND if bracket == "(" else _SQUARE)
    return _joined(pieces)


def _joined(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Join neighbours of one weight, so that no word is cut at a bracket that means nothing."""
    joined: list[tuple[str, float]] = []
    for piece, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + piece, weight)
        else:
            joined.append((piece, weight))
    return joined
