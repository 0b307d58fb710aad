"""Whole runs that train a model: class pictures painted by the run, checkpoints that keep every key, stops, kills."""

from __future__ import annotations

import io
import json
import signal
from typing import Any

import pytest
import torch
from safetensors.torch import load

from darkroom_api.failures import ExitCode
from tests.builders.s3_proxy import S3Proxy
from tests.integration.trainer.trainer_runs import SPEC, Attempt, Bench, Objects, killed_before

KIND = "ModelTraining"
OWN: dict[str, Any] = {
    "training": SPEC["training"] | {"optimizer": {"type": "AdamW", "learningRate": 1e-3}},
    "regularization": {"class": "robot", "images": 18, "priorWeight": 0.5},
    "samples": {"prompts": ["sks robot"], "seeds": [1], "steps": 2},
    "ema": {"decay": 0.9},
}


def model_spec(bench: Bench, **changes: Any) -> dict[str, Any]:
    spec = {name: value for name, value in bench.spec().items() if name != "network"}
    return {**spec, **OWN, **changes}


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Objects:
    attempt = bench.start(model_spec(bench), name="calm", kind=KIND)
    assert attempt.wait() == ExitCode.DONE, attempt.log
    return bench.objects("calm")


def test_each_epoch_leaves_a_whole_checkpoint(bench: Bench, undisturbed: Objects) -> None:
    base = load(bench.store.client().get_object(Bucket=bench.bucket, Key="base.safetensors")["Body"].read())
    one, two = (load(undisturbed.read(f"checkpoints/epoch-00000{n}/calm-00000{n}.safetensors")) for n in (1, 2))
    assert base.keys() == one.keys() == two.keys()
    assert not torch.equal(one["model.diffusion_model.out.2.weight"], two["model.diffusion_model.out.2.weight"])
    vae = [name for name in base if name.startswith("first_stage_model.")]
    assert all(torch.equal(two[name], base[name]) for name in vae)
    assert undisturbed.read("calm.safetensors") == undisturbed.read("checkpoints/epoch-000002/calm-000002.safetensors")


def test_the_classs_pictures_are_kept_beside_it(undisturbed: Objects) -> None:
    painted = [key for key in undisturbed.results() if key.startswith("regularization/") and key.endswith(".png")]
    assert len(painted) == 18
    assert painted[0] == "regularization/set-000000/class-000000.png"


def test_stopped_while_painting_and_killed_it_ends_as_the_undisturbed_one(
    disturbed: Bench, undisturbed: Objects, proxy: S3Proxy
) -> None:
    left = disturbed.objects("calm")

    def start() -> Attempt:
        spec = model_spec(disturbed, storage={"endpointURL": proxy.url})
        return disturbed.start(spec, name="calm", kind=KIND)

    painting = start()
    assert painting.stop(signal.SIGTERM, after="Picture 1 of 18 of the class") == ExitCode.PREEMPTED, painting.log
    assert not left.has("regularization/set-000000/manifest.json")
    killed_before("regularization/set-000001/manifest.json", start(), proxy)
    assert left.has("regularization/set-000000/manifest.json")
    one = killed_before("checkpoints/epoch-000001/manifest.json", start(), proxy)
    assert "Published regularization/set-000000" not in one.log
    assert "Published regularization/set-000001" in one.log
    two = start()
    assert two.stop(signal.SIGKILL, after="step 6/8") == -signal.SIGKILL, two.log
    last = start()
    assert last.wait() == ExitCode.DONE, last.log
    assert "Going on after step" in last.log
    assert "of the class" not in last.log

    ours, theirs = left.results(), undisturbed.results()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_a_ckpt_and_pictures_of_the_class_that_are_given(bench: Bench) -> None:
    bench.upload(bench.directory / "pictures" / "2_sks robot", "class/1_robot")
    spec = model_spec(
        bench,
        regularization={"uri": f"s3://{bench.bucket}/class", "priorWeight": 0.5},
        checkpoints={"format": "Ckpt", "precision": "FP32", "everyEpochs": 2},
    )
    attempt = bench.start(spec, name="given", kind=KIND)
    assert attempt.wait() == ExitCode.DONE, attempt.log
    left = bench.objects("given")
    tensors = torch.load(io.BytesIO(left.read("given.ckpt")), weights_only=True)["state_dict"]
    assert tensors["model.diffusion_model.out.2.weight"].dtype == torch.float32
    assert left.read("given.ckpt") == left.read("checkpoints/epoch-000002/given-000002.ckpt")
    index = json.loads(left.read("index.json"))
    assert [it["epoch"] for it in index["checkpoints"]] == [2]
