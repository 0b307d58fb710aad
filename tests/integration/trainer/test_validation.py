"""Whole runs that choose their epoch: what they leave, how they end early, and that a kill changes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from darkroom_api.failures import ExitCode
from darkroom_api.objects import Index
from darkroom_api.progress import EarlyStop
from tests.builders.pictures import write_pictures
from tests.builders.s3_proxy import S3Proxy
from tests.integration.trainer.trainer_runs import Attempt, Bench, Objects, killed_before

VALIDATION: dict[str, Any] = {"images": 1, "draws": 6}


def index_of(objects: Objects) -> Index:
    return Index.model_validate_json(objects.read("index.json"))


def curve(objects: Objects) -> dict[int, float]:
    return {it.epoch: it.loss for it in index_of(objects).validations}


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Attempt:
    """A run that holds out one picture and that nothing disturbs."""
    attempt = bench.start(bench.spec(validation=VALIDATION), name="calm")
    assert attempt.wait() == ExitCode.DONE, attempt.log
    return attempt


def test_a_run_leaves_its_curve_and_says_which_epoch_is_best(undisturbed: Attempt, bench: Bench) -> None:
    result, left = undisturbed.result, bench.objects("calm")
    losses = {record.epoch: record.validation_loss for record in result.checkpoints}
    assert list(losses) == [1, 2]
    assert result.best_epoch == min(losses, key=lambda epoch: (losses[epoch], epoch))
    assert result.plan
    assert (result.plan.images, result.plan.validation_images, result.step) == (3, 1, result.plan.total_steps)
    index = index_of(left)
    assert (index.best_epoch, index.checkpoints) == (result.best_epoch, result.checkpoints)
    assert list(curve(left)) == [0, 1, 2]
    assert {epoch: loss for epoch, loss in curve(left).items() if epoch} == losses
    for epoch in (1, 2):
        metrics = json.loads(left.read(f"checkpoints/epoch-00000{epoch}/metrics.json"))
        assert metrics["validationLoss"] == losses[epoch]
        so_far = dict(zip(metrics["validations"]["epochs"], metrics["validations"]["losses"], strict=True))
        assert so_far == {at: loss for at, loss in curve(left).items() if at <= epoch}
    assert "Validating: Epoch 0: batch 1 of 3" in undisturbed.log


def test_a_run_that_is_killed_and_stopped_measures_the_same_to_the_bit(
    disturbed: Bench, undisturbed: Attempt, bench: Bench, proxy: S3Proxy
) -> None:
    """SIGTERM in a validation, SIGKILL after one whose checkpoint is there but whose state is not, and in an epoch."""
    calm, left = bench.objects("calm"), disturbed.objects("calm")

    def start() -> Attempt:
        spec = disturbed.spec(validation=VALIDATION, storage={"endpointURL": proxy.url})
        return disturbed.start(spec, name="calm")

    stopped = start()
    assert stopped.stop(signal.SIGTERM, after="Validating: Epoch 1") == ExitCode.PREEMPTED, stopped.log
    per_epoch = stopped.result.plan.steps_per_epoch if stopped.result.plan else 0
    position = json.loads(left.read(f"state/step-{per_epoch:08d}/state.json"))["position"]
    assert (position["closed_epoch"], position["validated_epochs"]) == (0, [0])
    assert not left.has("checkpoints/epoch-000001/manifest.json")

    one = killed_before("samples/epoch-000001/manifest.json", start(), proxy)
    assert left.has("checkpoints/epoch-000001/manifest.json")

    two = start()
    assert two.stop(signal.SIGKILL, after=f"step {per_epoch + 1}/") == -signal.SIGKILL
    last = start()
    assert last.wait() == ExitCode.DONE, last.log
    assert "Going on after step" in last.log
    for attempt in (stopped, one, two, last):
        assert "other content" not in attempt.log

    assert curve(left) == curve(calm)
    assert last.result.best_epoch == undisturbed.result.best_epoch
    assert last.result.checkpoints == undisturbed.result.checkpoints
    ours, theirs = left.results(), calm.results()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_a_run_without_improvement_ends_early_and_well_even_if_it_is_killed_there(
    disturbed: Bench, proxy: S3Proxy
) -> None:
    """No epoch improves by so much, so the first ends the run; killed before that is recorded, it ends there again."""
    stopping = {"patience": 1, "minimumImprovement": 1000}
    spec = disturbed.spec(
        validation=VALIDATION | {"earlyStopping": stopping},
        training=disturbed.spec()["training"] | {"epochs": 5},
        checkpoints={"everyEpochs": 2},
        storage={"endpointURL": proxy.url},
    )
    killed = killed_before("samples/epoch-000001/manifest.json", disturbed.start(spec, name="short"), proxy)
    assert "Stopping early after epoch 1; validations without improvement: 1" in killed.log
    for _ in range(2):  # the second time all of it is recorded
        attempt = disturbed.start(spec, name="short")
        assert attempt.wait() == ExitCode.DONE, attempt.log
        result = attempt.result
        assert (result.outcome, result.epoch, result.best_epoch) == ("Succeeded", 1, 1)
        assert result.stopped_early == EarlyStop(epoch=1, validations=1)
        assert result.plan
        assert result.step == result.plan.total_steps == result.plan.steps_per_epoch
    left = disturbed.objects("short")
    assert left.read("short.safetensors") == left.read("checkpoints/epoch-000001/short-000001.safetensors")
    assert left.has("samples/epoch-000001/p0-s2.png")
    assert not left.has("checkpoints/epoch-000002/manifest.json")
    plan = index_of(left).plan
    assert plan
    assert plan.total_steps == plan.steps_per_epoch


def test_a_dataset_of_its_own_judges_and_the_other_is_trained_on_whole(bench: Bench, tmp_path: Path) -> None:
    others = write_pictures(tmp_path / "others", folder="7_sks robot", sizes=[(90, 70)], suffix=".webp")
    bench.upload(others, "others")
    validation = {"dataset": {"uri": f"s3://{bench.bucket}/others"}, "everyEpochs": 2, "draws": 2}
    code, result = bench.run_here(bench.spec(validation=validation, samples={}), name="apart")
    assert code == ExitCode.DONE
    assert result.plan
    assert (result.plan.images, result.plan.validation_images) == (4, 1)
    assert [record.validation_loss is not None for record in result.checkpoints] == [False, True]
    assert result.best_epoch == 2
    assert list(curve(bench.objects("apart"))) == [0, 2]
