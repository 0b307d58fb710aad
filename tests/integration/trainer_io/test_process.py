"""The pod's process as the kubelet sees it: exit code, termination message, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.plan import RunPlan
from darkroom_api.progress import Progress, Stage
from darkroom_api.result import RunResult
from dev.cluster.ports import free_ports
from dev.cluster.waiting import wait_for
from tests.integration.trainer_io.conftest import RUN, Place, run_plan

if TYPE_CHECKING:
    from tests.integration.conftest import Store as Server

SECONDS = 30
"""Longest time that a hopeless pod may take here, where six other things run on two cores; alone it takes two."""
HEAVY = {"torch", "numpy", "diffusers", "PIL"}


@dataclass
class Pod:
    """A folder with a plan and an environment, as the operator would set them up."""

    folder: Path
    environ: dict[str, str]

    @property
    def termination(self) -> Path:
        return self.folder / "termination-log"

    @property
    def result(self) -> RunResult:
        return RunResult.model_validate_json(self.termination.read_bytes())

    def write_plan(self, plan: RunPlan | str) -> None:
        text = plan if isinstance(plan, str) else plan.model_dump_json(by_alias=True)
        (self.folder / "plan.json").write_text(text)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, *options, "-m", "darkroom_trainer"]
        return subprocess.Popen(command, env=self.environ, stderr=subprocess.PIPE, text=True)

    def run(self, *options: str) -> tuple[int, str]:
        """Run to the end and return exit code and log."""
        process = self.start(*options)
        try:
            _, log = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, log

    def progress(self) -> Progress | None:
        try:
            url = f"http://127.0.0.1:{self.environ['DARKROOM_PORT']}/progress"
            with urllib.request.urlopen(url, timeout=5) as response:
                return Progress.model_validate_json(response.read())
        except (urllib.error.URLError, ConnectionError):
            return None


@pytest.fixture
def pod(tmp_path: Path, s3: Server) -> Pod:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "work" / "home"),
        "TMPDIR": str(tmp_path / "work" / "tmp"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "DARKROOM_PLAN": str(tmp_path / "plan.json"),
        "DARKROOM_WORK": str(tmp_path / "work"),
        "DARKROOM_POD_NAME": "anna-0123456789-x7",
        "DARKROOM_TERMINATION_LOG": str(tmp_path / "termination-log"),
        "DARKROOM_PORT": str(free_ports(1)[0]),
        "OMP_NUM_THREADS": "1",
    }
    return Pod(tmp_path, environ)


def failure(pod: Pod, reason: FailureReason) -> str:
    """Return the message of a failure that must have this reason."""
    result = pod.result
    assert result.outcome == "Failed"
    assert result.failure is not None
    assert result.failure.reason is reason
    assert result.failure.advice
    return result.failure.message


def imported(log: str) -> set[str]:
    """Return the modules that a log of ``-X importtime`` names."""
    return {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}


def test_a_plan_that_breaks_the_contract_is_told_with_every_problem(pod: Pod, place: Place) -> None:
    text = run_plan(place.bucket).model_dump_json(by_alias=True)
    pod.write_plan(text.replace('"rank":16', '"rank":0').replace('"epochs":10', '"epochs":"ten"'))
    code, log = pod.run()
    message = failure(pod, FailureReason.INVALID_SPEC)
    assert code == 78
    assert "network" in message
    assert "rank: 0" in message
    assert "training.epochs: 'ten'" in message
    assert pod.result.run == RUN
    assert "Traceback" not in log


@pytest.mark.parametrize(("text", "told"), [("{", "plan"), ("[]", "plan"), (None, "cannot be read")])
def test_no_plan_at_all_is_told(text: str | None, told: str, pod: Pod) -> None:
    if text is not None:
        pod.write_plan(text)
    code, _ = pod.run()
    assert code == 78
    assert told in failure(pod, FailureReason.INVALID_SPEC)


def test_a_bucket_that_is_not_there_ends_the_pod_before_torch_is_loaded(pod: Pod, s3: Server) -> None:
    pod.write_plan(run_plan("no-such-bucket", s3.endpoint_url))
    started = time.monotonic()
    code, log = pod.run("-X", "importtime")
    assert code == 66
    assert time.monotonic() - started < SECONDS
    assert "spec.output.uri" in failure(pod, FailureReason.NOT_FOUND)
    assert "no bucket 'no-such-bucket'" in failure(pod, FailureReason.NOT_FOUND)
    assert "darkroom_trainer.store" in imported(log)  # the log does list imports
    assert not imported(log) & HEAVY


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret-key"}, "SignatureDoesNotMatch (HTTP 403)"),
        ({"AWS_ACCESS_KEY_ID": "AKWRONG"}, "InvalidAccessKeyId (HTTP 403)"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "Secret 'studio-s3' has no value for AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_wrong_credentials_end_the_pod_and_are_not_shown(
    environ: dict[str, str], told: str, pod: Pod, place: Place, s3: Server
) -> None:
    pod.environ.update(environ)
    pod.write_plan(run_plan(place.bucket, s3.endpoint_url))
    code, log = pod.run()
    assert code == 77
    assert told in failure(pod, FailureReason.ACCESS_DENIED)
    assert "Traceback" not in log
    for secret in (s3.secret_key, "wrong-secret-key"):
        assert secret not in log + pod.termination.read_text()


def test_a_pod_without_any_identity_is_told_so(pod: Pod, place: Place, s3: Server) -> None:
    plan = run_plan(place.bucket, s3.endpoint_url)
    storage = plan.spec.storage.model_copy(update={"credentials": None})
    pod.write_plan(plan.model_copy(update={"spec": plan.spec.model_copy(update={"storage": storage})}))
    del pod.environ["AWS_ACCESS_KEY_ID"], pod.environ["AWS_SECRET_ACCESS_KEY"]
    code, _ = pod.run()
    assert code == 77
    assert "there are no credentials" in failure(pod, FailureReason.ACCESS_DENIED)


def test_a_store_that_stays_away_is_unavailable(pod: Pod, place: Place) -> None:
    pod.environ["DARKROOM_STORE_PATIENCE_SECONDS"] = "1"
    pod.write_plan(run_plan(place.bucket, f"http://127.0.0.1:{free_ports(1)[0]}"))
    code, _ = pod.run()
    assert code == 69
    assert "connection refused" in failure(pod, FailureReason.STORAGE_UNAVAILABLE)


def test_another_plan_for_the_same_run_is_refused_but_not_for_what_may_change(
    pod: Pod, place: Place, s3: Server
) -> None:
    plan = run_plan(place.bucket, s3.endpoint_url)
    earlier = plan.spec.model_copy(
        update={"training": plan.spec.training.model_copy(update={"seed": 7}), "backoff_limit": 9}
    )
    place.put(
        f"{plan.prefix.key}/plan.json",
        plan.model_copy(update={"spec": earlier}).model_dump_json(by_alias=True).encode(),
    )
    pod.write_plan(plan)
    code, _ = pod.run()
    assert code == 78
    message = failure(pod, FailureReason.INVALID_SPEC)
    assert message.endswith("training changed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_before_training_ends_the_pod_at_once(number: signal.Signals, pod: Pod, place: Place) -> None:
    pod.write_plan(run_plan(place.bucket, f"http://127.0.0.1:{free_ports(1)[0]}"))
    process = pod.start()
    try:
        wait_for(
            lambda: (told := pod.progress()) and "Waiting for the store" in told.message,
            "the report that the store is away",
            timeout=SECONDS,
        )
        told = pod.progress()
        assert told is not None
        assert (told.stage, told.run, told.pod) == (Stage.STARTING, RUN, "anna-0123456789-x7")
        asked = time.monotonic()
        process.send_signal(number)
        _, log = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert time.monotonic() - asked < 10
    assert (pod.result.outcome, pod.result.failure) == ("Preempted", None)
    assert "Preempted at step 0; exit code 75" in log


@pytest.mark.parametrize(
    ("section", "uri", "told"),
    [
        ("base_model", None, "spec.baseModel.uri: s3://{bucket}/models/tiny.safetensors: there is no such object"),
        ("dataset", None, "spec.dataset.uri: s3://{bucket}/data: there is no object below this prefix"),
        ("dataset", "s3://no-such-bucket/data", "spec.dataset.uri: s3://no-such-bucket/data: there is no bucket"),
    ],
)
def test_inputs_that_are_not_there_end_the_pod_before_torch_is_loaded(
    section: str, uri: str | None, told: str, pod: Pod, place: Place, s3: Server
) -> None:
    if section == "dataset":
        place.put("models/tiny.safetensors", b"enough to be there")
        place.put("data/", b"")
    plan = run_plan(place.bucket, s3.endpoint_url)
    if uri:
        changed = getattr(plan.spec, section).model_copy(update={"uri": uri})
        plan = plan.model_copy(update={"spec": plan.spec.model_copy(update={section: changed})})
    pod.write_plan(plan)
    code, log = pod.run("-X", "importtime")
    assert code == 66
    assert failure(pod, FailureReason.NOT_FOUND).startswith(told.format(bucket=place.bucket))
    assert not imported(log) & HEAVY


def test_a_stop_during_the_imports_is_heard(pod: Pod, place: Place, s3: Server) -> None:
    pod.write_plan(run_plan(place.bucket, s3.endpoint_url))
    process = pod.start("-X", "importtime")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip().startswith("pydantic"):  # of hundreds of modules that are still to come
                break
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75
    assert pod.result.outcome == "Preempted"
    assert "darkroom_trainer.store" in imported(log)
    assert not imported(log) & HEAVY
