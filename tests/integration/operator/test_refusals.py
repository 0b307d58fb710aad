"""What `kubectl apply` refuses: path, given, allowed; and what it must never refuse: a later status."""

from __future__ import annotations

from typing import Any

import pytest

from darkroom_api.kinds import EMBEDDING_TRAINING, LORA_TRAINING, MODEL_TRAINING, TRAININGS, TrainingKind
from darkroom_api.lora_training import LoraTrainingSpec
from tests.builders.specs import REQUIRED
from tests.integration.operator.cluster import MERGE, Cluster, RefusedError

EVERY_KIND = pytest.mark.parametrize("kind", TRAININGS, ids=lambda kind: kind.name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"network": {"rank": 0}}, ["spec.network.rank", "0", "greater than or equal to 1"]),
        ({"trainnig": {}}, ["unknown field", "spec.trainnig"]),
        ({"training": {"optimizer": {"beta2Decay": -0.5}}}, ["spec.training.optimizer", "beta2Decay", "AdamW"]),
        ({"dataset": {"name": "photos", "uri": "s3://studio/anna"}}, ["spec.dataset", "either name or uri"]),
        ({"dataset": {}}, ["spec.dataset", "either name or uri"]),
        ({"output": {"uri": "file:///tmp"}}, ["spec.output.uri", "file:///tmp", "s3://"]),
        ({"training": {"resolution": 256, "buckets": {"step": 512}}}, ["spec.training", "at most resolution"]),
        ({"samples": {"seeds": [1, 1]}}, ["spec.samples", "each seed may be given once"]),
        (
            {"training": {"optimizer": {"type": "Lion", "dCoefficient": 2}}},
            ["dCoefficient is only for type Prodigy; type is Lion"],
        ),
        (
            {"training": {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0.5}}},
            ["spec.training.optimizer", "must equal learningRate, or be 0, for Prodigy"],
        ),
        (
            {"training": {"optimizer": {"type": "DAdaptAdam", "learningRate": 1e-4}}},
            ["spec.training.optimizer", "learningRate must be at least 0.1 for DAdaptAdam"],
        ),
        (
            {"training": {"optimizer": {"type": "ScheduleFreeAdamW"}, "schedule": {"type": "Cosine"}}},
            ["spec.training", "schedule must be Constant, with or without warm-up"],
        ),
        (
            {"training": {"schedule": {"type": "Linear", "warmupSteps": 5, "warmupRatio": 0.1}}},
            ["spec.training.schedule", "either warmupSteps or warmupRatio"],
        ),
        (
            {"training": {"objective": {"minSnrGamma": 5, "debiased": True}}},
            ["spec.training.objective", "either minSnrGamma or debiased"],
        ),
        (
            {"training": {"captions": {"keepTokensSeparator": ","}}},
            ["spec.training.captions", "keepTokensSeparator must differ from separator"],
        ),
        ({"validation": {}}, ["spec.validation", "give either images or dataset, not both and not neither"]),
        ({"validation": {"images": 1, "dataset": {"uri": "s3://studio/v"}}}, ["spec.validation", "not both"]),
        ({"validation": {"images": 0}}, ["spec.validation.images", "0", "greater than or equal to 1"]),
        ({"validation": {"images": 1, "earlyStopping": {}}}, ["spec.validation.earlyStopping.patience", "Required"]),
        ({"trackers": [{"type": "WandB"}]}, ["spec.trackers[0]", "type WandB needs credentials"]),
        (
            {"trackers": [{"type": "MLflow", "trackingURI": "http://m", "project": "p"}]},
            ["spec.trackers[0].project", "project is only for type WandB; type is MLflow"],
        ),
        (
            {"trackers": [{"type": "MLflow", "trackingURI": "http://a"}, {"type": "MLflow", "trackingURI": "http://b"}]},
            ["spec.trackers", "each type of tracker may be given once"],
        ),
        ({"network": {"convRank": 4}}, ["spec.network", "give convRank and convAlpha together"]),
        ({"network": {"factor": 4}}, ["spec.network.factor", "factor is only for type LoKr; type is LoRA"]),
        (
            {"network": {"type": "LoKr", "fullMatrix": True, "decomposeBoth": True}},
            ["spec.network", "either fullMatrix or decomposeBoth"],
        ),
        ({"backoffLimit": -1}, ["spec.backoffLimit", "-1", "greater than or equal to 0"]),
    ],
    ids=["rank", "unknown", "foreign", "both", "neither", "uri", "step", "seeds", "owner", "two rates", "low rate",
         "free", "warm-up", "weights", "separators", "judges", "doubled", "none", "patience", "no key", "tracker",
         "twice", "convolutions", "LoKr's", "whole", "backoff"],
)  # fmt: skip
def test_a_wrong_spec_is_refused_with_path_given_and_allowed(
    cluster: Cluster, spec: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RefusedError) as refused:
        cluster.apply("anna", **spec)
    assert refused.value.status in {400, 422}
    for word in words:
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("kind", "spec", "words"),
    [
        (MODEL_TRAINING, {"network": {"rank": 4}}, ["unknown field", "spec.network"]),
        (MODEL_TRAINING, {"parts": {"unet": "None"}}, ["parts.unet None needs training.optimizer.textEncoderLearning"]),
        (
            MODEL_TRAINING,
            {"parts": {"textEncoderUntilStep": 9}, "training": {"optimizer": {"textEncoderLearningRate": 0}}},
            ["parts.textEncoderUntilStep needs training.optimizer.textEncoderLearningRate greater than 0"],
        ),
        (
            MODEL_TRAINING,
            {
                "parts": {"unet": "None", "textEncoderUntilStep": 9},
                "training": {"optimizer": {"textEncoderLearningRate": 1e-6}},
            },
            ["spec.parts", "parts.textEncoderUntilStep needs a part of the UNet"],
        ),
        (MODEL_TRAINING, {"ema": {"decay": 1}}, ["spec.ema.decay", "should be less than 1"]),
        (MODEL_TRAINING, {"checkpoints": {"format": "Diffusers"}}, ["spec.checkpoints.format", "Safetensors", "Ckpt"]),
        (
            MODEL_TRAINING,
            {"training": {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0.5}}},
            ["spec.training.optimizer", "must equal learningRate, or be 0, for Prodigy"],
        ),
        (
            EMBEDDING_TRAINING,
            {"training": {"optimizer": {"textEncoderLearningRate": 1e-4}}},
            ["unknown field", "spec.training.optimizer.textEncoderLearningRate"],
        ),
        (
            EMBEDDING_TRAINING,
            {"training": {"optimizer": {"type": "DAdaptAdam", "learningRate": 1e-3}}},
            ["learningRate must be at least 0.1 for DAdaptAdam"],
        ),
        (EMBEDDING_TRAINING, {"embedding": {}}, ["spec.embedding.token", "Required"]),
        (EMBEDDING_TRAINING, {"embedding": {"token": "a b"}}, ["spec.embedding.token", "a b"]),
        (EMBEDDING_TRAINING, {"embedding": {"token": "a,b"}}, ["spec.embedding.token", "a,b"]),
        (EMBEDDING_TRAINING, {"embedding": {"token": "a", "numVectors": 65}}, ["spec.embedding.numVectors", "65"]),
        (EMBEDDING_TRAINING, {"regularization": {"class": "robot"}}, ["unknown field", "spec.regularization"]),
        (LORA_TRAINING, {"regularization": {}}, ["spec.regularization", "give either uri or class, not both and not"]),
        (
            MODEL_TRAINING,
            {"regularization": {"uri": "s3://studio/robots", "class": "robot"}},
            ["spec.regularization", "give either uri or class, not both and not neither"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_belong_to_a_kind_is_refused(
    cluster: Cluster, kind: TrainingKind, spec: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(RefusedError) as refused:
        cluster.of(kind).apply("anna", **spec)
    assert refused.value.status in {400, 422}
    for word in words:
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (
            MODEL_TRAINING,
            {"parts": {"unet": "None"}, "training": {"optimizer": {"type": "Lion", "textEncoderLearningRate": 1e-6}}},
        ),
        (
            MODEL_TRAINING,
            {
                "parts": {"unet": "CrossAttention", "textEncoderUntilStep": 100},
                "ema": {},
                "checkpoints": {"format": "Ckpt", "precision": "FP32"},
                "training": {"optimizer": {"type": "Prodigy", "textEncoderLearningRate": 1}},
                "regularization": {"class": "photo of a robot"},
            },
        ),
        (
            LORA_TRAINING,
            {
                "trackers": [
                    {"type": "MLflow", "trackingURI": "https://mlflow.example.com", "experiment": "robots"},
                    {"type": "WandB", "entity": "us", "credentials": {"secretName": "wandb"}},
                ]
            },
        ),
        (LORA_TRAINING, {"regularization": {"uri": "s3://studio/robots", "priorWeight": 0.5}}),
        (EMBEDDING_TRAINING, {"embedding": {"token": "<sks>", "initializer": "small robot"}}),
        (EMBEDDING_TRAINING, {"training": {"optimizer": {"type": "Prodigy"}}}),
    ],
)
def test_what_a_kind_may_be_given_is_taken_and_understood_with_the_servers_defaults(
    cluster: Cluster, kind: TrainingKind, spec: dict[str, Any]
) -> None:
    stored = cluster.of(kind).apply("anna", **spec)["spec"]
    assert kind.spec.model_validate(stored) == kind.spec.model_validate(REQUIRED[kind.name] | spec)


@pytest.mark.parametrize(
    "training",
    [
        {
            "optimizer": {"type": "Prodigy", "textEncoderLearningRate": 0},
            "schedule": {"type": "REX", "warmupRatio": 0.1},
        },
        {"optimizer": {"type": "ScheduleFreeAdamW"}, "schedule": {"warmupSteps": 10}},
        {"objective": {"multiresNoise": {}, "loss": {"type": "Huber"}}, "schedule": {"type": "OneCycle"}},
        {"optimizer": {"type": "AdamW8bit"}},
    ],
    ids=["prodigy", "free", "objective", "8bit"],
)
def test_what_makes_sense_together_is_taken(cluster: Cluster, training: dict[str, Any]) -> None:
    created = cluster.apply("anna", training=training)
    chosen = created["spec"]["training"]["optimizer"]
    # A default of one type would be wrong for another: the pod fills it in.
    assert "learningRate" not in chosen
    assert LoraTrainingSpec.model_validate(created["spec"]).training.epochs == 10


def test_what_may_not_change_is_refused_and_what_may_is_not(cluster: Cluster) -> None:
    cluster.apply("anna")
    with pytest.raises(RefusedError, match="output may not change; apply the resource under a new name"):
        cluster.change("anna", output={"uri": "s3://elsewhere/loras"})
    with pytest.raises(RefusedError, match="validation may not change"):
        cluster.change("anna", validation={"images": 1})
    with pytest.raises(RefusedError, match="network may not change"):
        cluster.change("anna", network={"rank": 4})
    with pytest.raises(RefusedError, match="regularization may not change"):
        cluster.change("anna", regularization={"class": "robot"})
    changed = cluster.change("anna", suspend=True, backoffLimit=0, activeDeadlineSeconds=5, ttlSecondsAfterFinished=0)
    assert changed["metadata"]["generation"] == 2


@EVERY_KIND
def test_an_object_with_only_its_required_fields_takes_a_status_and_a_suspension(
    cluster: Cluster, kind: TrainingKind
) -> None:
    cluster = cluster.of(kind)
    created = cluster.apply("anna")
    assert created["status"] == {"observedGeneration": -1}  # else kstatus takes it for finished
    assert set(REQUIRED[kind.name]) < set(created["spec"])
    patch = {"status": {"phase": "Pending", "observedGeneration": 1}}
    patched = cluster.call("PATCH", cluster.path(kind.plural, "anna", "status"), patch, content_type=MERGE)
    assert patched["status"]["phase"] == "Pending"
    assert cluster.change("anna", suspend=True)["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("kind", "field", "change"),
    [
        (MODEL_TRAINING, "ema", {"decay": 0.9}),
        (MODEL_TRAINING, "parts", {"unet": "Attention"}),
        (EMBEDDING_TRAINING, "embedding", {"token": "other"}),
    ],
)
def test_what_a_kind_has_of_its_own_may_not_change(
    cluster: Cluster, kind: TrainingKind, field: str, change: dict[str, Any]
) -> None:
    cluster = cluster.of(kind)
    cluster.apply("anna")
    with pytest.raises(RefusedError, match=f"{field} may not change; apply the resource under a new name"):
        cluster.change("anna", **{field: change})


@EVERY_KIND
def test_a_name_that_leaves_no_room_for_the_jobs_is_refused(cluster: Cluster, kind: TrainingKind) -> None:
    cluster = cluster.of(kind)
    with pytest.raises(RefusedError, match="at most 50 characters"):
        cluster.apply("a" * 51)
    cluster.apply("a" * 50)
