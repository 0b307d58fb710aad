"""Whole runs of the trainer's process against a real store, as a pod would make them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom_api.plan import RunPlan
from darkroom_api.result import RunResult, decode_result
from darkroom_trainer.__main__ import main
from tests.builders.s3_proxy import S3Proxy
from tests.integration.conftest import Store

RUN = "0123456789"
SPEC: dict[str, Any] = {
    "network": {"type": "LoRA", "rank": 4, "alpha": 2},
    "training": {
        "epochs": 2,
        "batchSize": 2,
        "resolution": 96,
        "buckets": {"minimum": 64, "maximum": 128, "step": 32},
        "optimizer": {"type": "AdamW", "learningRate": 1e-3},
        "schedule": {"type": "Cosine", "warmupSteps": 2},
        "objective": {"minSnrGamma": 5},
        "captions": {"shuffle": True, "keepTokens": 1, "dropout": 0.2},
    },
    "checkpoints": {"stateEverySeconds": 1},
    "samples": {"prompts": ["sks robot"], "seeds": [1, 2], "steps": 6},
    "compute": {"gpus": 0},
}


@dataclass
class Bench:
    """A bucket with a base model and pictures, and a place on the disk."""

    store: Store
    bucket: str
    directory: Path
    runs: int = field(default=0)

    def upload(self, local: Path, key: str) -> None:
        """Upload a file, or everything below a folder."""
        client = self.store.client()
        for path in [local] if local.is_file() else sorted(it for it in local.rglob("*") if it.is_file()):
            name = key if local.is_file() else f"{key}/{path.relative_to(local)}"
            client.upload_file(str(path), self.bucket, name)

    def spec(self, **changes: Any) -> dict[str, Any]:
        """Return a short training's spec; fields of `training` may be given as such."""
        spec = {
            "baseModel": {"uri": f"s3://{self.bucket}/base.safetensors"},
            "dataset": {"uri": f"s3://{self.bucket}/pictures"},
            "output": {"uri": f"s3://{self.bucket}/out"},
            "storage": {"endpointURL": self.store.endpoint_url},
            **SPEC,
        }
        return {**spec, **changes}

    def start(
        self,
        spec: dict[str, Any],
        *,
        name: str = "anna",
        kind: str = "LoraTraining",
        environment: dict[str, str] | None = None,
    ) -> Attempt:
        """Start the trainer's process for one attempt at a run."""
        work = self._work(spec, name, kind=kind)
        with (work / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "darkroom_trainer"],
                env=os.environ | self._environment(work) | (environment or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return Attempt(work, process)

    def run_here(
        self, spec: dict[str, Any], *, name: str = "anna", kind: str = "LoraTraining"
    ) -> tuple[int, RunResult]:
        """Run in this process, where torch is loaded already; return exit code and last word."""
        work = self._work(spec, name, kind=kind)
        code = main(self._environment(work))
        result = decode_result((work / "termination").read_text())
        assert result
        return code, result

    def _work(self, spec: dict[str, Any], name: str, *, kind: str = "LoraTraining") -> Path:
        self.runs += 1
        work = self.directory / f"attempt-{self.runs}"
        work.mkdir()
        about = {"kind": kind, "name": name, "namespace": "studio", "uid": "u", "run": RUN}
        plan = RunPlan.model_validate({**about, "spec": spec})
        (work / "plan.json").write_text(plan.model_dump_json(by_alias=True))
        return work

    def _environment(self, work: Path) -> dict[str, str]:
        return {
            **self.store.environment(),
            "DARKROOM_PLAN": str(work / "plan.json"),
            "DARKROOM_WORK": str(work / "scratch"),
            "DARKROOM_TERMINATION_LOG": str(work / "termination"),
            "DARKROOM_PORT": "0",
            "DARKROOM_STORE_PATIENCE_SECONDS": "10",
            "OMP_NUM_THREADS": "1",
            "HOME": str(work / "home"),
        }

    def objects(self, name: str = "anna") -> Objects:
        """Return what a run left."""
        return Objects(self.store, self.bucket, f"out/{name}-{RUN}")


@dataclass
class Attempt:
    """A process and where it works."""

    work: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """Return what it said so far."""
        return (self.work / "log").read_text()

    @property
    def result(self) -> RunResult:
        """Return its last word."""
        result = decode_result((self.work / "termination").read_text())
        assert result, self.log
        return result

    def wait(self, timeout: float = 240) -> int:
        """Return the exit code."""
        return self.process.wait(timeout)

    def wait_until(self, condition: Callable[[], bool], *, timeout: float = 240) -> None:
        """Wait for a condition while the process runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self, number: signal.Signals, *, after: str) -> int:
        """Send a signal once the log has a line with this text, and return the exit code."""
        self.wait_until(lambda: after in self.log)
        self.process.send_signal(number)
        return self.wait()


@dataclass(frozen=True)
class Objects:
    """What lies below a run's prefix."""

    store: Store
    bucket: str
    prefix: str

    def keys(self) -> list[str]:
        """Return all keys, without the prefix."""
        pages = self.store.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        return sorted(it["Key"].removeprefix(f"{self.prefix}/") for page in pages for it in page.get("Contents", []))

    def has(self, key: str) -> bool:
        """Tell whether an object is there."""
        return key in self.keys()

    def read(self, key: str) -> bytes:
        """Return an object's content."""
        return self.store.client().get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()

    def results(self) -> dict[str, bytes]:
        """Return all that a person keeps of a run: weights, pictures, losses and curves, byte for byte."""
        return {
            key: self.read(key)
            for key in self.keys()
            if key.startswith(("checkpoints/", "samples/", "events/", "regularization/"))
            or (key.endswith((".safetensors", ".ckpt")) and "/" not in key)
        }


def killed_before(key: str, attempt: Attempt, proxy: S3Proxy) -> Attempt:
    """Kill a process when it asks to write an object, which is not written then."""

    def kill(method: str, path: str) -> None:
        if method == "PUT" and path.partition("?")[0].endswith(f"/{key}"):
            attempt.process.kill()
            attempt.process.wait()
            raise ConnectionResetError

    proxy.on_request = kill
    assert attempt.wait() == -signal.SIGKILL, attempt.log
    proxy.on_request = None
    return attempt
