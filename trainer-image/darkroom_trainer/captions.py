"""What a caption becomes each time its picture is shown: shuffled, left out, filled in.

The rules are those of `process_caption` in kohya-ss/sd-scripts, down to the order in which random numbers are drawn.
They differ where kohya's would lose something: prefix and suffix go to every line of a caption, empty tags do not
count, and `keepTokensSeparator` is taken out of a caption also where its tags stay in place.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import chain
from typing import Final

from darkroom_api.captions import Captions

_ALTERNATIVES: Final = re.compile(r"\{([^}]+)\}")
_LITERAL_BRACES: Final = {"{{": ("\0(", "{"), "}}": ("\0)", "}")}
"""Each with what stands for it meanwhile (no caption holds a NUL) and what it becomes."""


def present(caption: str, spec: Captions, rng: random.Random, *, epoch: int) -> str:
    """Return a caption as the model will see it this time.

    Args:
        caption: All of its lines, as `dataset.read_caption` returns them.
        spec: What may become of it.
        rng: The generator of this showing.
        epoch: From 1.
    """
    is_dropped = spec.dropout > 0 and rng.random() < spec.dropout
    if is_dropped or (spec.dropout_every_epochs and epoch % spec.dropout_every_epochs == 0):
        return ""
    lines = _whole_lines(caption, spec)
    line = rng.choice(lines) if len(lines) > 1 else lines[0]
    line = _fill_in(line, rng.choice) if spec.wildcards else line
    if not _falls_into_tags(line, spec):
        return line
    first, free, last = _divide(line, spec)
    if spec.shuffle:
        rng.shuffle(free)
    if spec.tag_dropout:
        free = [tag for tag in free if rng.random() >= spec.tag_dropout]
    return ", ".join(first + free + last)


def whole(caption: str, spec: Captions) -> str:
    """Return a caption as validation sees it, always the same: the first line, first alternatives, and every tag."""
    line = _whole_lines(caption, spec)[0]
    line = _fill_in(line, lambda alternatives: alternatives[0]) if spec.wildcards else line
    return ", ".join(chain(*_divide(line, spec))) if _falls_into_tags(line, spec) else line


def all_presented(caption: str, spec: Captions) -> list[str] | None:
    """Return everything that `present` may make of a caption; None if chance makes too many to list them."""
    lines = _whole_lines(caption, spec)
    choices: list[int] = []

    def first(alternatives: list[str]) -> str:
        choices.append(len(set(alternatives)))
        return alternatives[0]

    filled = [_fill_in(line, first) for line in lines] if spec.wildcards else lines
    if spec.shuffle or spec.tag_dropout or max(choices, default=1) > 1:
        return None
    shown = [", ".join(chain(*_divide(line, spec))) if _falls_into_tags(line, spec) else line for line in filled]
    return [*shown, ""] if spec.dropout or spec.dropout_every_epochs else shown


def without_ends(spec: Captions) -> Captions:
    """Return the same rules without prefix and suffix."""
    return spec.model_copy(update={"prefix": "", "suffix": ""})


def lines_shown(caption: str, spec: Captions) -> list[str]:
    """Return the lines of a caption that have a chance to be seen."""
    lines = caption.split("\n")
    return lines if spec.several == "Random" else lines[:1]


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """Return the tags of a caption."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def _whole_lines(caption: str, spec: Captions) -> list[str]:
    before, after = f"{spec.prefix} " if spec.prefix else "", f" {spec.suffix}" if spec.suffix else ""
    return [f"{before}{line}{after}" for line in lines_shown(caption, spec)]


def _fill_in(line: str, pick: Callable[[list[str]], str]) -> str:
    for braces, (stand_in, _) in _LITERAL_BRACES.items():
        line = line.replace(braces, stand_in)
    line = _ALTERNATIVES.sub(lambda found: pick(found[1].split("|")), line)
    for stand_in, brace in _LITERAL_BRACES.values():
        line = line.replace(stand_in, brace)
    return line


def _falls_into_tags(line: str, spec: Captions) -> bool:
    return spec.shuffle or spec.tag_dropout > 0 or _has_kept_part(line, spec)


def _has_kept_part(line: str, spec: Captions) -> bool:
    return spec.keep_tokens_separator is not None and spec.keep_tokens_separator in line


def _divide(line: str, spec: Captions) -> tuple[list[str], list[str], list[str]]:
    """Return the tags that stay in front, those that may be shuffled and left out, and those that stay behind."""
    if _has_kept_part(line, spec):
        first, free, *last = (split_tags(part, spec.separator) for part in line.split(spec.keep_tokens_separator, 2))
        return first, free, last[0] if last else []
    tags = split_tags(line, spec.separator)
    return tags[: spec.keep_tokens], tags[spec.keep_tokens :], []
