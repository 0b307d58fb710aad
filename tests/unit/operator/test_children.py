"""What a run consists of, as the API server would store it."""

from __future__ import annotations

import json
from typing import Any

import kubernetes.client
import pytest

from darkroom_api.failures import NEVER_RETRIED
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.names import API_VERSION
from darkroom_api.plan import RunPlan
from darkroom_operator.config import Config, HostAlias
from darkroom_operator.decide.children import KUEUE_PRIORITY, KUEUE_QUEUE, config_map, run_plan
from darkroom_operator.decide.job import job
from darkroom_operator.objects import PARENTS, Key, Resource, parent_key
from tests.unit.operator.world import CHILD, CONFIG, RUN, SPECS, UID, snapshot, spec, training

STORE = {
    "endpointURL": "https://s3.example.com",
    "credentials": {"secretName": "studio-s3"},
    "caBundle": {"configMapName": "private-ca", "key": "bundle.pem"},
}


def build(config: Config = CONFIG, labels: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    case = snapshot(training=training(labels=labels, **values))
    return job(case, LoraTrainingSpec.model_validate(spec(**values)), config)


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["template"]["spec"]
    return found


def environment(made: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod_of(made)["containers"][0]["env"]}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"storage": STORE, "activeDeadlineSeconds": 60},
        {
            "compute": {
                "gpus": 1,
                "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"memory": "24Gi"}},
                "nodeSelector": {"gpu": "a100"},
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "priorityClassName": "batch",
                "serviceAccountName": "trainer",
            }
        },
    ],
)
def test_every_field_of_the_job_is_one_that_kubernetes_knows(values: dict[str, Any]) -> None:
    made = build(**values)
    assert through_models(made, "V1Job") == made


def through_models(value: dict[str, Any], model: str) -> Any:
    """Read an object into the official client's models and write it again: unknown fields would get lost."""
    client = kubernetes.client.ApiClient()
    return client.sanitize_for_serialization(client.deserialize(json.dumps(value), model, "application/json"))


@pytest.mark.parametrize("resource", PARENTS, ids=lambda resource: resource.kind)
def test_the_plan_is_the_whole_spec_and_cannot_change(resource: Resource) -> None:
    case = snapshot(resource)
    plan = run_plan(case, SPECS[resource.kind].model_validate(spec(resource)))
    made = config_map(case, plan)
    assert made["immutable"] is True
    assert RunPlan.model_validate_json(made["data"]["plan.json"]) == plan
    assert plan.kind == resource.kind
    assert through_models(made, "V1ConfigMap") == made


@pytest.mark.parametrize("resource", PARENTS, ids=lambda resource: resource.kind)
def test_children_are_ours_and_named_after_the_run(resource: Resource) -> None:
    case, wanted = snapshot(resource), SPECS[resource.kind].model_validate(spec(resource))
    for made in (job(case, wanted, CONFIG), config_map(case, run_plan(case, wanted))):
        metadata = made["metadata"]
        assert metadata["name"] == CHILD == f"anna-{RUN}"
        assert metadata["labels"]["darkroom.dev/run"] == RUN
        assert parent_key(made) == case.key == Key(resource.kind, "studio", "anna")
        owner = metadata["ownerReferences"][0]
        assert (owner["apiVersion"], owner["kind"], owner["name"]) == (API_VERSION, resource.kind, "anna")
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)


def test_there_is_never_a_second_pod_and_no_retry_of_what_it_cannot_mend() -> None:
    made = build(backoffLimit=5)["spec"]
    assert (made["parallelism"], made["completions"], made["podReplacementPolicy"]) == (1, 1, "Failed")
    assert made["backoffLimit"] == 5
    rules = made["podFailurePolicy"]["rules"]
    assert rules[0]["action"] == "FailJob"
    assert rules[0]["onExitCodes"]["values"] == sorted(NEVER_RETRIED)
    assert [rule["action"] for rule in rules[1:]] == ["Ignore", "Ignore"]
    assert rules[2]["onExitCodes"]["values"] == [75]
    assert "ttlSecondsAfterFinished" not in build(ttlSecondsAfterFinished=5)["spec"]


def test_the_pod_may_do_nothing_but_train() -> None:
    pod = pod_of(build())
    container = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["volumes"][1]["emptyDir"]["sizeLimit"] == "50Gi"


def test_credentials_come_from_the_secret_and_the_session_token_may_be_missing() -> None:
    found = environment(build(storage=STORE))
    assert found["AWS_ACCESS_KEY_ID"] == {"secretKeyRef": {"name": "studio-s3", "key": "AWS_ACCESS_KEY_ID"}}
    assert found["AWS_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True
    assert found["AWS_CA_BUNDLE"] == "/etc/darkroom-ca/ca.crt"
    assert pod_of(build(storage=STORE))["volumes"][2]["configMap"]["items"] == [{"key": "bundle.pem", "path": "ca.crt"}]
    assert not [name for name in environment(build()) if name.startswith("AWS_")]


def test_each_trackers_keys_come_from_its_own_secret() -> None:
    mlflow = {"type": "MLflow", "trackingURI": "https://mlflow.example.com", "credentials": {"secretName": "mlflow"}}
    wandb = {"type": "WandB", "credentials": {"secretName": "wandb"}}
    made = build(trackers=[mlflow, wandb])
    assert through_models(made, "V1Job") == made
    found = environment(made)
    assert found["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}
    for key in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        assert found[key] == {"secretKeyRef": {"name": "mlflow", "key": key, "optional": True}}
    open_to_all = {"type": "MLflow", "trackingURI": "http://mlflow.studio:5000"}
    assert environment(build(trackers=[open_to_all])).keys() == environment(build()).keys()


@pytest.mark.parametrize(
    ("resources", "threads"),
    [
        ({"limits": {"cpu": "2500m"}}, "3"),
        ({"requests": {"cpu": 4}}, "4"),
        ({"requests": {"cpu": "500m"}}, "1"),
        ({"requests": {"cpu": 8}, "limits": {"cpu": 2}}, "2"),
        ({}, None),
    ],
)
def test_threads_follow_from_the_cpus_that_the_pod_may_use(resources: dict[str, Any], threads: str | None) -> None:
    assert environment(build(compute={"resources": resources})).get("OMP_NUM_THREADS") == threads


def test_gpus_are_asked_for_only_where_there_are_any() -> None:
    assert pod_of(build())["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert pod_of(build(compute={"gpus": 0}))["containers"][0]["resources"] == {}


def test_kueue_labels_come_onto_the_job_and_others_do_not() -> None:
    labels = build(labels={KUEUE_QUEUE: "gpus", KUEUE_PRIORITY: "high", "team": "art"})["metadata"]["labels"]
    assert (labels[KUEUE_QUEUE], labels[KUEUE_PRIORITY], labels.get("team")) == ("gpus", "high", None)


def test_the_operators_configuration_reaches_the_pod() -> None:
    config = Config("image:2", trainer_image_pull_secrets=("pull",), host_aliases=(HostAlias("10.0.0.1", "s3"),))
    made = build(config)
    pod = pod_of(made)
    assert pod["containers"][0]["image"] == "image:2"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["hostAliases"] == [{"ip": "10.0.0.1", "hostnames": ["s3"]}]
    assert through_models(made, "V1Job") == made
