"""Whole runs of the trainer's process against a real store: undisturbed, killed, stopped."""

from __future__ import annotations

import io
import json
import signal

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from darkroom_api.failures import ExitCode
from tests.integration.trainer.trainer_runs import Bench, Objects

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
    return bench.objects("calm")


def test_a_run_leaves_checkpoints_samples_and_losses(undisturbed: Objects) -> None:
    keys = set(undisturbed.keys())
    expected = {"calm.safetensors", "index.json", "plan.json"}
    for epoch in ("000000", "000001", "000002"):
        expected |= {f"samples/epoch-{epoch}/{name}" for name in ("manifest.json", "p0-s1.png", "p0-s2.png")}
    for epoch in ("000001", "000002"):
        names = ("manifest.json", "metrics.json", f"calm-{epoch}.safetensors")
        expected |= {f"checkpoints/epoch-{epoch}/{name}" for name in names}
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
    assert documents[1]["learningRates"][-1] == 0


def test_samples_begin_before_training_and_change(undisturbed: Objects) -> None:
    pictures = [
        np.asarray(Image.open(io.BytesIO(undisturbed.read(f"samples/epoch-00000{epoch}/p0-s1.png"))))
        for epoch in (0, 1, 2)
    ]
    assert {picture.shape for picture in pictures} == {(96, 96, 3)}
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_a_run_that_is_killed_and_stopped_ends_as_the_undisturbed_one(bench: Bench, undisturbed: Objects) -> None:
    """SIGKILL at three steps, SIGTERM in the middle of the samples and of an epoch; five attempts, one result."""
    name = "calm"
    disturbed = Bench(bench.store, bench.store.bucket(), bench.directory / "disturbed")
    disturbed.directory.mkdir()
    for key in ("base.safetensors", "pictures"):
        for item in bench.store.client().list_objects_v2(Bucket=bench.bucket, Prefix=key)["Contents"]:
            source = {"Bucket": bench.bucket, "Key": item["Key"]}
            bench.store.client().copy_object(Bucket=disturbed.bucket, Key=item["Key"], CopySource=source)
    spec = disturbed.spec()

    assert disturbed.start(spec, name=name).stop(signal.SIGKILL, after="step 2/8") == -signal.SIGKILL
    stopped = disturbed.start(spec, name=name)
    assert stopped.stop(signal.SIGTERM, after="step 3/8") == ExitCode.PREEMPTED, stopped.log
    assert stopped.result.outcome == "Preempted"
    assert disturbed.start(spec, name=name).stop(signal.SIGKILL, after="Checkpoint of epoch 1") == -signal.SIGKILL
    sampling = disturbed.start(spec, name=name)
    assert sampling.stop(signal.SIGTERM, after="Sampling: Epoch 1") == ExitCode.PREEMPTED, sampling.log
    assert disturbed.start(spec, name=name).stop(signal.SIGKILL, after="step 7/8") == -signal.SIGKILL
    last = disturbed.start(spec, name=name)
    assert last.wait() == ExitCode.DONE, last.log
    assert "Going on after step" in last.log
    assert "other content" not in last.log

    ours, theirs = disturbed.objects(name).results(), undisturbed.results()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []
