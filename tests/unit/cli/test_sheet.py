"""The contact sheet: every picture in its row and column, labels beside them, nothing invented."""

from __future__ import annotations

import pytest
from PIL import Image

from darkroom_api.samples import Samples
from darkroom_cli.sheet import (
    BEST,
    GAP,
    HEADER_HEIGHT,
    LABEL_WIDTH,
    MISSING,
    PAPER,
    Row,
    chosen,
    compose,
    label,
    rows_of,
)

SIZE = (64, 48)


def colour(epoch: int, row: int) -> tuple[int, int, int]:
    return (epoch * 20, row * 50, 99)


def test_every_picture_stands_in_its_row_and_column() -> None:
    rows = rows_of(Samples(prompts=["a robot", "a cat"], seeds=[1, 7]))
    assert [row.file for row in rows] == ["p0-s1.png", "p0-s7.png", "p1-s1.png", "p1-s7.png"]
    pictures = {
        (epoch, row.file): Image.new("RGB", SIZE, colour(epoch, line))
        for epoch in (0, 1, 2)
        for line, row in enumerate(rows)
    }
    del pictures[2, "p1-s7.png"]
    result = compose(rows, [0, 1, 2], pictures=pictures)
    for column, epoch in enumerate((0, 1, 2)):
        for line, row in enumerate(rows):
            middle = (
                LABEL_WIDTH + GAP + column * (SIZE[0] + GAP) + SIZE[0] // 2,
                HEADER_HEIGHT + GAP + line * (SIZE[1] + GAP) + SIZE[1] // 2,
            )
            expected = colour(epoch, line) if (epoch, row.file) in pictures else MISSING
            assert result.getpixel(middle) == expected


def test_the_best_epochs_column_has_a_frame_and_no_other() -> None:
    rows = [Row(0, "a robot", 1)]
    pictures = {(epoch, "p0-s1.png"): Image.new("RGB", SIZE, colour(epoch, 0)) for epoch in (0, 1, 2)}
    result = compose(rows, [0, 1, 2], pictures=pictures, best=1)
    plain = compose(rows, [0, 1, 2], pictures=pictures)
    for column, epoch in enumerate((0, 1, 2)):
        left = LABEL_WIDTH + GAP + column * (SIZE[0] + GAP)
        assert result.getpixel((left + 2, 2)) == (BEST if epoch == 1 else PAPER)
        assert result.getpixel((left + 5, HEADER_HEIGHT + GAP + 5)) == colour(epoch, 0)
        assert plain.getpixel((left + 2, 2)) == PAPER
    assert result.getpixel((LABEL_WIDTH + GAP + SIZE[0] + GAP - 2, result.height - 2)) == BEST
    assert result.size == plain.size


def test_titles_and_labels_are_written() -> None:
    blank = compose([Row(0, "", 1)], [0], pictures={(0, "p0-s1.png"): Image.new("RGB", SIZE)})
    dark = [
        sum(1 for pixel in part.convert("L").tobytes() if pixel < 128)
        for part in (
            blank.crop((LABEL_WIDTH, 0, blank.width, HEADER_HEIGHT)),
            blank.crop((0, HEADER_HEIGHT, LABEL_WIDTH, blank.height)),
        )
    ]
    assert min(dark) > 20


def test_large_pictures_are_made_smaller_in_proportion() -> None:
    result = compose([Row(0, "x", 1)], [0], pictures={(0, "p0-s1.png"): Image.new("RGB", (1024, 512))})
    assert result.size == (LABEL_WIDTH + 256 + 2 * GAP, HEADER_HEIGHT + 128 + 2 * GAP)


def test_a_long_prompt_is_cut_to_its_row() -> None:
    assert label(Row(0, "word " * 100, 3), lines=4).count("\n") == 3
    assert label(Row(0, "word " * 100, 3), lines=4).endswith("…\nseed 3")


@pytest.mark.parametrize(
    ("epochs", "maximum", "expected"),
    [
        (range(11), 24, list(range(11))),
        (range(101), 5, [0, 25, 50, 75, 100]),
        ([0, 3, 6, 9], 2, [0, 9]),
    ],
)
def test_too_many_epochs_are_thinned_evenly(epochs: list[int], maximum: int, expected: list[int]) -> None:
    assert chosen(list(epochs), maximum) == expected


@pytest.mark.parametrize(
    ("maximum", "best", "expected"),
    [
        (5, 60, [0, 25, 60, 75, 100]),
        (5, 3, [0, 3, 50, 75, 100]),
        (5, 75, [0, 25, 50, 75, 100]),
        (5, 100, [0, 25, 50, 75, 100]),
        (5, 101, [0, 25, 50, 75, 100]),
        (2, 60, [0, 100]),
    ],
)
def test_the_best_epoch_is_not_thinned_out(maximum: int, best: int, expected: list[int]) -> None:
    assert chosen(list(range(101)), maximum, best=best) == expected
