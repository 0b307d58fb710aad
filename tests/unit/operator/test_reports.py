"""What pods report and what of it comes into the status, when."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

from darkroom_api.memory import Adaptation, Memory
from darkroom_api.progress import Bucket, EarlyStop, Plan, Stage
from darkroom_operator.decide.snapshot import Snapshot
from darkroom_operator.decide.training import decide
from darkroom_operator.objects import PARENTS
from tests.unit.operator.world import (
    CONFIG,
    NOW,
    STEPS,
    condition,
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


def test_a_checkpoint_is_addressed_by_the_kind_of_its_file() -> None:
    models = next(resource for resource in PARENTS if resource.kind == "ModelTraining")
    for given, suffix in (("Safetensors", ".safetensors"), ("Ckpt", ".ckpt")):
        case = snapshot(
            models,
            training=training(models, checkpoints={"format": given}),
            job=job(),
            config_map={},
            pods=(running(),),
            observation=observation(epoch=1, step=10, checkpoints=[record(1)]),
        )
        assert status(decided(case))["checkpoints"][0]["uri"].endswith(f"/epoch-000001/anna-000001{suffix}")


def test_the_newest_64_checkpoints_are_kept() -> None:
    case = snapshot(
        training=training(training={"epochs": 100}),
        job=job(),
        pods=(running(),),
        observation=observation(stage=Stage.TRAINING, checkpoints=[record(epoch) for epoch in range(1, 101)]),
    )
    assert [entry["epoch"] for entry in status(decided(case))["checkpoints"]] == list(range(37, 101))


def test_the_best_epoch_is_told_as_soon_as_it_is_known_and_stays_listed() -> None:
    before = going(validation_loss=0.123456789, checkpoints=[record(1, loss=0.123456789)], best_epoch=1)
    found = status(before)
    assert (found["bestEpoch"], found["checkpoints"][0]["validationLoss"]) == (1, 0.123457)
    assert found["progress"]["validationLoss"] == 0.123457
    later = NOW + timedelta(seconds=1)
    better = [record(1, loss=0.2), record(2, loss=0.1)]
    case = replace(before, observation=observation(epoch=1, step=6, received=later, checkpoints=better, best_epoch=2))
    assert status(decided(case, now=later))["bestEpoch"] == 2
    many = replace(
        before,
        training=training(training={"epochs": 100}),
        observation=observation(checkpoints=[record(epoch, loss=1) for epoch in range(1, 101)], best_epoch=9),
    )
    after = decided(many)
    assert [entry["epoch"] for entry in status(after)["checkpoints"]] == [9, *range(38, 101)]
    assert decide(after, CONFIG, NOW).is_empty


def test_a_pod_that_does_not_know_the_best_epoch_yet_takes_it_from_nobody() -> None:
    before = going(checkpoints=[record(1, loss=0.5), record(2, loss=0.6)], best_epoch=1)
    starting = replace(before, pods=(running("pod-b", age=10),), observation=observation("pod-b", stage=Stage.FETCHING))
    assert status(decided(starting))["bestEpoch"] == 1
    older = ended(75, result=result(outcome="Preempted", best_epoch=2), age=50)
    assert status(decided(replace(starting, pods=(older, running("pod-b", age=10)))))["bestEpoch"] == 1


def test_a_best_epoch_that_cannot_be_does_not_count() -> None:
    assert "bestEpoch" not in status(going(best_epoch=11))
    over = snapshot(job=job(conditions=(("Complete", ""),)), pods=(ended(0, result=result(best_epoch=11)),))
    assert "bestEpoch" not in status(decided(over))


def stopped_early(*, epoch: int = 3, **values: object) -> Snapshot:
    plan = Plan(images=14, buckets=[], steps_per_epoch=10, total_steps=30)
    words = result(step=30, epoch=3, plan=plan, best_epoch=1, stopped_early=EarlyStop(epoch=epoch, validations=2))
    asked = {"validation": {"images": 1, "earlyStopping": {"patience": 2}}} | values
    return snapshot(training=training(**asked), job=job(conditions=(("Complete", ""),)), pods=(ended(0, result=words),))


def test_a_run_that_stopped_early_succeeds_and_leaves_no_step_outstanding() -> None:
    after = decided(stopped_early())
    found = status(after)
    assert (found["phase"], found["bestEpoch"]) == ("Succeeded", 1)
    progress = {name: found["progress"][name] for name in ("stage", "epoch", "step", "totalSteps", "percentage")}
    assert progress == {"stage": "Done", "epoch": 3, "step": 30, "totalSteps": 30, "percentage": 100}
    ready = condition(after, "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "StoppedEarly")
    assert "after epoch 3 of 10: 2 validations in a row without improvement" in ready["message"]
    assert condition(after, "Complete")["status"] == "True"


def test_an_early_stop_that_was_not_asked_for_or_cannot_be_is_no_reason() -> None:
    for case in (stopped_early(epoch=10), stopped_early(validation={"images": 1}), stopped_early(validation=None)):
        assert condition(decided(case), "Ready")["reason"] == "Succeeded"


def test_advice_and_the_time_it_takes_stand_in_the_status_and_stay() -> None:
    advised = STEPS.model_copy(update={"advice": ["Give more pictures."]})
    before = going(plan=advised)
    assert status(before)["plan"]["advice"] == ["Give more pictures."]
    later = NOW + timedelta(seconds=1)
    timed = advised.model_copy(update={"estimated_seconds": 500})
    after = decided(replace(before, observation=observation(epoch=1, step=6, received=later, plan=timed)), now=later)
    assert status(after)["plan"]["estimatedSeconds"] == 500
    begun = observation("pod-b", stage=Stage.CACHING, plan=advised, epoch=0, step=0, received=later)
    resumed = decided(replace(after, pods=(running("pod-b", age=10),), observation=begun), now=later)
    assert status(resumed)["plan"]["estimatedSeconds"] == 500


def test_lists_that_the_last_word_had_no_room_for_stay_and_its_steps_count() -> None:
    whole = STEPS.model_copy(update={"buckets": [Bucket(width=64, height=64, images=15)], "advice": ["Look."]})
    over = stopped_early()
    case = replace(over, observation=observation(plan=whole, step=30, epoch=3))
    found = status(decided(case))
    assert found["plan"]["buckets"] == [{"width": 64, "height": 64, "images": 15}]
    assert found["plan"]["advice"] == ["Look."]
    assert (found["plan"]["totalSteps"], found["progress"]["step"]) == (30, 30)


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
        observation=observation(checkpoints=[record(epoch, samples=256, loss=0.1) for epoch in range(1, 65)]),
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


def test_what_a_run_does_for_lack_of_memory_is_written_at_once_and_stays() -> None:
    before, told = going(), Memory(adaptation=Adaptation(micro_batch=1, resolution=448))
    shown = {"adaptation": {"microBatch": 1, "resolution": 448, "gradientCheckpointing": False, "tiledLatents": False}}
    later = NOW + timedelta(seconds=1)
    adapted = decided(replace(before, observation=observation(epoch=1, step=5, memory=told, received=later)), now=later)
    assert status(adapted)["memory"] == shown
    starting = observation("pod-b", stage=Stage.FETCHING, plan=None)
    anew = decided(replace(adapted, pods=(running("pod-b", age=1),), observation=starting), now=later)
    assert status(anew)["memory"] == shown
    words = ended(80, result=result(outcome="Failed", memory=Memory(adaptation=Adaptation(micro_batch=1))), age=1)
    assert status(decided(replace(anew, pods=(words,)), now=later))["memory"]["adaptation"].get("resolution") is None
