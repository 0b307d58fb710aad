"""Least rights: restricted pod security for both images, and no Secret for the operator."""

from __future__ import annotations

import pytest

from dev.demo.site import SYSTEM_NAMESPACE
from tests.e2e.conftest import Lab


def test_both_namespaces_enforce_restricted_pod_security(lab: Lab) -> None:
    for namespace in (SYSTEM_NAMESPACE, lab.kubectl.namespace):
        found = lab.kubectl.get("namespace", namespace)
        assert found
        assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("verb", ["get", "list", "watch"])
def test_operator_may_not_read_secrets(lab: Lab, verb: str) -> None:
    who = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{lab.operator_service_account}"
    for scope in (["--all-namespaces"], ["--namespace", SYSTEM_NAMESPACE], ["--namespace", lab.kubectl.namespace]):
        answer = lab.kubectl.run("auth", "can-i", verb, "secrets", f"--as={who}", *scope, check=False)
        assert answer.stdout.strip() == "no", answer


def test_operator_may_do_what_it_does(lab: Lab) -> None:
    who = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{lab.operator_service_account}"
    for verb, resource in (("create", "jobs.batch"), ("watch", "loratrainings.darkroom.dev"), ("watch", "pods")):
        answer = lab.kubectl.run("auth", "can-i", verb, resource, f"--as={who}", "--all-namespaces", check=False)
        assert answer.stdout.strip() == "yes", (verb, resource, answer)
