"""Where the demo takes place: the cluster that runs, the example as it stands, and kubectl and helm for both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.uris import S3Location, parse_s3
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

FOLDER = "darkroom-demo"
"""In somebody else's store everything lies below this."""

Object = dict[str, Any]


class Addresses(NamedTuple):
    """Where in the store things lie."""

    base_model: S3Location
    dataset: S3Location
    output: S3Location

    def below(self, root: S3Location) -> Addresses:
        """Return the addresses moved below one folder; what was a bucket is a folder there."""
        return Addresses(*(root.join(location.bucket, location.key) for location in self))


def example_addresses(manifest: Object) -> Addresses:
    """Return the addresses that a manifest names."""
    spec = manifest["spec"]
    uris = (spec["baseModel"]["uri"], spec["dataset"]["uri"], spec["output"]["uri"])
    return Addresses(*(parse_s3(uri) for uri in uris))


@dataclass(frozen=True)
class Site:
    """A cluster with its S3 store."""

    state: State
    is_existing: bool
    environment: Mapping[str, str]
    addresses: Addresses

    @classmethod
    def of(cls, state: State, *, is_existing: bool, environment: Mapping[str, str] = os.environ) -> Site:
        """Return the site of a running cluster, with the environment for its command-line tools."""
        path = f"{binaries.kubernetes_directory()}:{binaries.helm().parent}:{environment.get('PATH', '')}"
        addresses = example_addresses(yaml.safe_load(EXAMPLE.read_text()))
        if is_existing:
            addresses = addresses.below(S3Location(state.bucket, FOLDER))
        return cls(state, is_existing, {**environment, "KUBECONFIG": state.kubeconfig, "PATH": path}, addresses)

    def example(self) -> Object:
        """Return the example's manifest; only the store and the addresses in it differ where they are others."""
        manifest: Object = yaml.safe_load(EXAMPLE.read_text())
        spec = manifest["spec"]
        spec["storage"] |= {"endpointURL": self.state.s3.url, "region": self.state.s3.region}
        for field, location in zip(("baseModel", "dataset", "output"), self.addresses, strict=True):
            spec[field]["uri"] = str(location)
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
