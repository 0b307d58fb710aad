"""What a run is told before its first step, and that a usual one is told nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from darkroom_api.kinds import TRAININGS
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.objectives import Objective
from darkroom_api.progress import MAXIMUM_ADVICE, Advice, Plan
from darkroom_trainer.advising import advise, planned, usual
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.dataset import Picture
from darkroom_trainer.families.configurations import FAMILIES, SD2
from darkroom_trainer.families.recognition import FIRST_CONVOLUTION, native_side

Size = tuple[int, int]


def pictures(*sizes: Size, repeats: int = 20, caption: str | None = None) -> list[Picture]:
    folder = f"{repeats}_sks robot"
    return [
        Picture(
            Path(f"{index}.png"),
            f"{folder}/{index}.png",
            folder,
            size,
            f"sks robot, {index}" if caption is None else caption,
            repeats,
            f"{index:064x}",
        )
        for index, size in enumerate(sizes)
    ]


FIFTEEN = pictures(*[(1600, 1200), (1200, 1600), (1400, 1400)] * 5)


def told(found: list[Picture], *, native_side: int | None = 512, **values: Any) -> list[str]:
    spec, course = spec_and_course(found, **values)
    return advise(spec, course, native_side=native_side)


def spec_and_course(found: list[Picture], **values: Any) -> tuple[LoraTrainingSpec, Course]:
    sources = {"baseModel": {"uri": "s3://abc/b"}, "dataset": {"uri": "s3://abc/c"}, "output": {"uri": "s3://abc/d"}}
    spec = LoraTrainingSpec.model_validate(sources | values)
    return spec, arrange(found, spec.training, validation=spec.validation)


def test_a_usual_run_is_told_nothing() -> None:
    assert told(FIFTEEN) == []
    assert (
        told(FIFTEEN, training={"resolution": 768, "batchSize": 2, "captions": {"shuffle": True, "dropout": 0.1}}) == []
    )
    assert (
        told(
            FIFTEEN,
            network={"type": "LoRA", "rank": 32, "alpha": 16},
            training={"gradientAccumulation": 4, "epochs": 8},
        )
        == []
    )


@pytest.mark.parametrize(
    ("training", "advice"),
    [
        (
            {"epochs": 4},
            "The run has 1,200 steps; a LoRA of one subject usually takes 1,500 to 6,000. Raise training.epochs to "
            "about 5, or the folders' repeats.",
        ),
        (
            {"epochs": 40},
            "The run has 12,000 steps; a LoRA of one subject usually takes 1,500 to 6,000. Lower training.epochs to "
            "about 20, or let spec.validation choose the epoch: more steps often overtrain.",
        ),
        (
            {"epochs": 3, "batchSize": 5},
            "The run has 180 steps of up to 5 pictures; a LoRA of one subject usually takes 1,500 to 6,000. Raise "
            "training.epochs to about 5, or the folders' repeats.",
        ),
    ],
)
def test_too_few_and_too_many_steps(training: dict[str, Any], advice: str) -> None:
    assert told(FIFTEEN, training=training) == [advice]


def test_the_epochs_that_are_advised_are_not_advised_against() -> None:
    for epochs in (1, 2, 4, 21, 50, 300):
        (advice,) = told(FIFTEEN, training={"epochs": epochs})
        wanted = int(advice.split("training.epochs to about ")[1].split(",")[0])
        assert told(FIFTEEN, training={"epochs": wanted}) == []


def test_pictures_in_larger_batches_count_as_often_as_in_smaller_ones() -> None:
    assert told(FIFTEEN, training={"epochs": 5, "batchSize": 5}) == []  # 300 steps show 1,500 pictures


def test_one_epoch_that_is_too_long_is_not_advised_to_become_none() -> None:
    (advice,) = told(pictures(*[(800, 800)] * 15, repeats=500), training={"epochs": 1})
    assert "Lower the folders' repeats, or" in advice


def test_many_steps_are_no_matter_where_an_early_stop_is_asked_for() -> None:
    validation = {"images": 1, "earlyStopping": {"patience": 3}}
    assert told(FIFTEEN, training={"epochs": 40}, validation=validation) == []
    assert told(FIFTEEN, training={"epochs": 40}, validation={"images": 1}) != []


def test_few_and_many_pictures() -> None:
    (few,) = told(FIFTEEN[:9], training={"epochs": 20})
    assert few.startswith("9 pictures for a LoRA of one subject; 10 to 200 are usual. It will learn")
    (many,) = told(pictures(*[(800, 800)] * 201, repeats=1), training={"epochs": 20})
    assert many.startswith("201 pictures for a LoRA of one subject; 10 to 200 are usual. That is right for a style")
    twins = [*FIFTEEN[:9], *pictures((1600, 1200))]  # the same content twice is one picture
    assert told(twins, training={"epochs": 20})[0].startswith("9 pictures")


@pytest.mark.parametrize(("resolution", "is_told"), [(320, True), (384, False), (768, False), (832, True)])
def test_a_resolution_far_from_the_familys(resolution: int, is_told: bool) -> None:
    advice = told(FIFTEEN, training={"resolution": resolution})
    said = f"training.resolution {resolution} is far from the 512 pixels that the base model was made with; 384 to 768"
    assert [sentence.startswith(said) for sentence in advice] == [True] * is_told


def test_pictures_that_are_much_enlarged() -> None:
    found = pictures(*[(800, 800)] * 11, *[(256, 256), (240, 240), (400, 400), (200, 200)])
    (advice,) = told(found)
    assert advice.startswith("4 of 15 pictures are enlarged up to 2.6 times to fill their buckets")
    assert told(found, training={"buckets": {"upscale": False}}) == []
    assert told(pictures(*[(450, 450)] * 15)) == []  # by less than a quarter
    assert told(pictures(*[(800, 800)] * 12, *[(200, 200)] * 3)) == []  # too few to matter


def test_rare_buckets_whose_batches_are_short() -> None:
    shapes = [(512, 512)] * 6 + [(768, 384), (384, 768), (640, 448), (448, 640)]
    found = pictures(*shapes, repeats=2)
    (advice,) = told(found, training={"epochs": 100, "batchSize": 4})
    assert advice.startswith("A batch has 2.9 pictures on average instead of 4: 4 of 5 buckets have fewer.")
    (advice,) = told(
        pictures(*[(512, 512)] * 5, *[(768, 384)] * 5, repeats=1), training={"epochs": 300, "batchSize": 4}
    )
    assert advice.startswith("A batch has 2.5 pictures on average instead of 4: the last of a bucket is short.")
    assert told(found, training={"epochs": 100, "batchSize": 2}) == []


@pytest.mark.parametrize(
    ("network", "advice"),
    [
        (
            {"type": "LoRA", "rank": 128, "alpha": 1},
            "network.alpha 1 at rank 128 multiplies all that is learnt by 0.0078",
        ),
        ({"type": "LoRA", "rank": 4, "alpha": 32}, "network.alpha 32 at rank 4 multiplies all that is learnt by 8"),
        ({"type": "LoRA", "rank": 32, "alpha": 8}, None),
        ({"type": "LoRA", "rank": 16, "alpha": 64}, None),
        ({"type": "LoKr", "rank": 128, "alpha": 1, "fullMatrix": True}, None),
    ],
)
def test_an_alpha_far_from_the_rank(network: dict[str, Any], advice: str | None) -> None:
    found = told(FIFTEEN, network=network)
    assert [sentence.startswith(advice or "?") for sentence in found] == [True] * bool(advice)
    prodigy = {"optimizer": {"type": "Prodigy", "learningRate": 1}}
    assert told(FIFTEEN, network=network, training=prodigy) == []


def test_captions_that_a_setting_cannot_change() -> None:
    bare = pictures(*[(800, 800)] * 15, caption="sks robot")
    (advice,) = told(bare, training={"captions": {"dropout": 0.1}})
    assert advice.startswith("No picture has a caption of its own, so training.captions.dropout 0.1")
    assert told([*bare, *FIFTEEN[:1]], training={"captions": {"dropout": 0.1}, "epochs": 5}) == []
    (advice,) = told(bare, training={"captions": {"shuffle": True}})
    assert advice == "training.captions.shuffle changes nothing: no caption has more than 1 tag between commas."
    (advice,) = told(FIFTEEN, training={"captions": {"shuffle": True, "keepTokens": 1}})
    assert advice.endswith("no caption has more than 2 tags between commas, and keepTokens leaves 1 in place.")


def test_a_small_model_is_measured_by_no_experience_with_large_ones() -> None:
    values: dict[str, Any] = {"training": {"epochs": 1, "resolution": 256}}
    assert len(told(FIFTEEN, **values)) == 2
    assert told(FIFTEEN, native_side=None, **values) == []
    plain, velocity = Objective(), Objective(prediction_type="VPrediction")
    full, small = {FIRST_CONVOLUTION: (320, 4, 3, 3)}, {FIRST_CONVOLUTION: (32, 4, 3, 3)}
    assert [native_side(family, full, plain) for family in FAMILIES.values()] == [512, 512, 1024]
    assert native_side(SD2, full, velocity) == 768
    assert native_side(SD2, small, velocity) is None


def test_the_worst_run_gives_advice_that_a_plan_can_hold() -> None:
    odd = [(64 + 64 * index, 2000) for index in range(8)]
    captions = {"shuffle": True, "dropout": 1}
    training = {"epochs": 1, "resolution": 2048, "batchSize": 4, "captions": captions, "buckets": {"maximum": 2048}}
    spec, course = spec_and_course(
        pictures(*odd, repeats=1, caption="sks robot"),
        network={"type": "LoRA", "rank": 128, "alpha": 1},
        training=training,
    )
    plan = planned(spec, course, native_side=512)
    assert Plan.model_validate(plan.model_dump()).advice == plan.advice
    assert len(plan.advice) == 8 <= MAXIMUM_ADVICE
    assert plan.total_steps == course.total_steps
    limit = TypeAdapter(Advice)
    assert all(limit.validate_python(sentence) for sentence in plan.advice)


def test_every_kind_has_what_is_usual_for_it() -> None:
    assert {kind.spec for kind in TRAININGS} == set(usual.registry) - {object}
