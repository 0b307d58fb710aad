"""Pictures that are held out are chosen by content and seed, and none of their copies is trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.training import Training
from darkroom_api.validation import Validation
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.holding_out import each_once, hold_out


def picture(content: int, *, name: str = "", repeats: int = 1) -> Picture:
    name = name or f"{repeats}_x/{content}.png"
    return Picture(Path(name), name, f"{repeats}_x", (512, 512), f"a, b, {content}", repeats, f"{content:064x}")


def course(pictures: list[Picture], *, images: int, **training: Any) -> Course:
    return arrange(pictures, Training.model_validate(training), validation=Validation(images=images))


def contents(pictures: list[Picture]) -> set[str]:
    return {it.sha256 for it in pictures}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=2, max_size=16),
    st.integers(1, 5),
    st.integers(0, 99),
    st.integers(1, 4),
)
def test_held_out_pictures_and_their_copies_appear_in_no_batch(
    drawn: list[tuple[int, int]], images: int, seed: int, batch_size: int
) -> None:
    """Among the drawn are copies of one content in several folders, with repeats of their own."""
    pictures = [
        picture(content, name=f"{index}/{content}.png", repeats=repeats)
        for index, (content, repeats) in enumerate(drawn)
    ]
    if images >= len(contents(pictures)):
        with pytest.raises(RunError, match="at least 1 must be left"):
            course(pictures, images=images, seed=seed)
        return
    run = course(pictures, images=images, seed=seed, epochs=2, batchSize=batch_size)
    shown = [item.picture for step in range(run.total_steps) for batch in run.window(step) for item in batch]
    held = contents([item.picture for item in run.validation])
    assert len(run.validation) == len(held) == images == run.plan.validation_images
    assert not held & contents(shown)
    assert held | contents(shown) == contents(pictures)
    assert len(shown) == 2 * sum(it.repeats for it in pictures if it.sha256 not in held)


def test_the_seed_chooses_and_names_do_not() -> None:
    pictures = [picture(content) for content in range(20)]
    renamed = [dataclasses.replace(it, name=f"z{it.name}") for it in reversed(pictures)]
    one = hold_out(pictures, 4, seed=1)
    assert hold_out(renamed, 4, seed=1) == one
    assert {hold_out(pictures, 4, seed=seed) for seed in range(9)} != {one}
    assert hold_out(pictures, 3, seed=1) < one
    assert len(hold_out([*pictures, picture(20)], 4, seed=1) & one) >= 3


def test_too_many_are_refused_with_counts() -> None:
    pictures = [picture(1), picture(1, name="copy"), picture(2)]
    with pytest.raises(RunError, match=r"2 pictures are to be held out, but .* 2 different ones in 3 files") as caught:
        course(pictures, images=2)
    assert "at most 1" in caught.value.advice
    with pytest.raises(RunError) as caught:
        course(pictures[:2], images=1)
    assert caught.value.advice.startswith("Give more pictures")


def test_a_dataset_of_its_own_leaves_the_other_whole() -> None:
    spec = Validation.model_validate({"dataset": {"uri": "s3://abc/v"}})
    others = [picture(7, repeats=5), picture(6), picture(7, name="copy")]
    run = arrange([picture(1), picture(2)], Training(), validation=spec, others=others)
    assert [item.picture.sha256[-1] for item in run.items] == ["1", "2"]
    assert [item.picture.sha256[-1] for item in run.validation] == ["6", "7"]
    assert run.steps_per_epoch == 2


def test_a_picture_that_is_trained_on_may_not_judge() -> None:
    spec = Validation.model_validate({"dataset": {"uri": "s3://abc/v"}})
    others = [picture(1, name="v/same.png"), picture(3)]
    with pytest.raises(RunError, match=r"spec.validation.dataset.uri: 1 of 2 pictures are .*trained on:\nv/same.png"):
        arrange([picture(1), picture(2)], Training(), validation=spec, others=others)


def test_validation_pictures_too_small_are_named_by_their_field() -> None:
    spec = Validation.model_validate({"dataset": {"uri": "s3://abc/v"}})
    small = dataclasses.replace(picture(3), size=(40, 500))
    training = Training.model_validate({"buckets": {"upscale": False}})
    with pytest.raises(RunError, match=r"spec.validation.dataset.uri: 1 pictures are smaller(?s:.*)1_x/3.png"):
        arrange([picture(1)], training, validation=spec, others=[small])


def test_other_validation_pictures_or_captions_change_the_fingerprint() -> None:
    spec = Validation.model_validate({"dataset": {"uri": "s3://abc/v"}})

    def fingerprint(*others: Picture) -> str:
        return arrange([picture(1)], Training(), validation=spec, others=others).fingerprint

    same = fingerprint(picture(2), picture(3))
    assert fingerprint(picture(3), picture(2, name="renamed")) == same
    assert fingerprint(picture(2)) != same
    assert fingerprint(picture(2), dataclasses.replace(picture(3), caption="other")) != same


def test_each_content_is_looked_at_once() -> None:
    assert [it.name for it in each_once([picture(2), picture(1, name="first"), picture(1, name="second")])] == [
        "first",
        "1_x/2.png",
    ]
