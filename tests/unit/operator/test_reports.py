"""What pods report and what of it comes into the status, when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from darkroom_api.progress import Stage
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.decide.training import decide
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    decided,
    ended,
    job,
    observation,
    record,
    result,
    running,
    snapshot,
    stamp,
    status,
    training,
)


def going(**values: object) -> Snapshot:
    heard = observation(**({"epoch": 1, "step": 5, "loss": 0.5} | values))  # type: ignore[arg-type]
    return decided(snapshot(job=job(), config_map={}, pods=(running(),), observation=heard))


def test_steps_are_held_back_until_the_interval_is_over() -> None:
    before = going()
    later = NOW + timedelta(seconds=2)
    case = replace(before, observation=observation(epoch=1, step=9, received=later))
    plan = decide(case, CONFIG, later)
    assert plan.is_empty
    assert plan.requeue_after == 3
    after = decided(case, now=NOW + timedelta(seconds=5))
    assert status(after)["progress"]["step"] == 9


def test_an_epoch_and_a_checkpoint_are_written_at_once() -> None:
    before = going()
    later = NOW + timedelta(seconds=1)
    epoch = replace(before, observation=observation(epoch=2, step=11, received=later))
    assert status(decided(epoch, now=later))["progress"]["epoch"] == 2
    saved = replace(before, observation=observation(epoch=1, step=9, received=later, checkpoints=[record(1)]))
    assert len(status(decided(saved, now=later))["checkpoints"]) == 1


def test_a_report_that_says_the_same_is_not_written() -> None:
    before = going()
    later = NOW + timedelta(seconds=60)
    case = replace(before, observation=observation(epoch=1, step=5, loss=0.5, received=later, updated=later))
    assert decide(case, CONFIG, later).is_empty


def test_a_pod_that_resumes_takes_no_checkpoint_away() -> None:
    before = going(checkpoints=[record(1), record(2)])
    case = replace(
        before,
        pods=(running("pod-b", age=10),),
        observation=observation("pod-b", epoch=1, step=3, checkpoints=[record(1)]),
    )
    assert [entry["epoch"] for entry in status(decided(case))["checkpoints"]] == [1, 2]


def test_a_pod_that_prepares_itself_to_go_on_takes_no_step_back() -> None:
    before = going(step=42)
    starting = observation("pod-b", stage=Stage.FETCHING, plan=None, epoch=0, step=0)
    later = NOW + timedelta(seconds=30)
    after = decided(replace(before, pods=(running("pod-b", age=10),), observation=starting), now=later)
    found = status(after)["progress"]
    assert (found["stage"], found["epoch"], found["step"], found["percentage"]) == ("Fetching", 1, 42, 42)
    anew = replace(after, observation=observation("pod-b", epoch=1, step=0, received=later + timedelta(seconds=9)))
    assert status(decided(anew, now=later + timedelta(seconds=9)))["progress"]["step"] == 0


def test_a_departed_pods_last_words_count() -> None:
    gone = ended(75, result=result(outcome="Preempted", step=17, epoch=1, checkpoints=[record(1)]), age=50)
    after = decided(replace(going(), pods=(), departed_pods=(gone,)))
    assert status(after)["checkpoints"][0]["epoch"] == 1
    assert status(after)["progress"]["step"] == 17
    assert status(after)["progress"]["epoch"] == 2
    assert "stepsPerSecond" not in status(after)["progress"]


def test_words_of_another_run_or_without_sense_do_not_count() -> None:
    foreign = ended(0, result=result(run="0000000000", checkpoints=[record(1)]))
    assert "checkpoints" not in status(decided(snapshot(job=job(), pods=(foreign,))))
    huge = ended(0, result=result(step=2**63, checkpoints=[record(1)]))
    assert "checkpoints" not in status(decided(snapshot(job=job(), pods=(huge,))))
    beyond = ended(0, result=result(checkpoints=[record(11)]))
    assert "checkpoints" not in status(decided(snapshot(job=job(), pods=(beyond,))))


def test_a_report_of_an_older_pod_does_not_count() -> None:
    case = snapshot(job=job(), pods=(ended(70), running("pod-b", age=5)), observation=observation("pod-a", step=9))
    assert "progress" not in status(decided(case))


def test_success_shows_a_whole_run_even_if_no_report_was_ever_heard() -> None:
    over = snapshot(
        training=training(samples={"prompts": ["a", "b"], "seeds": [3, 4]}),
        job=job(conditions=(("Complete", ""),)),
        pods=(ended(0, result=result(checkpoints=[record(10, samples=3)])),),
    )
    found = status(decided(over))
    assert found["progress"] == {
        "stage": "Done",
        "epoch": 10,
        "step": 100,
        "totalSteps": 100,
        "percentage": 100,
        "lastUpdatedTime": stamp(-31),
    }
    assert found["plan"]["stepsPerEpoch"] == 10
    samples = [uri.rsplit("/", 1)[1] for uri in found["checkpoints"][0]["samples"]]
    assert samples == ["p0-s3.png", "p0-s4.png", "p1-s3.png"]
    assert found["checkpoints"][0]["uri"] == f"{found['output']}/checkpoints/epoch-000010/anna-000010.safetensors"


def test_the_newest_64_checkpoints_are_kept() -> None:
    case = snapshot(
        training=training(training={"epochs": 100}),
        job=job(),
        pods=(running(),),
        observation=observation(stage=Stage.TRAINING, checkpoints=[record(epoch) for epoch in range(1, 101)]),
    )
    assert [entry["epoch"] for entry in status(decided(case))["checkpoints"]] == list(range(37, 101))


def test_a_status_with_all_it_can_hold_fits_into_etcd() -> None:
    prompts, seeds = [f"prompt {number}" for number in range(16)], list(range(16))
    case = snapshot(
        training=training(
            training={"epochs": 64},
            samples={"prompts": prompts, "seeds": seeds},
            output={"uri": "s3://studio/" + "/".join(["x" * 250] * 3)},
        ),
        job=job(),
        pods=(running(),),
        observation=observation(checkpoints=[record(epoch, samples=256) for epoch in range(1, 65)]),
    )
    after = decided(case)
    listed = [len(entry["samples"]) for entry in status(after)["checkpoints"]]
    assert listed == [0] * 63 + [256]
    assert len(json.dumps(after.training)) < 2**19
    assert decide(after, CONFIG, NOW).status_patch == {}
    few = replace(case, training=training(samples={"prompts": prompts[:5], "seeds": seeds}))
    few = replace(few, observation=observation(checkpoints=[record(epoch, samples=80) for epoch in range(1, 6)]))
    assert [len(entry["samples"]) for entry in status(decided(few))["checkpoints"]] == [0, 0, 80, 80, 80]


def test_attempts_are_counted_once() -> None:
    first = decided(snapshot(job=job(), pods=(ended(70),)))
    assert status(first)["attempts"] == 1
    second = decided(replace(first, pods=(ended(70), running("pod-b", age=10))))
    assert status(second)["attempts"] == 2
    third = decided(replace(second, pods=(ended(70), running("pod-c", age=5))))  # pod-b was evicted and is gone
    assert status(third)["attempts"] == 3
    assert status(decided(third)) == status(third)


def test_the_start_is_that_of_the_first_pod_and_stays() -> None:
    first = decided(snapshot(job=job(), pods=(running(age=50),)))
    assert status(first)["startTime"] == stamp(-48)
    second = decided(replace(first, pods=(running("pod-b", age=10),)))
    assert status(second)["startTime"] == stamp(-48)
