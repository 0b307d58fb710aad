"""``kubectl darkroom sheet``: all sample pictures of a run on one sheet.

A row for each prompt and seed, a column for each epoch: what was learned, and when too much, is seen at a glance. The
epoch of the least validation loss is marked, where one is known.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from darkroom_api.layout import MANIFEST, sample_file
from darkroom_api.samples import Samples
from darkroom_api.uris import S3Location
from darkroom_cli.errors import UserError
from darkroom_cli.store import Store, sha256

MAXIMUM_COLUMNS = 24
LARGEST_SIDE = 256
GAP = 6
LABEL_WIDTH = 190
HEADER_HEIGHT = 28
TEXT_SIZE = 14
INK, PAPER, MISSING, BEST = (20, 20, 20), (250, 250, 250), (225, 225, 225), (25, 125, 60)


@dataclass(frozen=True)
class Row:
    """A prompt with a seed: the pictures that may be compared."""

    prompt_index: int
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        return sample_file(self.prompt_index, self.seed)


Pictures = Mapping[tuple[int, str], Image.Image]
"""Pictures by epoch and file name."""


def rows_of(samples: Samples) -> list[Row]:
    """Return the rows of a sheet, in the order of the spec."""
    return [Row(index, prompt, seed) for index, prompt in enumerate(samples.prompts) for seed in samples.seeds]


def epochs_with_samples(prefix: S3Location, store: Store) -> list[int]:
    """Return the epochs whose samples lie complete in the store: those that have a manifest."""
    folder = prefix.join("samples")
    names = [key.removeprefix(f"{folder.key}/") for key in store.list(folder)]
    return sorted(
        int(name.split("/")[0].removeprefix("epoch-"))
        for name in names
        if name.endswith(f"/{MANIFEST}") and name.startswith("epoch-")
    )


def chosen(epochs: Sequence[int], maximum: int, *, best: int | None = None) -> list[int]:
    """Return at most so many epochs, evenly spread, the first and the last among them, and the best if it is there."""
    if len(epochs) <= maximum:
        return list(epochs)
    spread = [epochs[round(place * (len(epochs) - 1) / (maximum - 1))] for place in range(maximum)]
    if best is not None and best in epochs and best not in spread and len(spread) > 2:
        nearest = min(spread[1:-1], key=lambda epoch: abs(epoch - best))
        spread[spread.index(nearest)] = best
    return sorted(spread)


def download(prefix: S3Location, epochs: Sequence[int], *, store: Store) -> dict[tuple[int, str], Image.Image]:
    """Return every sample picture of these epochs that a manifest names, checked against its hash."""
    pictures = {}
    for epoch in epochs:
        directory = prefix.join(f"samples/epoch-{epoch:06d}")
        manifest = store.manifest(directory)
        for record in manifest.files if manifest else []:
            location = directory.join(record.name)
            data = store.read(location)
            if sha256(data) != record.sha256:
                raise UserError(
                    f"{location}: its content is not what {directory.join(MANIFEST)} says; was it replaced?"
                )
            pictures[epoch, record.name] = Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB")
    return pictures


def compose(rows: Sequence[Row], epochs: Sequence[int], *, pictures: Pictures, best: int | None = None) -> Image.Image:
    """Return the sheet; a picture that is missing leaves a grey place, and the best epoch has a frame."""
    width, height = _cell(pictures)
    font = ImageFont.load_default(TEXT_SIZE)
    sheet = Image.new(
        "RGB",
        (LABEL_WIDTH + len(epochs) * (width + GAP) + GAP, HEADER_HEIGHT + len(rows) * (height + GAP) + GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    for column, epoch in enumerate(epochs):
        title = "before" if epoch == 0 else f"epoch {epoch}"
        left = LABEL_WIDTH + GAP + column * (width + GAP)
        if epoch == best:
            draw.rectangle((left - GAP, 0, left + width + GAP - 1, sheet.height - 1), BEST)
        colour = PAPER if epoch == best else INK
        draw.text((left + width / 2, HEADER_HEIGHT / 2), title, colour, font=font, anchor="mm")
    for line, row in enumerate(rows):
        top = HEADER_HEIGHT + GAP + line * (height + GAP)
        draw.multiline_text((GAP, top), label(row, lines=max(2, height // (TEXT_SIZE + 4))), INK, font=font)
        for column, epoch in enumerate(epochs):
            place = (LABEL_WIDTH + GAP + column * (width + GAP), top)
            picture = pictures.get((epoch, row.file))
            if picture:
                sheet.paste(picture.resize((width, height)) if picture.size != (width, height) else picture, place)
            else:
                draw.rectangle((*place, place[0] + width - 1, place[1] + height - 1), MISSING)
    return sheet


def label(row: Row, *, lines: int) -> str:
    """Return a row's label: its prompt, wrapped and cut to fit, and its seed."""
    wrapped = textwrap.wrap(row.prompt or "(empty prompt)", 24, max_lines=lines - 1, placeholder=" …")
    return "\n".join([*wrapped, f"seed {row.seed}"])


def _cell(pictures: Pictures) -> tuple[int, int]:
    """Return the size of a place: that of the largest picture, its longer side at most LARGEST_SIDE."""
    width = max((picture.width for picture in pictures.values()), default=128)
    height = max((picture.height for picture in pictures.values()), default=128)
    scale = min(1.0, LARGEST_SIDE / max(width, height))
    return round(width * scale), round(height * scale)


def sheet(
    prefix: S3Location, samples: Samples, *, store: Store, best: int | None = None, maximum: int = MAXIMUM_COLUMNS
) -> Image.Image:
    """Download a run's samples and put them on one sheet, the best epoch marked.

    Raises:
        UserError: The run has none, or none yet.
    """
    if not samples.prompts:
        raise UserError("spec.samples.prompts is empty: this training paints no samples")
    epochs = chosen(epochs_with_samples(prefix, store), maximum, best=best)
    if not epochs:
        raise UserError(f"{prefix.join('samples')}: no samples yet; the first are painted before training begins")
    return compose(rows_of(samples), epochs, pictures=download(prefix, epochs, store=store), best=best)
