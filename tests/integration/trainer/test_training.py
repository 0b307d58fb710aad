"""Whole runs of the trainer's process against a real store: undisturbed, killed, stopped."""

from __future__ import annotations

import io
import json
import math
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from darkroom_api.failures import ExitCode, FailureReason
from tests.builders.mlflow_server import mlflow_server
from tests.builders.s3_proxy import S3Proxy
from tests.e2e.painting import pipeline
from tests.integration.trainer.trainer_runs import Attempt, Bench, Objects, killed_before

STEPS = 8


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Objects:
    """A run that nothing disturbs."""
    attempt = bench.start(bench.spec(), name="calm")
    assert attempt.wait() == ExitCode.DONE, attempt.log
    result = attempt.result
    assert (result.outcome, result.step, result.epoch) == ("Succeeded", STEPS, 2)
    assert [record.epoch for record in result.checkpoints] == [1, 2]
    assert [record.num_samples for record in result.checkpoints] == [2, 2]
    assert result.plan
    assert "10 to 200 are usual" in result.plan.advice[0]
    assert f"Advice: {result.plan.advice[0]}" in attempt.log
    return bench.objects("calm")


def test_a_run_leaves_checkpoints_samples_and_losses(undisturbed: Objects) -> None:
    keys = set(undisturbed.keys())
    expected = {"calm.safetensors", "index.json", "plan.json"}
    for epoch in ("000000", "000001", "000002"):
        expected |= {f"samples/epoch-{epoch}/{name}" for name in ("manifest.json", "p0-s1.png", "p0-s2.png")}
    for epoch in ("000001", "000002"):
        names = ("manifest.json", "metrics.json", f"calm-{epoch}.safetensors")
        expected |= {f"checkpoints/epoch-{epoch}/{name}" for name in names}
    expected |= {f"events/events.out.tfevents.00000{epoch}" for epoch in range(3)}
    assert {key for key in keys if not key.startswith("state/")} == expected


def test_epochs_differ_and_the_last_has_the_plain_name(undisturbed: Objects) -> None:
    one, two = (undisturbed.read(f"checkpoints/epoch-00000{n}/calm-00000{n}.safetensors") for n in (1, 2))
    assert undisturbed.read("calm.safetensors") == two
    first, second = load(one), load(two)
    assert first.keys() == second.keys()
    assert any(not first[name].equal(second[name]) for name in first)


def test_the_losses_of_every_step_are_kept(undisturbed: Objects) -> None:
    documents = [json.loads(undisturbed.read(f"checkpoints/epoch-00000{n}/metrics.json")) for n in (1, 2)]
    assert [step for document in documents for step in document["steps"]] == list(range(1, STEPS + 1))
    assert [len(document["losses"]) for document in documents] == [4, 4]
    rates = [rate for document in documents for rate in document["learningRates"]]
    falling = [(1 + math.cos(math.pi * done / 6)) / 2 for done in range(6)]
    assert rates == pytest.approx([1e-3 * factor for factor in (0, 0.5, *falling)])


