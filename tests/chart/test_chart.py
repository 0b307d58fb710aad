"""The chart's defaults, one test per switch, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from darkroom_api.kinds import KINDS
from darkroom_api.names import GROUP
from tests.chart.conftest import CHART, Objects, Render, RunHelm, as_flags

OPERATOR = ("Deployment", "darkroom-system/darkroom")


def pod(objects: Objects) -> dict[str, Any]:
    specification: dict[str, Any] = objects[OPERATOR]["spec"]["template"]["spec"]
    return specification


def environment(objects: Objects) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in pod(objects)["containers"][0]["env"]}


def rules(objects: Objects, kind: str = "ClusterRole", name: str = "darkroom") -> dict[str, list[str]]:
    return {
        f"{group}/{resource}": rule["verbs"]
        for rule in objects[kind, name]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted path of every value."""
    found: set[str] = set()
    for name, value in values.items():
        nested = isinstance(value, dict) and value and name != "resources"
        found |= leaves(value, f"{prefix}{name}.") if nested else {prefix + name}
    return found


def test_the_defaults_make_these_objects_and_no_others(render: Render) -> None:
    assert set(render({})) == {
        ("ServiceAccount", "darkroom-system/darkroom"),
        ("CustomResourceDefinition", "loratrainings.darkroom.dev"),
        ("CustomResourceDefinition", "modeltrainings.darkroom.dev"),
        ("CustomResourceDefinition", "embeddingtrainings.darkroom.dev"),
        ("ClusterRole", "darkroom"),
        ("ClusterRole", "darkroom-view"),
        ("ClusterRole", "darkroom-edit"),
        ("ClusterRoleBinding", "darkroom"),
        ("Service", "darkroom-system/darkroom-metrics"),
        OPERATOR,
    }


def test_the_operator_may_do_exactly_what_it_does(render: Render) -> None:
    own = {
        f"{GROUP}/{kind.plural}{part}": verbs
        for kind in KINDS
        for part, verbs in (("", ["get", "list", "watch"]), ("/status", ["patch"]), ("/finalizers", ["update"]))
    }
    assert rules(render({})) == own | {
        "batch/jobs": ["get", "list", "watch", "create", "patch", "delete"],
        "/configmaps": ["get", "list", "watch", "create"],
        "/pods": ["list", "watch"],
        "/events": ["create"],
    }


def test_no_role_of_the_chart_reaches_secrets_or_everything(render: Render) -> None:
    objects = render({"watchNamespaces": ["a"]}) | render({})
    roles = [item for (kind, _), item in objects.items() if kind in {"Role", "ClusterRole"}]
    words = {
        word
        for role in roles
        for rule in role["rules"]
        for word in rule["resources"] + rule["apiGroups"] + rule["verbs"]
    }
    assert len(roles) == 4
    assert not words & {"secrets", "*", "impersonate", "escalate", "bind"}


def test_the_roles_cover_every_kind(render: Render) -> None:
    objects = render({})
    for kind in KINDS:
        for role in ("darkroom", "darkroom-view", "darkroom-edit"):
            assert f"{GROUP}/{kind.plural}" in rules(objects, name=role)
        assert ("CustomResourceDefinition", f"{kind.plural}.{GROUP}") in objects


