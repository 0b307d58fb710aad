"""Read a folder of pictures, captions and masks and say where each file goes: kohya's layout, checked first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from darkroom_api.masks import MASK_ENDING
from darkroom_api.uris import check_key
from darkroom_cli.errors import UserError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
CAPTIONS = frozenset({".caption", ".txt"})
"""In lower case only: the trainer looks for exactly these."""
ALLOWED = ", ".join(sorted(PICTURES | CAPTIONS))
KOHYA_FOLDER = re.compile(r"^([1-9][0-9]*)_(.+)$")
SHOWN = 10
"""Files that a message names before it says how many more there are."""


@dataclass(frozen=True)
class Subject:
    """What the pictures show and how often each is trained: the name of their folder in kohya's layout."""

    repeats: int
    trigger: str
    class_name: str

    @property
    def folder(self) -> str:
        """Return ``20_sks robot``."""
        return f"{self.repeats}_{self.trigger} {self.class_name}".rstrip()


@dataclass(frozen=True)
class Upload:
    """A file and the key it gets, below the dataset's prefix."""

    path: Path
    key: str

    @property
    def is_picture(self) -> bool:
        return self.path.suffix.lower() in PICTURES and not _is_mask(self.path)

    @property
    def is_caption(self) -> bool:
        return self.path.suffix in CAPTIONS


def plan_uploads(folder: Path, subject: Subject | None) -> list[Upload]:
    """Return what to upload and where to.

    Args:
        folder: Either pictures and captions, or kohya's folders of such.
        subject: Names the one folder that loose pictures go to; None for kohya's folders, which keep their names.

    Raises:
        UserError: With every problem of the folder at once.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give the folder that holds the pictures")
    folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and KOHYA_FOLDER.match(entry.name))
    loose = list(_files(folder))
    if folders and loose:
        raise UserError(f"{folder}: pictures lie both loose and in {folders[0].name!r}; give one or the other")
    if folders and subject:
        raise UserError(
            f"{folder}: its folders say repeats and trigger already; leave out --repeats, --trigger, --class"
        )
    if not folders and not subject:
        raise UserError(f"{folder}: the pictures lie loose; give --trigger WORD (and --class, --repeats)")
    groups = [(entry.name, list(_files(entry))) for entry in folders] if folders else [(_name(subject), loose)]
    problems = [problem for _, files in groups for problem in _problems(files)]
    if problems:
        raise UserError(f"{folder}: nothing was uploaded:\n" + "\n".join(_shortened(problems)))
    uploads = [Upload(path, f"{name}/{path.name}") for name, files in groups for path in files]
    if not any(upload.is_picture for upload in uploads):
        raise UserError(f"{folder}: no pictures; give a folder with {', '.join(sorted(PICTURES))} files")
    return uploads


def without_caption(uploads: Sequence[Upload]) -> list[Path]:
    """Return the pictures that have no caption of their own."""
    captions = {PurePosixPath(upload.key).with_suffix("") for upload in uploads if upload.is_caption}
    return [
        upload.path
        for upload in uploads
        if upload.is_picture and PurePosixPath(upload.key).with_suffix("") not in captions
    ]


def _name(subject: Subject | None) -> str:
    assert subject, "loose pictures have a subject"
    return subject.folder


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files; hidden ones are the desktop's, not the person's."""
    yield from sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and entry.name != "Thumbs.db" and (entry.is_file() or entry.is_symlink())
    )


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(MASK_ENDING)


def _problems(files: Iterable[Path]) -> Iterator[str]:
    stems: dict[str, Path] = {}
    companions: dict[Path, tuple[str, str]] = {}
    for path in files:
        if path.suffix in CAPTIONS:
            companions[path] = "caption", path.stem
        elif _is_mask(path):
            companions[path] = "mask", path.name[: -len(MASK_ENDING)]
        elif path.suffix.lower() in PICTURES:
            if twin := stems.get(path.stem.lower()):
                yield f"  {path}: {twin.name} has the same name but for case or ending; their captions would collide"
            stems[path.stem.lower()] = path
        else:
            yield f"  {path}: {path.suffix or 'no ending'} is not allowed; give {ALLOWED}"
            continue
        yield from _file_problems(path)
    pictures = {picture.stem for picture in stems.values()}
    for path, (what, stem) in companions.items():
        if stem not in pictures:
            yield f"  {path}: a {what} without its picture; remove it or add the picture"


def _file_problems(path: Path) -> Iterator[str]:
    try:
        check_key(path.name)
        if path.stat().st_size == 0:
            yield f"  {path}: empty"
    except (ValueError, OSError) as error:
        yield f"  {path}: {error}"


def _shortened(problems: Sequence[str]) -> list[str]:
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"  and {more} more"] if more > 0 else [])]
