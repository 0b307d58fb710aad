"""Where the demo takes place: the cluster that runs, the example as it stands, and kubectl and helm for both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from darkroom_api.lora_training import LoraTrainingSpec
from dev.cluster import binaries
from dev.cluster.console import ClusterError
from dev.cluster.full import State
from dev.cluster.paths import REPOSITORY, cache_directory

EXAMPLE = REPOSITORY / "examples" / "lora-training.yaml"
CHART = REPOSITORY / "charts" / "darkroom"
SHEET = REPOSITORY / "demo" / "samples.png"
RELEASE = "darkroom"
SYSTEM_NAMESPACE = "darkroom-system"
NAMESPACE = "demo"

Object = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A cluster with its S3 store."""

    state: State
    is_existing: bool
    environment: Mapping[str, str]

    @classmethod
    def of(cls, state: State, *, is_existing: bool, environment: Mapping[str, str] = os.environ) -> Site:
        """Return the site of a running cluster, with the environment for its command-line tools."""
        path = f"{binaries.kubernetes_directory()}:{binaries.helm().parent}:{environment.get('PATH', '')}"
        return cls(state, is_existing, {**environment, "KUBECONFIG": state.kubeconfig, "PATH": path})

    def example(self) -> Object:
        """Return the example's manifest; only the store's address differs where the store is another one."""
        manifest: Object = yaml.safe_load(EXAMPLE.read_text())
        manifest["spec"]["storage"]["endpointURL"] = self.state.s3.url
        manifest["spec"]["storage"]["region"] = self.state.s3.region
        return manifest

    def spec(self) -> LoraTrainingSpec:
        return LoraTrainingSpec.model_validate(self.example()["spec"])

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl and return what it printed."""
        return self._run("kubectl", arguments, stdin=stdin, check=check)

    def helm(self, *arguments: str, check: bool = True) -> str:
        """Run helm and return what it printed."""
        return self._run("helm", arguments, stdin=None, check=check)

    def apply(self, *objects: Object) -> None:
        """Apply objects as `kubectl apply -f -` does; what is secret in them is on no command line."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, *what: str) -> Object | None:
        """Return an object, None if there is none."""
        text = self.kubectl("get", *what, "--output=json", "--ignore-not-found")
        found: Object | None = json.loads(text) if text.strip() else None
        return found

    def _run(self, program: str, arguments: tuple[str, ...], *, stdin: str | None, check: bool) -> str:
        done = subprocess.run(
            [program, *arguments], env=self.environment, input=stdin, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            shown = " ".join(arguments)
            raise ClusterError(f"{program} {shown}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
        return done.stdout


def scratch() -> Path:
    """Return the directory of what the demo makes on the way."""
    return cache_directory() / "demo"