def test_the_pod_fits_restricted_pod_security(render: Render) -> None:
    """Admission by a real API server is shown end to end; this finds a slip in milliseconds."""
    specification = pod(render({}))
    container = specification["containers"][0]
    assert specification["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [set(volume) for volume in specification["volumes"]] == [{"name", "emptyDir"}]


def test_the_operator_is_one_probed_bounded_pod(render: Render) -> None:
    objects = render({})
    container = pod(objects)["containers"][0]
    assert objects[OPERATOR]["spec"]["replicas"] == 1
    assert objects[OPERATOR]["spec"]["strategy"] == {"type": "Recreate"}
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
    assert (container["livenessProbe"]["httpGet"]["path"], container["readinessProbe"]["httpGet"]["path"]) == (
        "/healthz",
        "/readyz",
    )


def test_selectors_meet_the_pod(render: Render) -> None:
    objects = render({"operator.podLabels": {"team": "x"}})
    labels = objects[OPERATOR]["spec"]["template"]["metadata"]["labels"]
    service = objects["Service", "darkroom-system/darkroom-metrics"]
    assert labels["team"] == "x"
    assert objects[OPERATOR]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in pod(objects)["containers"][0]["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports


def test_watch_namespaces_gives_roles_in_them_and_none_for_the_cluster(render: Render) -> None:
    objects = render({"watchNamespaces": ["a", "b"], "rbac.aggregate": False})
    assert {key for key in objects if "Role" in key[0]} == {
        (kind, f"{namespace}/darkroom") for kind in ("Role", "RoleBinding") for namespace in "ab"
    }
    assert rules(objects, "Role", "a/darkroom") == rules(render({}))
    assert objects["RoleBinding", "b/darkroom"]["subjects"][0]["namespace"] == "darkroom-system"
    assert environment(objects)["DARKROOM_NAMESPACES"] == "a,b"
    assert "DARKROOM_NAMESPACES" not in environment(render({}))


def test_crds_are_the_generated_ones_kept_at_uninstall(render: Render) -> None:
    for kind in KINDS:
        name = f"{kind.plural}.{GROUP}"
        generated = yaml.safe_load(Path("crds", f"{GROUP}_{kind.plural}.yaml").read_text())
        kept = render({})["CustomResourceDefinition", name]
        assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert kept == generated
        assert render({"crds.keep": False})["CustomResourceDefinition", name] == generated


def test_crds_can_be_left_out(render: Render) -> None:
    assert not [key for key in render({"crds.install": False}) if key[0] == "CustomResourceDefinition"]


@pytest.mark.parametrize(
    ("values", "gone"),
    [
        ({"rbac.create": False}, {("ClusterRole", "darkroom"), ("ClusterRoleBinding", "darkroom")}),
        ({"rbac.aggregate": False}, {("ClusterRole", "darkroom-view"), ("ClusterRole", "darkroom-edit")}),
        ({"metrics.service": False}, {("Service", "darkroom-system/darkroom-metrics")}),
        (
            {"serviceAccount.create": False, "serviceAccount.name": "mine"},
            {("ServiceAccount", "darkroom-system/darkroom")},
        ),
    ],
)
def test_a_switch_takes_away_its_objects_only(
    render: Render, values: dict[str, Any], gone: set[tuple[str, str]]
) -> None:
    assert set(render({})) - set(render(values)) == gone
    assert set(render(values)) <= set(render({}))


def test_a_service_account_of_ones_own_is_used_and_bound(render: Render) -> None:
    objects = render({"serviceAccount.create": False, "serviceAccount.name": "mine"})
    assert pod(objects)["serviceAccountName"] == "mine"
    assert objects["ClusterRoleBinding", "darkroom"]["subjects"][0]["name"] == "mine"


def test_names_can_be_replaced(render: Render) -> None:
    assert ("Deployment", "darkroom-system/atelier") in render({"fullnameOverride": "atelier"})
    assert ("Deployment", "darkroom-system/darkroom-atelier") in render({"nameOverride": "atelier"})


@pytest.mark.parametrize(
    ("path", "value", "variable", "expected"),
    [
        ("trainer.image", "r/t@sha256:" + "0" * 64, "DARKROOM_TRAINER_IMAGE", "r/t@sha256:" + "0" * 64),
        ("trainer.imagePullPolicy", "Always", "DARKROOM_TRAINER_IMAGE_PULL_POLICY", "Always"),
        ("trainer.imagePullSecrets", ["a", "b"], "DARKROOM_TRAINER_IMAGE_PULL_SECRETS", "a,b"),
        ("trainer.hostAliases", ["10.0.0.1=s3.test"], "DARKROOM_HOST_ALIASES", "10.0.0.1=s3.test"),
        ("operator.logLevel", "DEBUG", "DARKROOM_LOG_LEVEL", "DEBUG"),
        ("operator.logFormat", "text", "DARKROOM_LOG_FORMAT", "text"),
    ],
)
def test_a_value_reaches_the_operator_by_its_variable(
    render: Render, path: str, value: Any, variable: str, expected: str
) -> None:
    assert environment(render({path: value}))[variable] == expected
    assert environment(render({})).get(variable) != expected


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("operator.nodeSelector", {"disk": "ssd"}, "nodeSelector"),
        ("operator.tolerations", [{"operator": "Exists"}], "tolerations"),
        ("operator.affinity", {"podAntiAffinity": {}}, "affinity"),
        ("operator.priorityClassName", "high", "priorityClassName"),
        ("imagePullSecrets", [{"name": "pull"}], "imagePullSecrets"),
    ],
)
def test_a_value_reaches_the_pod(render: Render, path: str, value: Any, field: str) -> None:
    assert pod(render({path: value}))[field] == value
    assert field not in pod(render({}))