def test_tensorboard_shows_one_run_straight_from_the_store(
    undisturbed: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in undisturbed.store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("S3_ENDPOINT", undisturbed.store.endpoint_url)
    shown = EventAccumulator(f"s3://{undisturbed.bucket}/{undisturbed.prefix}/events").Reload()
    documents = [json.loads(undisturbed.read(f"checkpoints/epoch-00000{n}/metrics.json")) for n in (1, 2)]
    losses, rates = shown.Scalars("loss"), shown.Scalars("learning_rate/unet")
    assert [point.step for point in losses] == [point.step for point in rates] == list(range(1, STEPS + 1))
    assert [it.value for it in losses] == pytest.approx([loss for it in documents for loss in it["losses"]])
    assert [it.value for it in rates] == pytest.approx([rate for it in documents for rate in it["learningRates"]])
    half = [point.value / 2 for point in rates]
    assert [point.value for point in shown.Scalars("learning_rate/text_encoder")] == pytest.approx(half)
    pictures = shown.Images("samples/p0-s2")
    assert [(picture.step, picture.width) for picture in pictures] == [(0, 96), (4, 96), (8, 96)]
    assert pictures[2].encoded_image_string == undisturbed.read("samples/epoch-000002/p0-s2.png")


def test_a_run_that_goes_on_from_a_file_begins_with_its_pictures(undisturbed: Objects, bench: Bench) -> None:
    uri = f"s3://{bench.bucket}/{undisturbed.prefix}/calm.safetensors"
    spec = bench.spec(network={"type": "LoRA", "rank": 4, "alpha": 2, "initialWeights": {"uri": uri}})
    attempt = bench.start(spec | {"training": spec["training"] | {"epochs": 1}}, name="further")
    assert attempt.wait() == ExitCode.DONE, attempt.log
    further = bench.objects("further")
    for name in ("p0-s1.png", "p0-s2.png"):
        first, last = (further.read(f"samples/epoch-00000{epoch}/{name}") for epoch in (0, 1))
        assert first == undisturbed.read(f"samples/epoch-000002/{name}")
        assert first != last


def test_samples_begin_before_training_and_change(undisturbed: Objects) -> None:
    pictures = [
        np.asarray(Image.open(io.BytesIO(undisturbed.read(f"samples/epoch-00000{epoch}/p0-s1.png"))))
        for epoch in (0, 1, 2)
    ]
    assert {picture.shape for picture in pictures} == {(96, 96, 3)}
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_a_tracker_gets_every_step_and_one_that_is_away_changes_nothing(bench: Bench, undisturbed: Objects) -> None:
    with mlflow_server() as server:
        trackers = [{"type": "MLflow", "trackingURI": server.url, "experiment": "robots"}]
        code, _ = bench.run_here(bench.spec(trackers=trackers), name="told")
        assert code == ExitCode.DONE
        documents = [json.loads(undisturbed.read(f"checkpoints/epoch-00000{n}/metrics.json")) for n in (1, 2)]
        losses = [loss for document in documents for loss in document["losses"]]
        assert server.values("loss") == dict(enumerate(losses, start=1))
        assert [run["info"]["status"] for run in server.runs.values()] == ["FINISHED"]
        gone = server.url
    alone, _ = bench.run_here(bench.spec(trackers=[{"type": "MLflow", "trackingURI": gone}]), name="alone")
    assert alone == ExitCode.DONE
    last = bench.objects("alone").read("checkpoints/epoch-000002/metrics.json")
    assert last == undisturbed.read("checkpoints/epoch-000002/metrics.json")


def test_a_run_that_is_killed_and_stopped_ends_as_the_undisturbed_one(
    disturbed: Bench, undisturbed: Objects, proxy: S3Proxy
) -> None:
    """SIGTERM in an epoch and in the middle of samples, SIGKILL between manifests and in an epoch: one result."""
    left = disturbed.objects("calm")

    def start() -> Attempt:
        return disturbed.start(disturbed.spec(storage={"endpointURL": proxy.url}), name="calm")

    stopped = start()
    assert stopped.stop(signal.SIGTERM, after="step 3/8") == ExitCode.PREEMPTED, stopped.log
    assert stopped.result.outcome == "Preempted"

    one = killed_before("samples/epoch-000001/manifest.json", start(), proxy)
    assert left.has("checkpoints/epoch-000001/manifest.json")
    assert not left.has("samples/epoch-000001/manifest.json")

    sampling = start()
    assert sampling.stop(signal.SIGTERM, after="Sampling: Epoch 1") == ExitCode.PREEMPTED, sampling.log
    assert not left.has("samples/epoch-000001/manifest.json")
    saved = json.loads(left.read("state/step-00000004/state.json"))["position"]
    assert (saved["step"], saved["closed_epoch"]) == (4, 0)

    two = killed_before("state/step-00000004/manifest.json", start(), proxy)
    assert left.has("samples/epoch-000001/manifest.json")
    assert not left.has("state/step-00000004/manifest.json")

    three = start()
    assert three.stop(signal.SIGKILL, after="step 7/8") == -signal.SIGKILL
    last = start()
    assert last.wait() == ExitCode.DONE, last.log
    assert "Going on after step" in last.log
    for attempt in (stopped, one, sampling, two, three, last):
        assert "other content" not in attempt.log

    ours, theirs = left.results(), undisturbed.results()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_epochs_before_a_failure_are_durable_at_its_end(disturbed: Bench, proxy: S3Proxy) -> None:
    """At this rate the second step's gradient is not finite, while the first epoch's checkpoint still travels."""
    spec = disturbed.spec(
        network={"type": "LoRA", "rank": 1, "alpha": 4096},
        training=disturbed.spec()["training"]
        | {"batchSize": 16, "resolution": 64, "buckets": {"enabled": False}}
        | {"optimizer": {"type": "AdamW", "learningRate": 10}, "schedule": {"type": "Constant"}},
        checkpoints={"precision": "FP32"},
        samples={},
        storage={"endpointURL": proxy.url},
    )
    may_go_on = threading.Event()

    def hold(method: str, path: str) -> None:
        if method == "PUT" and path.partition("?")[0].endswith("/checkpoints/epoch-000001/manifest.json"):
            may_go_on.wait(120)

    proxy.on_request = hold
    failing = disturbed.start(spec)
    failing.wait_until(lambda: "What was finished before the failure" in failing.log)
    may_go_on.set()
    assert failing.wait() == ExitCode.LOSS_NOT_FINITE, failing.log
    assert failing.result.failure
    assert failing.result.failure.reason is FailureReason.LOSS_NOT_FINITE
    assert [record.epoch for record in failing.result.checkpoints] == [1]
    assert disturbed.objects().has("checkpoints/epoch-000001/manifest.json")
    assert disturbed.objects().has("state/step-00000001/manifest.json")


def test_a_diffusers_folder_as_base_model_trains_the_same_lora(
    bench: Bench, base_model: Path, undisturbed: Objects, tmp_path: Path
) -> None:
    pipeline(base_model).save_pretrained(tmp_path / "folder")
    bench.upload(tmp_path / "folder", "models/tiny")
    spec = bench.spec(baseModel={"uri": f"s3://{bench.bucket}/models/tiny/", "family": "SD15"}, samples={})
    code, result = bench.run_here(spec, name="from-folder")
    assert (code, result.step) == (ExitCode.DONE, STEPS)
    written = bench.objects("from-folder").read("from-folder.safetensors")
    ours, theirs = load(written), load(undisturbed.read("calm.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    assert b'"ss_sd_model_name":"tiny.safetensors"' in written
