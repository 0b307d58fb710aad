"""Prompts as token ids: chunks of 75 tokens between the two marks, each token with a weight.

Longer prompts than CLIP's 75 tokens are read chunk by chunk, and weights are written as in A1111: ``(word:1.2)``,
``(word)`` for 1.1, ``[word]`` for 1/1.1, backslashes before brackets that are meant as such.

A new word stands for several ids (textual inversion), which stay together: where they do not fit into a chunk, they
begin the next one, as in A1111.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from transformers import CLIPTokenizer

NewWords = Mapping[str, Sequence[int]]
"""Words that the vocabulary lacks, each with the ids that it stands for."""

CHUNK: Final = 75
_ROUND: Final = 1.1
_SQUARE: Final = 1 / 1.1
_NO_WORDS: Final[NewWords] = MappingProxyType({})
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


def tokenize(
    text: str,
    tokenizer: CLIPTokenizer,
    *,
    maximum_tokens: int,
    weighted: bool = False,
    words: NewWords = _NO_WORDS,
) -> TokenizedPrompt:
    """Turn a prompt into chunks of ids; what is longer than the maximum is left out, a new word as a whole.

    Args:
        text: The prompt.
        tokenizer: The text encoder's.
        maximum_tokens: 75, 150 or 225; the number of chunks follows from it alone.
        weighted: Read brackets as weights, not as characters.
        words: New words.
    """
    chunks: list[list[tuple[int, float]]] = [[]]
    for piece, weight in parse_weights(text) if weighted else [(text, 1.0)]:
        for ids in _inseparable(piece, tokenizer, words):
            if len(chunks[-1]) + len(ids) > CHUNK:
                chunks.append([])
            chunks[-1] += [(it, weight) for it in ids]
    num_chunks = maximum_tokens // CHUNK
    chunks = [*chunks, *[[]] * num_chunks][:num_chunks]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return TokenizedPrompt(
        ids=[[start, *(it for it, _ in chunk), end, *[pad] * (CHUNK - len(chunk))] for chunk in chunks],
        weights=[[1.0, *(weight for _, weight in chunk), *[1.0] * (CHUNK + 1 - len(chunk))] for chunk in chunks],
    )


def _inseparable(text: str, tokenizer: CLIPTokenizer, words: NewWords) -> Iterator[Sequence[int]]:
    """Yield the ids of a text, those of a new word at once."""
    for part in _cut_at(words, text) if words else [text]:
        if (word := part.lower()) in words:
            yield words[word]
        elif part:
            found = tokenizer(part, add_special_tokens=False, truncation=False, verbose=False).input_ids
            yield from ([it] for it in found)


def new_word(word: str) -> str:
    """Return a word as `NewWords` has it: CLIP's vocabulary knows no capital letters."""
    return unicodedata.normalize("NFC", word).lower()


def has_word(text: str, word: str) -> bool:
    """Tell whether a new word stands in a text, as a word of its own."""
    return len(_cut_at([new_word(word)], text)) > 1


def _cut_at(words: Iterable[str], text: str) -> list[str]:
    """Cut a text before and after each new word; every second part is one."""
    return re.split("(" + "|".join(map(_pattern, words)) + ")", unicodedata.normalize("NFC", text), flags=re.IGNORECASE)


def _pattern(word: str) -> str:
    """Find a word where no letter and no digit is beside one of its own; punctuation may be, as CLIP splits there."""
    before = r"(?<![^\W_])" if word[0].isalnum() else ""
    after = r"(?![^\W_])" if word[-1].isalnum() else ""
    return f"{before}{re.escape(word)}{after}"


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
