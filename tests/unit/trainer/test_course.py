"""Which pictures are shown when, and with which caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.training import Training
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.randomness import derive, noise_source


def picture(index: int, size: tuple[int, int] = (512, 512), repeats: int = 1) -> Picture:
    name = f"{repeats}_x/{index}.png"
    return Picture(Path(name), name, f"{repeats}_x", size, f"a, b, {index}", repeats, f"{index:064x}")


def course(pictures: list[Picture], **training: Any) -> Course:
    return arrange(pictures, Training.model_validate(training))


def test_steps_follow_from_buckets() -> None:
    """A short batch at the end of each bucket is a step of its own."""
    pictures = [picture(1, repeats=5), picture(2, (768, 384), repeats=4), picture(3, (384, 768), repeats=1)]
    run = course(pictures, batchSize=3, epochs=7)
    assert run.steps_per_epoch == 2 + 2 + 1
    assert run.total_steps == 35
    assert run.plan.images == 3
    assert sorted(bucket.images for bucket in run.plan.buckets) == [1, 4, 5]


@given(
    st.lists(st.tuples(st.integers(64, 2000), st.integers(64, 2000), st.integers(1, 4)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_an_epoch_shows_each_picture_as_often_as_it_is_repeated(
    shapes: list[tuple[int, int, int]], batch_size: int
) -> None:
    pictures = [picture(index, (w, h), n) for index, (w, h, n) in enumerate(shapes)]
    run = course(pictures, batchSize=batch_size, epochs=2)
    for epoch in range(2):
        steps = range(epoch * run.steps_per_epoch, (epoch + 1) * run.steps_per_epoch)
        batches = [run.window(step)[0] for step in steps]
        assert all(len({item.placement.bucket for item in batch}) == 1 for batch in batches)
        shown = Counter(item.picture.name for batch in batches for item in batch)
        assert shown == Counter({it.name: it.repeats for it in pictures})


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    pictures = [picture(index, repeats=3) for index in range(8)]
    run, again = course(pictures, epochs=3), course(pictures, epochs=3)
    total = range(run.total_steps)
    straight = [run.window(step)[0] for step in total]
    assert [again.window(step)[0] for step in reversed(total)] == straight[::-1]
    assert straight[:24] != straight[24:48]
    assert [course(pictures, seed=1).window(step)[0] for step in range(24)] != straight[:24]


@given(
    st.lists(st.tuples(st.integers(64, 2000), st.integers(64, 2000), st.integers(1, 4)), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_accumulation_gathers_an_epochs_batches_in_order_and_never_two_epochs(
    shapes: list[tuple[int, int, int]], batch_size: int, accumulation: int
) -> None:
    pictures = [picture(index, (w, h), n) for index, (w, h, n) in enumerate(shapes)]
    plain = course(pictures, batchSize=batch_size, epochs=2)
    run = course(pictures, batchSize=batch_size, epochs=2, gradientAccumulation=accumulation)
    assert run.batches_per_epoch == plain.steps_per_epoch
    assert run.plan.steps_per_epoch == run.steps_per_epoch == -(-plain.steps_per_epoch // accumulation)
    for epoch in range(2):
        windows = [run.window(epoch * run.steps_per_epoch + index) for index in range(run.steps_per_epoch)]
        assert [batch for window in windows for batch in window] == plain.order(epoch)
        assert all(len(window) == accumulation for window in windows[:-1])
        assert 1 <= len(windows[-1]) <= accumulation


def test_a_changed_caption_changes_the_fingerprint() -> None:
    pictures = [picture(1), picture(2)]
    assert course(pictures).fingerprint == course(pictures).fingerprint
    changed = [picture(1), Picture(Path("x"), "1_x/2.png", "1_x", (512, 512), "other", 1, f"{2:064x}")]
    assert course(changed).fingerprint != course(pictures).fingerprint


def test_pictures_too_small_for_a_bucket_are_all_named() -> None:
    small = [picture(1, (40, 500)), picture(2), picture(3, (500, 63))]
    with pytest.raises(RunError, match=r"2 pictures are smaller(?s:.*)1_x/1.png: 40x500(?s:.*)1_x/3.png: 500x63"):
        course(small, buckets={"upscale": False})


def test_random_numbers_depend_on_their_purpose() -> None:
    assert derive(1, "noise", 2) == derive(1, "noise", 2)
    assert len({derive(1, "noise", 2), derive(1, "noise", 3), derive(1, "captions", 2), derive(2, "noise", 2)}) == 4
    assert noise_source(1, "a").initial_seed() != noise_source(2, "a").initial_seed()
