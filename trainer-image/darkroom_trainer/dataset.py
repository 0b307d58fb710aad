"""The pictures: kohya's folders (``20_trigger class``) with captions, looked through once before anything is trained.

Every picture is decoded here, so that a broken one is named in the first seconds and with all the others that are.
Neighbours: `buckets` and `batches` say how they are shown, `latents` what is kept of them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from darkroom_api.failures import FailureReason
from darkroom_api.masks import MASK_ENDING, Mask
from darkroom_trainer.decoding import RejectedError, check_picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.masking import SOURCES, is_mask

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
OTHER_PICTURES: Final = (".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jxl", ".jfif", ".svg", ".raw")
CAPTION_SUFFIXES: Final = (".txt", ".caption")
"""In order of preference; kohya's own default is the second."""
FOLDER: Final = re.compile(r"(?P<repeats>[0-9]+)_(?P<tokens>.*\S.*)")
MAXIMUM_REPEATS: Final = 10_000
MAXIMUM_CAPTION_BYTES: Final = 64 * 1024
_SHOWN_PROBLEMS: Final = 500
_MASKS: Final = {
    "Alpha": "; training.mask wants every picture to have transparency, but not all over",
    "File": f"; training.mask wants beside every picture a mask of its size, such as 'x{MASK_ENDING}' for 'x.jpg'",
}
_MAXIMUM_THREADS: Final = 8


@dataclass(frozen=True)
class Picture:
    """A picture with its caption."""

    path: Path
    name: str
    """Folder and file, for messages."""
    folder: str
    size: tuple[int, int]
    """Width and height as seen upright."""
    caption: str
    """One line or several, of which `captions` takes one."""
    repeats: int
    sha256: str
    mask_sha256: str | None = None
    """Of the file that its mask is read from; None: all of it counts."""


def _go_on() -> None:
    """Do nothing."""


def scan(
    directory: Path,
    *,
    field: str = "spec.dataset.uri",
    mask: Mask | None = None,
    before_picture: Callable[[], None] = _go_on,
) -> list[Picture]:
    """Return all pictures below a directory, sorted by name.

    Args:
        directory: Holds the folders.
        field: Where the spec names them, for messages.
        mask: Which mask each picture must have, if any.
        before_picture: Called before each picture, by several threads; may raise to give up.

    Raises:
        RunError: Something is wrong with the layout, pictures, captions or masks; everything is told at once.
    """
    problems: list[str] = []
    folders = [it for it in sorted(directory.iterdir()) if it.is_dir() and not it.name.startswith(".")]
    candidates = [(path, *parsed) for folder in folders for path, *parsed in _pictures_of(folder, problems)]
    problems += [f"{path.name}: lies outside a folder" for path in _pictures_in(directory)]

    def inspect(candidate: tuple[Path, int, str]) -> Picture | str:
        before_picture()
        return _inspect(*candidate, mask=mask)

    # The node's processors are not the pod's; each thread holds a decoded picture.
    with ThreadPoolExecutor(min(_MAXIMUM_THREADS, len(os.sched_getaffinity(0))), "inspect") as pool:
        found = list(pool.map(inspect, candidates))
    problems += [it for it in found if isinstance(it, str)]
    pictures = [it for it in found if isinstance(it, Picture)]
    if not problems and not pictures:
        names = ", ".join(repr(folder.name) for folder in folders) or "no folder"
        problems.append(f"there is no picture; found {names}")
    if problems:
        raise _refusal(problems, field, mask)
    return pictures


def _pictures_of(folder: Path, problems: list[str]) -> list[tuple[Path, int, str]]:
    """Return a folder's pictures with its repeats and class tokens; what is wrong with the folder goes to problems."""
    paths = _pictures_in(folder)
    problems += [
        f"{folder.name}/{path.name}: {path.suffix.lower()} is not allowed"
        for path in _visible(folder)
        if path.suffix.lower() in OTHER_PICTURES
    ]
    match = FOLDER.fullmatch(folder.name)
    if not match:
        if paths:
            problems.append(f"{folder.name}/: {len(paths)} pictures in a folder that is not named REPEATS_NAME")
        return []
    repeats = int(match["repeats"])
    if not 1 <= repeats <= MAXIMUM_REPEATS:
        problems.append(f"{folder.name}/: {repeats} repeats; 1 to {MAXIMUM_REPEATS} are allowed")
        return []
    if not paths:
        problems.append(f"{folder.name}/: no picture in it")
    return [(path, repeats, tokens_of(folder.name)) for path in paths]


def tokens_of(folder: str) -> str:
    """Return the words in a folder's name: the caption of its pictures that have none of their own."""
    match = FOLDER.fullmatch(folder)
    return match["tokens"].strip() if match else ""


def _visible(folder: Path) -> Iterable[Path]:
    """Return a folder's files; hidden ones are left out, such as those that macOS puts beside pictures."""
    return (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))


def _pictures_in(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.suffix.lower() in SUFFIXES and not is_mask(path)]


def _inspect(path: Path, repeats: int, tokens: str, *, mask: Mask | None) -> Picture | str:
    """Return the picture, or what is wrong with it, its caption or its mask."""
    name = f"{path.parent.name}/{path.name}"
    try:
        caption = read_caption(path) or tokens
        data = path.read_bytes()
        size = check_picture(data)
        mask_sha256 = SOURCES[mask.source].inspect(path, size) if mask else None
    except RejectedError as problem:
        return f"{name}: {problem}"
    sha256 = hashlib.sha256(data).hexdigest()
    return Picture(path, name, path.parent.name, size, caption, repeats, sha256, mask_sha256)


def describe(path: Path, *, caption: str) -> Picture:
    """Return a picture that was made here, which needs no inspection."""
    data = path.read_bytes()
    name = f"{path.parent.name}/{path.name}"
    return Picture(path, name, path.parent.name, check_picture(data), caption, 1, hashlib.sha256(data).hexdigest())


def read_caption(picture: Path) -> str | None:
    """Return a picture's caption without empty lines; None without a caption file.

    Raises:
        RejectedError: The file is empty or no text.
    """
    for suffix in CAPTION_SUFFIXES:
        path = picture.with_suffix(suffix)
        if not path.is_file():
            continue
        if path.stat().st_size > MAXIMUM_CAPTION_BYTES:
            raise RejectedError(
                f"its caption {path.name} has {path.stat().st_size} bytes; at most {MAXIMUM_CAPTION_BYTES}"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise RejectedError(f"its caption {path.name} is not UTF-8 text") from error
        text = "\n".join(line for it in lines if (line := it.strip()))
        if not text or "\0" in text:
            raise RejectedError(f"its caption {path.name} is empty")
        return text
    return None


def _refusal(problems: list[str], field: str, mask: Mask | None) -> RunError:
    """Name everything that is wrong; what is allowed comes first, since the status keeps only so many characters."""
    more = f"\n… and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return RunError(
        FailureReason.DATASET_REJECTED,
        f"{field}: {len(problems)} problem{'s'[: len(problems) > 1]}. Allowed: folders named REPEATS_NAME, "
        "such as '20_sks robot', with pictures (.jpg, .jpeg, .png, .webp) and captions of the same name "
        f"(.txt, not empty){_MASKS[mask.source] if mask else ''}. Found:\n"
        + "\n".join(problems[:_SHOWN_PROBLEMS])
        + more,
    )
