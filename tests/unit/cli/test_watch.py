"""What `watch` prints, when it ends and with which code, from a given sequence of answers of the cluster."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from darkroom_api.kinds import TRAININGS, TrainingKind
from darkroom_api.names import run_id
from darkroom_cli.errors import UserError
from darkroom_cli.resources import ClusterAwayError, Training, parse_reference
from darkroom_cli.watch import Clock, watch
from tests.builders.specs import REQUIRED

ANNA = parse_reference("lora/anna")
TIME = "2026-01-01T00:00:00Z"


def running(step: int, **more: Any) -> dict[str, Any]:
    progress = {
        "stage": "Training",
        "epoch": 1 + step // 50,
        "step": step,
        "totalSteps": 100,
        "percentage": step,
        "loss": 0.25,
        "stepsPerSecond": 2.0,
        "estimatedRemainingSeconds": 125,
        "lastUpdatedTime": TIME,
    }
    return {"phase": "Running", "startTime": TIME, "attempts": 1, "progress": progress, **more}


SUCCEEDED = {
    "phase": "Succeeded",
    "startTime": TIME,
    "completionTime": "2026-01-01T00:03:05Z",
    "output": "s3://studio/loras/anna-0123456789",
}


class Answers:
    """Gives one answer after the other; None is an absent resource, an exception is raised."""

    def __init__(self, answers: Sequence[dict[str, Any] | Exception | None], *, uids: Sequence[str] = ()) -> None:
        self._answers = list(answers)
        self._uids = list(uids)

    def read(self) -> Training | None:
        answer = self._answers.pop(0)
        uid = self._uids.pop(0) if self._uids else "1"
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return None
        body = {"metadata": {"uid": uid}, "spec": {"training": {"epochs": 2}}, "status": answer}
        return Training(ANNA, "studio", body)


def run(answers: Answers, *, terminal: bool = False) -> tuple[int, str]:
    """Watch without waiting; the sleeps are counted as the only time that passes."""
    passed = [0.0]

    def sleep(seconds: float) -> None:
        passed[0] += seconds

    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, _environ={})
    code = watch(answers, ANNA, console=console, clock=Clock(now=lambda: passed[0], sleep=sleep))
    return code, out.getvalue()


def test_a_run_is_followed_to_its_end_in_plain_lines() -> None:
    checkpoint = {"epoch": 1, "step": 50, "uri": "s3://b/k", "sha256": "0" * 64, "sizeBytes": 1_300_000}
    plan = {
        "images": 15,
        "buckets": [{"width": 64, "height": 96, "images": 150}],
        "stepsPerEpoch": 50,
        "totalSteps": 100,
    }
    code, text = run(
        Answers(
            [
                {},
                {"phase": "Pending"},
                running(0, plan=plan),
                running(1, plan=plan),
                running(10, plan=plan),
                running(50, plan=plan, checkpoints=[checkpoint]),
                running(50, plan=plan, checkpoints=[checkpoint]),
                {**SUCCEEDED, "plan": plan, "checkpoints": [checkpoint]},
            ]
        )
    )
    assert code == 0
    assert text.splitlines() == [
        "Pending",
        "15 pictures in buckets 150×64x96: 50 steps in an epoch, 100 in all",
        "Training  epoch 1/2  step 0/100 (0 %)  loss 0.2500  2.00 steps/s  ETA 2m05s",
        "Training  epoch 1/2  step 10/100 (10 %)  loss 0.2500  2.00 steps/s  ETA 2m05s",
        "checkpoint of epoch 1: s3://b/k (1.3 MB)",
        "Training  epoch 2/2  step 50/100 (50 %)  loss 0.2500  2.00 steps/s  ETA 2m05s",
        "Succeeded after 3m05s",
        "everything lies in s3://studio/loras/anna-0123456789",
    ]


def test_advice_and_the_time_it_takes_are_told_once() -> None:
    plan = {"images": 7, "buckets": [], "stepsPerEpoch": 50, "totalSteps": 100, "advice": ["Give more.", "Wait."]}
    timed = plan | {"estimatedSeconds": 125}
    _, text = run(
        Answers(
            [
                running(0, plan=plan),
                running(1, plan=plan),
                running(2, plan=timed),
                running(3, plan=timed),
                {**SUCCEEDED, "plan": timed},
            ]
        )
    )
    lines = [line for line in text.splitlines() if not line.startswith("Training")]
    assert lines[1:4] == ["advice: Give more.", "advice: Wait.", "all steps take about 2m05s at the measured speed"]
    assert len(lines) == 6


def test_what_is_done_for_lack_of_memory_is_told_when_it_changes() -> None:
    split = {"adaptation": {"microBatch": 1}}
    all_of_it = {"adaptation": {"microBatch": 1, "gradientCheckpointing": True, "resolution": 448}}
    answers = [running(0, memory={}), running(1, memory=split), running(2, memory=split), running(3, memory=all_of_it)]
    _, text = run(Answers([*answers, SUCCEEDED]))
    assert [line for line in text.splitlines() if line.startswith("memory")] == [
        "memory lacked, so the run goes on with 1 picture at once",
        "memory lacked, so the run goes on with 1 picture at once, activations computed twice, pictures of resolution "
        "448",
    ]


def test_the_best_epoch_is_told_with_its_checkpoint_and_at_the_end() -> None:
    def checkpoint(epoch: int, loss: float) -> dict[str, Any]:
        uri = f"s3://b/k{epoch}"
        return {"epoch": epoch, "step": 50, "uri": uri, "sha256": "0" * 64, "sizeBytes": 9, "validationLoss": loss}

    first, second = checkpoint(1, 0.25), checkpoint(2, 0.3)
    plan = {"images": 14, "validationImages": 1, "buckets": [], "stepsPerEpoch": 50, "totalSteps": 100}
    begun = running(1, plan=plan)
    begun["progress"]["validationLoss"] = 0.5
    message = "Stopped early after epoch 2 of 9: 1 validations in a row without improvement."
    ready = {"type": "Ready", "status": "True", "reason": "StoppedEarly", "message": message}
    end = {
        **SUCCEEDED,
        "plan": {**plan, "totalSteps": 60},
        "checkpoints": [first, second],
        "bestEpoch": 1,
        "conditions": [{**ready, "lastTransitionTime": TIME}],
    }
    _, text = run(Answers([begun, running(2, plan=plan, checkpoints=[first], bestEpoch=1), end]))
    assert text.splitlines() == [
        "14 pictures in buckets none: 50 steps in an epoch, 100 in all; 1 other picture for validation",
        "Training  epoch 1/2  step 1/100 (1 %)  loss 0.2500  validation 0.5000  2.00 steps/s  ETA 2m05s",
        "checkpoint of epoch 1: s3://b/k1 (9 B), validation 0.2500 (best)",
        "checkpoint of epoch 2: s3://b/k2 (9 B), validation 0.3000",
        "Succeeded after 3m05s",
        message,
        "the best epoch is 1, validation loss 0.2500: s3://b/k1",
        "everything lies in s3://studio/loras/anna-0123456789",
    ]


def test_a_failed_run_tells_what_to_do_and_exits_with_1() -> None:
    failure = {"reason": "NotFound", "message": "s3://b/k: no such key", "advice": "Check the key.", "pod": "anna-x"}
    code, text = run(Answers([{"phase": "Failed", "failure": failure}]))
    assert code == 1
    assert text.splitlines() == [
        "Failed",
        "NotFound: s3://b/k: no such key",
        "what to do: Check the key.",
        "its log: kubectl logs --namespace studio anna-x",
    ]


def test_a_run_that_is_stuck_says_why_once() -> None:
    condition = {
        "type": "Progressing",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes fit",
        "lastTransitionTime": TIME,
    }
    stuck = {"phase": "Pending", "conditions": [condition]}
    _, text = run(Answers([stuck, stuck, stuck, SUCCEEDED]))
    assert text.count("Pending: Unschedulable: 0/1 nodes fit") == 1


def test_a_retried_attempt_is_told() -> None:
    failure = {"reason": "HostOutOfMemory", "message": "137", "advice": "More."}
    _, text = run(Answers([running(1), running(2, attempts=2, failure=failure), SUCCEEDED]))
    assert "attempt 2 begins\nthe last attempt ended: HostOutOfMemory: 137" in text


def test_a_cluster_that_is_away_is_waited_for() -> None:
    away = [ClusterAwayError("connection refused")] * 4
    code, text = run(Answers([running(1), *away, running(2), SUCCEEDED]))
    assert code == 0
    assert text.count("the cluster does not answer (connection refused); trying again") == 1
    assert "the cluster answers again, after 15s" in text  # 1 + 2 + 4 + 8


def test_a_deleted_training_ends_the_watch() -> None:
    with pytest.raises(UserError, match="was deleted meanwhile"):
        run(Answers([running(1), None]))
    with pytest.raises(UserError, match="was deleted meanwhile"):
        run(Answers([running(1), running(2)], uids=["1", "2"]))


def test_a_training_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="lora/anna does not exist"):
        run(Answers([None]))
    with pytest.raises(UserError, match="does not answer: refused"):
        run(Answers([ClusterAwayError("refused")]))


def test_a_terminal_gets_a_bar_and_the_same_milestones() -> None:
    code, text = run(Answers([running(1), running(2, attempts=2), SUCCEEDED]), terminal=True)
    assert code == 0
    assert "━" in text
    assert "attempt 2 begins" in text
    assert "Succeeded after 3m05s" in text


@pytest.mark.parametrize("text", ["lora/anna", "loratraining/anna", "LoraTrainings/anna"])
def test_references_by_every_name_of_the_kind(text: str) -> None:
    assert str(parse_reference(text)) == "lora/anna"


@pytest.mark.parametrize("kind", TRAININGS, ids=lambda kind: kind.name)
def test_a_training_of_every_kind_can_be_named_and_read(kind: TrainingKind) -> None:
    for name in (kind.short, kind.singular, kind.plural):
        assert parse_reference(f"{name}/anna").kind == kind
    body = {"metadata": {"uid": "u"}, "spec": REQUIRED[kind.name]}
    training = Training(parse_reference(f"{kind.short}/anna"), "studio", body)
    assert type(training.spec) is kind.spec
    assert str(training.prefix) == f"s3://studio/results/anna-{run_id('u')}"


@pytest.mark.parametrize("text", ["anna", "lora/", "pod/anna", ""])
def test_other_references_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give lora/NAME or mt/NAME or emb/NAME, such as lora/anna"):
        parse_reference(text)
