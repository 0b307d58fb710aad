"""The models of the spec and the messages that their refusals give."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.uris import S3Location, parse_s3

MINIMAL: dict[str, Any] = {
    "baseModel": {"uri": "s3://models/base.safetensors"},
    "dataset": {"uri": "s3://studio/pictures"},
    "output": {"uri": "s3://studio/loras"},
}


def refusal(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        LoraTrainingSpec.model_validate(MINIMAL | changes)
    return explain(caught.value, "spec")


def test_minimal_spec_has_sensible_defaults() -> None:
    spec = LoraTrainingSpec.model_validate(MINIMAL)
    assert (spec.training.epochs, spec.training.batch_size, spec.network.rank) == (10, 1, 16)
    assert spec.training.optimizer.type == "AdamW"


def test_nothing_is_held_back_unless_asked_for() -> None:
    assert LoraTrainingSpec.model_validate(MINIMAL).validation is None
    asked = LoraTrainingSpec.model_validate(MINIMAL | {"validation": {"images": 2}}).validation
    assert asked
    assert (asked.every_epochs, asked.draws, asked.early_stopping) == (1, 8, None)


@pytest.mark.parametrize(
    "more", [{}, {"validation": {"dataset": {"uri": "s3://studio/others"}, "earlyStopping": {"patience": 2}}}]
)
def test_spec_survives_its_own_json(more: dict[str, Any]) -> None:
    spec = LoraTrainingSpec.model_validate(MINIMAL | more)
    assert LoraTrainingSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": {"rank": 0}}, "spec.network.rank: 0: Input should be greater than or equal to 1"),
        ({"dataset": {"uri": "s3://abc/d", "name": "d"}}, "spec.dataset: Value error, give either name or uri"),
        ({"dataset": {}}, "spec.dataset: Value error, give either name or uri"),
        ({"output": {"uri": "ftp://x"}}, "spec.output.uri: 'ftp://x': String should match pattern"),
        ({"output": {"uri": "s3://bucket/../up"}}, "spec.output.uri: 's3://bucket/../up': Value error, object key"),
        ({"colour": "red"}, "spec.colour: 'red': Extra inputs are not permitted"),
        (
            {"training": {"optimizer": {"type": "AdamW", "beta2Decay": -0.5}}},
            "spec.training.optimizer.AdamW.beta2Decay",
        ),
        ({"training": {"resolution": 2048}}, "resolution 2048 must lie between"),
        (
            {"training": {"resolution": 256, "buckets": {"step": 512}}},
            "buckets.step 512 must be at most resolution 256",
        ),
        (
            {"training": {"optimizer": {"type": "AdamW", "dCoefficient": 2}}},
            "spec.training.optimizer.AdamW.dCoefficient: 2: Extra inputs are not permitted",
        ),
        (
            {"training": {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0.5}}},
            "spec.training.optimizer.Prodigy: Value error, textEncoderLearningRate must equal learningRate, or be 0, "
            "for Prodigy",
        ),
        (
            {"training": {"optimizer": {"type": "DAdaptAdam", "learningRate": 1e-4}}},
            "spec.training.optimizer.DAdaptAdam: Value error, learningRate must be at least 0.1 for DAdaptAdam",
        ),
        (
            {"training": {"optimizer": {"type": "ScheduleFreeAdamW", "beta1": 0}}},
            "beta1 must be greater than 0 for ScheduleFreeAdamW",
        ),
        (
            {"training": {"optimizer": {"type": "ScheduleFreeAdamW"}, "schedule": {"type": "Linear"}}},
            "spec.training: Value error, schedule must be Constant, with or without warm-up, for optimizer "
            "ScheduleFreeAdamW",
        ),
        (
            {"training": {"schedule": {"type": "Cosine", "warmupSteps": 5, "warmupRatio": 0.1}}},
            "spec.training.schedule.Cosine: Value error, give either warmupSteps or warmupRatio, not both",
        ),
        (
            {"training": {"schedule": {"type": "OneCycle", "warmupSteps": 5}}},
            "spec.training.schedule.OneCycle.warmupSteps: 5: Extra inputs are not permitted",
        ),
        (
            {"training": {"objective": {"minSnrGamma": 5, "debiased": True}}},
            "spec.training.objective: Value error, give either minSnrGamma or debiased, not both",
        ),
        (
            {"training": {"objective": {"noiseOffset": 0.1, "multiresNoise": {}}}},
            "spec.training.objective: Value error, give either noiseOffset or multiresNoise, not both",
        ),
        (
            {"training": {"objective": {"timesteps": {"minimum": 500, "maximum": 500}}}},
            "spec.training.objective: Value error, timesteps.minimum must be less than timesteps.maximum",
        ),
        (
            {"training": {"objective": {"loss": {"type": "L2", "delta": 0.1}}}},
            "spec.training.objective.loss.L2.delta: 0.1: Extra inputs are not permitted",
        ),
        ({"training": {"gradientAccumulation": 0}}, "spec.training.gradientAccumulation: 0: Input should be greater"),
        ({"validation": {}}, "spec.validation: Value error, give either images or dataset, not both and not neither"),
        (
            {"validation": {"images": 2, "dataset": {"uri": "s3://studio/others"}}},
            "spec.validation: Value error, give either images or dataset, not both and not neither",
        ),
        ({"validation": {"images": 0}}, "spec.validation.images: 0: Input should be greater than or equal to 1"),
        ({"validation": {"images": 1, "draws": 101}}, "spec.validation.draws: 101: Input should be less than"),
        ({"validation": {"images": 1, "earlyStopping": {}}}, "spec.validation.earlyStopping.patience: Field required"),
        (
            {"validation": {"images": 1, "earlyStopping": {"patience": 1, "minimumImprovement": -1}}},
            "spec.validation.earlyStopping.minimumImprovement: -1: Input should be greater than or equal to 0",
        ),
        ({"samples": {"seeds": [1, 2, 1]}}, "spec.samples.seeds: [1, 2, 1]: Value error, each seed may be given once"),
    ],
)
def test_refusal_tells_path_given_and_allowed(changes: dict[str, Any], told: str) -> None:
    assert told in refusal(**changes)


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"type": kind}}
        for kind in ("AdamW8bit", "Lion", "Adafactor", "CAME", "Prodigy", "DAdaptAdam", "ScheduleFreeAdamW")
    ]
    + [
        {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0}},
        {"optimizer": {"type": "DAdaptAdam", "learningRate": 0.5, "textEncoderLearningRate": 0.5}},
        {"optimizer": {"type": "ScheduleFreeAdamW"}, "schedule": {"type": "Constant", "warmupRatio": 0.1}},
        {"schedule": {"type": "REX", "warmupRatio": 0.1, "minimumFactor": 0.1}},
        {"schedule": {"type": "OneCycle"}},
        {"objective": {"multiresNoise": {}, "debiased": True, "loss": {"type": "Huber"}}},
    ],
    ids=str,
)
def test_what_makes_sense_survives_with_every_default_filled_in(training: dict[str, Any]) -> None:
    """A run's plan holds the defaults as if they had been given; rules that ask for one of two must bear that."""
    spec = LoraTrainingSpec.model_validate(MINIMAL | {"training": training})
    assert LoraTrainingSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_what_learns_its_step_size_begins_at_rate_1() -> None:
    spec = LoraTrainingSpec.model_validate(MINIMAL | {"training": {"optimizer": {"type": "Prodigy"}}})
    assert spec.training.optimizer.learning_rate == 1


def test_all_problems_are_told_at_once() -> None:
    assert len(refusal(network={"rank": 0}, output={"uri": "nowhere"}, suspend="maybe").splitlines()) == 3


def test_s3_uri_is_taken_apart() -> None:
    assert parse_s3("s3://studio/anna/raw/") == S3Location("studio", "anna/raw")
    assert str(parse_s3("s3://studio").join("a", "", "b")) == "s3://studio/a/b"


@given(st.text(max_size=80))
def test_no_key_that_leaves_its_folder_is_ever_accepted(key: str) -> None:
    try:
        location = parse_s3(f"s3://bucket/{key}")
    except ValueError:
        return
    assert ".." not in location.key.split("/")
    assert "\\" not in location.key
    assert not location.key.startswith("/")
