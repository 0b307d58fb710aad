"""``kubectl darkroom push``: pictures and captions of a folder into the store, in kohya's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from darkroom_api.uris import S3Location
from darkroom_cli.errors import UserError
from darkroom_cli.pictures import SHOWN, Subject, Upload, plan_uploads, without_caption
from darkroom_cli.store import Entry, Store
from darkroom_cli.text import count, size_text

WORKERS = 8
"""Uploads at a time: pictures are small, so a connection mostly waits."""


def push(folder: Path, dataset: S3Location, *, subject: Subject | None, store: Store, console: Console) -> None:
    """Upload a folder below the dataset's prefix; a second call uploads only what is new.

    Raises:
        UserError: Something in the folder is not allowed, or the store holds other content under one of the keys.
    """
    uploads = plan_uploads(folder, subject)
    present = store.list(dataset)
    keys = {dataset.join(upload.key).key for upload in uploads}
    known = [upload for upload in uploads if dataset.join(upload.key).key in present]
    new = [upload for upload in uploads if dataset.join(upload.key).key not in present]
    _refuse_differences(known, dataset, present=present, store=store, console=console)
    _upload(new, dataset, store=store, console=console)
    pictures = sum(upload.is_picture for upload in uploads)
    captions = sum(upload.is_caption for upload in uploads)
    masks = len(uploads) - pictures - captions
    also = f", {count(masks, 'mask')}" if masks else ""
    already = f"; {count(len(known), 'file')} were there already" if known else ""
    console.print(
        f"{count(pictures, 'picture')} and {count(captions, 'caption')}{also} lie in {dataset}{already}",
        highlight=False,
    )
    _mention(without_caption(uploads), extra=sorted(set(present) - keys), console=console)
    console.print(f"use them with spec.dataset.uri: {dataset}", highlight=False, soft_wrap=True)


def _refuse_differences(
    known: Sequence[Upload], dataset: S3Location, *, present: Mapping[str, Entry], store: Store, console: Console
) -> None:
    def differs(upload: Upload) -> bool:
        location = dataset.join(upload.key)
        return not store.holds(location, present[location.key], upload.path.read_bytes())

    different = []
    with _progress("comparing", console) as progress, ThreadPoolExecutor(WORKERS) as pool:
        task = progress.add_task("compare", total=_total_size(known))
        for upload, is_other in zip(known, pool.map(differs, known), strict=True):
            progress.advance(task, upload.path.stat().st_size)
            if is_other:
                different.append(upload)
    if different:
        raise _taken(different, dataset)


def _progress(doing: str, console: Console) -> Progress:
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _total_size(uploads: Sequence[Upload]) -> int:
    return sum(upload.path.stat().st_size for upload in uploads)


def _taken(different: Sequence[Upload], dataset: S3Location) -> UserError:
    shown = "\n".join(f"  {upload.path} -> {dataset.join(upload.key)}" for upload in different[:SHOWN])
    more = f"\n  and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return UserError(
        f"{dataset}: {count(len(different), 'file')} there with other content; nothing is ever overwritten. "
        f"Push under another NAME, or delete these objects first:\n{shown}{more}"
    )


def _upload(uploads: Sequence[Upload], dataset: S3Location, *, store: Store, console: Console) -> None:
    total = _total_size(uploads)

    def send(upload: Upload) -> tuple[Upload, bool]:
        return upload, store.create(dataset.join(upload.key), upload.path.read_bytes())

    with _progress("uploading", console) as progress, ThreadPoolExecutor(WORKERS) as pool:
        task = progress.add_task("upload", total=total)
        taken = []
        for upload, written in pool.map(send, uploads):
            progress.advance(task, upload.path.stat().st_size)
            if not written:  # somebody else wrote the key since we looked
                taken.append(upload)
    if taken:
        raise _taken(taken, dataset)
    if uploads:
        console.print(f"uploaded {count(len(uploads), 'file')}, {size_text(total)}", highlight=False)


def _mention(bare: Sequence[Path], *, extra: Sequence[str], console: Console) -> None:
    """Tell what is allowed but may not be meant."""
    if bare:
        console.print(
            f"note: {_named(path.name for path in bare)} without a caption: the folder's name is taken instead"
        )
    if extra:
        console.print(f"note: the dataset also holds {_named(extra)} from earlier; the training will see that too")


def _named(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
