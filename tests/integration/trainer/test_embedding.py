"""Whole runs of an EmbeddingTraining: what they leave, that a kill changes nothing, and which pictures they refuse."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load

from darkroom_api.failures import ExitCode, FailureReason
from tests.builders.pictures import write_pictures
from tests.integration.trainer.trainer_runs import Attempt, Bench, Objects

KIND = "EmbeddingTraining"
PROMPTS = {"prompts": ["sks robot", "a cat"], "steps": 6}


def embedding_spec(bench: Bench, **changes: Any) -> dict[str, Any]:
    spec = {name: value for name, value in bench.spec().items() if name != "network"}
    return {**spec, "embedding": {"token": "sks", "numVectors": 2, "initializer": "robot"}, **changes}


def start(bench: Bench) -> Attempt:
    spec = embedding_spec(bench, samples=PROMPTS, validation={"images": 1, "draws": 2})
    return bench.start(spec, name="word", kind=KIND)


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Objects:
    """A run that nothing disturbs."""
    attempt = start(bench)
    assert attempt.wait() == ExitCode.DONE, attempt.log
    assert attempt.result.outcome == "Succeeded"
    assert attempt.result.best_epoch in {1, 2}
    return bench.objects("word")


def test_a_run_leaves_an_embedding_of_every_epoch(undisturbed: Objects) -> None:
    one, two = (load(undisturbed.read(f"checkpoints/epoch-00000{n}/word-00000{n}.safetensors")) for n in (1, 2))
    assert {name: tuple(it.shape) for name, it in two.items()} == {"emb_params": (2, 32)}
    assert not one["emb_params"].equal(two["emb_params"])
    assert load(undisturbed.read("word.safetensors"))["emb_params"].equal(two["emb_params"])


def test_samples_of_the_word_change_and_others_stay(undisturbed: Objects) -> None:
    def painted(prompt: int) -> list[np.ndarray]:
        keys = [f"samples/epoch-00000{epoch}/p{prompt}-s1.png" for epoch in (0, 1, 2)]
        return [np.asarray(Image.open(io.BytesIO(undisturbed.read(key)))) for key in keys]

    begun, *later = painted(0)
    assert not any(np.array_equal(begun, picture) for picture in later)
    begun, *later = painted(1)
    assert all(np.array_equal(begun, picture) for picture in later)


def test_a_run_that_is_killed_and_stopped_ends_as_the_undisturbed_one(disturbed: Bench, undisturbed: Objects) -> None:
    stopped = start(disturbed)
    assert stopped.stop(signal.SIGTERM, after="step 2/6") == ExitCode.PREEMPTED, stopped.log
    killed = start(disturbed)
    assert killed.stop(signal.SIGKILL, after="step 5/6") == -signal.SIGKILL
    last = start(disturbed)
    assert last.wait() == ExitCode.DONE, last.log
    assert "Going on after step" in last.log
    ours, theirs = disturbed.objects("word").results(), undisturbed.results()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_captions_without_the_word_end_the_run(disturbed: Bench, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "others", folder="1_robot")
    for path in pictures.rglob("*.txt"):
        path.write_text("a robot")
    disturbed.upload(pictures, "others")
    spec = embedding_spec(disturbed, dataset={"uri": f"s3://{disturbed.bucket}/others"})
    code, result = disturbed.run_here(spec, name="lost", kind=KIND)
    assert code == ExitCode.DATA
    assert result.failure
    assert result.failure.reason is FailureReason.DATASET_REJECTED
    assert "spec.dataset.uri: nothing of 'sks'" in result.failure.message
    assert "1_robot/0.png: its caption lacks the word: 'a robot'" in result.failure.message
    assert "training.captions.prefix: 'sks,'" in result.failure.advice
