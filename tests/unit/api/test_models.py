"""The models of the spec and the messages that their refusals give."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.kinds import EMBEDDING_TRAINING, LORA_TRAINING, MODEL_TRAINING, TRAININGS, TrainingKind
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.model_training import ModelTrainingSpec
from darkroom_api.optimizers import Optimizer
from darkroom_api.rates import LoraAdamW, LoraProdigy, ModelProdigy
from darkroom_api.uris import S3Location, parse_s3
from tests.builders.specs import MINIMAL, REQUIRED


@pytest.fixture(params=TRAININGS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TrainingKind:
    return request.param


def refusal(kind: TrainingKind = LORA_TRAINING, **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        kind.spec.model_validate(REQUIRED[kind.name] | changes)
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
def test_spec_survives_its_own_json(kind: TrainingKind, more: dict[str, Any]) -> None:
    spec = kind.spec.model_validate(REQUIRED[kind.name] | more)
    assert kind.spec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"network": {"type": "LoRA", "rank": 0}},
            "spec.network.LoRA.rank: 0: Input should be greater than or equal to 1",
        ),
        (
            {"network": {"type": "DoRA", "convRank": 4}},
            "spec.network.DoRA: Value error, give convRank and convAlpha together: alpha never follows rank by itself",
        ),
        (
            {"network": {"type": "LoKr", "fullMatrix": True, "decomposeBoth": True}},
            "spec.network.LoKr: Value error, give either fullMatrix or decomposeBoth, not both",
        ),
        (
            {"network": {"type": "LoRA", "targets": {"layers": "attention"}}},
            "spec.network.LoRA.targets.layers: 'attention': Input should be 'All', 'Attention', 'CrossAttention' or",
        ),
        (
            {"network": {"type": "LoRA", "initialWeights": {"uri": "s3://abc/d", "sha256": "1A"}}},
            "spec.network.LoRA.initialWeights.sha256: '1A': String should match pattern",
        ),
        ({"network": {"type": "LoHa", "factor": 4}}, "spec.network.LoHa.factor: 4: Extra inputs are not permitted"),
        (
            {"baseModel": {"uri": "s3://models/sdxl/", "sha256": "0" * 64}},
            "spec.baseModel: Value error, sha256 is that of a file; it cannot be given for a folder",
        ),
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
        (
            {"training": {"captions": {"separator": "|", "keepTokensSeparator": "|"}}},
            "spec.training.captions: Value error, keepTokensSeparator must differ from separator",
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
        ({"trackers": [{"type": "MLflow"}]}, "spec.trackers[0].MLflow.trackingURI: Field required"),
        ({"trackers": [{"type": "WandB"}]}, "spec.trackers[0].WandB.credentials: Field required"),
        (
            {"trackers": [{"type": "MLflow", "trackingURI": "http://me:secret@mlflow"}]},
            "spec.trackers[0].MLflow.trackingURI: 'http://me:secret@mlflow': String should match pattern",
        ),
        (
            {
                "trackers": [
                    {"type": "MLflow", "trackingURI": "http://one"},
                    {"type": "MLflow", "trackingURI": "http://b"},
                ]
            },
            "each type of tracker may be given once",
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


def test_every_optimizer_has_the_usual_rate_of_what_is_trained(kind: TrainingKind) -> None:
    of_adamw = {"LoraTraining": 1e-4, "ModelTraining": 2e-6, "EmbeddingTraining": 5e-4}[kind.name]
    factors = {"AdamW": 1, "AdamW8bit": 1, "Adafactor": 1, "Lion": 0.3, "CAME": 2, "ScheduleFreeAdamW": 10}
    expected = {name: of_adamw * factor for name, factor in factors.items()} | {"Prodigy": 1, "DAdaptAdam": 1}
    assert set(expected) == {each.__name__ for each in get_args(get_args(Optimizer)[0])}
    for name, rate in expected.items():
        spec = kind.spec.model_validate(REQUIRED[kind.name] | {"training": {"optimizer": {"type": name}}})
        assert spec.training.optimizer.learning_rate == pytest.approx(rate)
    assert kind.spec.model_validate(REQUIRED[kind.name]).training.optimizer.learning_rate == of_adamw


def test_a_text_encoder_is_trained_with_a_lora_but_with_a_model_only_if_asked() -> None:
    assert LoraAdamW().text_encoder_learning_rate is None
    assert LoraAdamW().text_encoder_share == 0.5
    assert (LoraProdigy().text_encoder_share, ModelProdigy().text_encoder_learning_rate) == (1, 0)
    assert ModelTrainingSpec.model_validate(MINIMAL).training.optimizer.text_encoder_learning_rate == 0


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (
            MODEL_TRAINING,
            {"parts": {"unet": "None"}},
            "spec: Value error, parts.unet None needs training.optimizer.textEncoderLearningRate greater than 0",
        ),
        (
            MODEL_TRAINING,
            {"parts": {"textEncoderUntilStep": 10}},
            "spec: Value error, parts.textEncoderUntilStep needs training.optimizer.textEncoderLearningRate greater",
        ),
        (
            MODEL_TRAINING,
            {"parts": {"unet": "None", "textEncoderUntilStep": 10}},
            "spec.parts: Value error, parts.textEncoderUntilStep needs a part of the UNet",
        ),
        (MODEL_TRAINING, {"ema": {"decay": 1}}, "spec.ema.decay: 1: Input should be less than 1"),
        (MODEL_TRAINING, {"network": {"rank": 4}}, "spec.network: Extra inputs are not permitted"),
        (
            MODEL_TRAINING,
            {"training": {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0.5}}},
            "textEncoderLearningRate must equal learningRate, or be 0, for Prodigy",
        ),
        (LORA_TRAINING, {"checkpoints": {"format": "Ckpt"}}, "spec.checkpoints.format: 'Ckpt': Extra inputs"),
        (
            EMBEDDING_TRAINING,
            {"training": {"optimizer": {"type": "AdamW", "textEncoderLearningRate": 1e-4}}},
            "spec.training.optimizer.AdamW.textEncoderLearningRate: 0.0001: Extra inputs are not permitted",
        ),
        (
            EMBEDDING_TRAINING,
            {"training": {"optimizer": {"type": "DAdaptAdam", "learningRate": 1e-3}}},
            "learningRate must be at least 0.1 for DAdaptAdam",
        ),
        (EMBEDDING_TRAINING, {"embedding": {}}, "spec.embedding.token: Field required"),
        (EMBEDDING_TRAINING, {"embedding": {"token": "a b"}}, "spec.embedding.token: 'a b': String should match"),
        (EMBEDDING_TRAINING, {"embedding": {"token": "a,b"}}, "spec.embedding.token: 'a,b': String should match"),
        (EMBEDDING_TRAINING, {"embedding": {"token": "(a)"}}, "spec.embedding.token: '(a)': String should match"),
        (EMBEDDING_TRAINING, {"embedding": {"token": "sks", "numVectors": 65}}, "spec.embedding.numVectors: 65: Input"),
        (EMBEDDING_TRAINING, {"regularization": {"class": "robot"}}, "spec.regularization: Extra inputs are not"),
    ]
    + [
        (each, {"regularization": given}, "spec.regularization: Value error, give either uri or class, not both")
        for each in (LORA_TRAINING, MODEL_TRAINING)
        for given in ({}, {"class": "photo of a robot", "uri": "s3://studio/robots"})
    ],
)
def test_what_does_not_belong_to_a_kind_or_together_is_refused(
    kind: TrainingKind, changes: dict[str, Any], told: str
) -> None:
    assert told in refusal(kind, **changes)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (
            MODEL_TRAINING,
            {"parts": {"unet": "None"}, "training": {"optimizer": {"type": "Lion", "textEncoderLearningRate": 1e-7}}},
        ),
        (
            MODEL_TRAINING,
            {
                "parts": {"unet": "CrossAttention", "textEncoderUntilStep": 100},
                "ema": {},
                "checkpoints": {"format": "Ckpt", "precision": "FP32"},
                "training": {"optimizer": {"textEncoderLearningRate": 1e-6, "type": "AdamW"}},
                "regularization": {"uri": "s3://studio/robots", "priorWeight": 0.5},
            },
        ),
        (LORA_TRAINING, {"regularization": {"class": "photo of a robot", "images": 20}}),
        (EMBEDDING_TRAINING, {"embedding": {"token": "<sks>", "numVectors": 8, "initializer": "small robot"}}),
    ],
)
def test_what_a_kind_may_be_given_survives_with_every_default_filled_in(
    kind: TrainingKind, changes: dict[str, Any]
) -> None:
    spec = kind.spec.model_validate(REQUIRED[kind.name] | changes)
    assert kind.spec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec


def test_the_class_of_a_regularization_is_named_class_in_yaml() -> None:
    spec = LoraTrainingSpec.model_validate(MINIMAL | {"regularization": {"class": "photo of a robot"}})
    assert spec.regularization is not None
    assert spec.regularization.model_dump(by_alias=True, exclude_none=True) == {
        "class": "photo of a robot",
        "images": 100,
        "priorWeight": 1.0,
    }


def test_all_problems_are_told_at_once() -> None:
    assert (
        len(refusal(network={"type": "LoRA", "rank": 0}, output={"uri": "nowhere"}, suspend="maybe").splitlines()) == 3
    )


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