def test_values_of_the_container_and_annotations_arrive(render: Render) -> None:
    objects = render(
        {
            "operator.image": "r/o:2",
            "operator.imagePullPolicy": "Always",
            "operator.resources": {"limits": {"memory": "1Gi"}},
            "operator.podAnnotations": {"a": "pod"},
            "serviceAccount.annotations": {"a": "account"},
            "metrics.serviceAnnotations": {"a": "service"},
        }
    )
    container = pod(objects)["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == ("r/o:2", "Always")
    assert container["resources"]["limits"] == {"memory": "1Gi"}
    assert objects[OPERATOR]["spec"]["template"]["metadata"]["annotations"] == {"a": "pod"}
    assert objects["ServiceAccount", "darkroom-system/darkroom"]["metadata"]["annotations"] == {"a": "account"}
    assert objects["Service", "darkroom-system/darkroom-metrics"]["metadata"]["annotations"] == {"a": "service"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"operator.image": ""}, "operator.image: give the operator's image"),
        ({"trainer.image": ""}, "trainer.image: give the trainer's image"),
        ({"operator.imag": "x"}, "additional properties 'imag' not allowed"),
        ({"opertor": {}}, "additional properties 'opertor' not allowed"),
        ({"operator.image": "no-tag"}, "/operator/image"),
        ({"operator.logLevel": "LOUD"}, "/operator/logLevel"),
        ({"watchNamespaces": ["Not_A_Name"]}, "/watchNamespaces/0"),
        ({"trainer.hostAliases": ["s3.test"]}, "/trainer/hostAliases/0"),
        ({"serviceAccount.create": False}, "serviceAccount.name: give the name"),
    ],
)
def test_wrong_values_are_refused_by_name(run_helm: RunHelm, values: dict[str, Any], told: str) -> None:
    result = run_helm("template", "darkroom", str(CHART), *as_flags(values))
    assert result.returncode != 0
    assert told in result.stderr


def test_every_value_is_explained_and_in_the_schema(run_helm: RunHelm) -> None:
    """A value without a comment, or one that the schema does not know, is found here."""
    text = (CHART / "values.yaml").read_text()
    names = {path.rsplit(".", 1)[-1] for path in leaves(yaml.safe_load(text))}
    lines = text.splitlines()
    for name in names:
        places = [number for number, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert places
        assert all(lines[number - 1].strip().startswith("#") for number in places), name
    assert run_helm("lint", "--strict", str(CHART), *as_flags({})).returncode == 0


def test_the_package_holds_the_crds(run_helm: RunHelm, tmp_path: Path, render: Render) -> None:
    assert run_helm("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    (archive,) = tmp_path.iterdir()
    result = run_helm("template", "darkroom", str(archive), "--namespace", "darkroom-system", *as_flags({}))
    kinds = [item["kind"] for item in yaml.safe_load_all(result.stdout) if item]
    assert sorted(kinds) == sorted(kind for kind, _ in render({}))
