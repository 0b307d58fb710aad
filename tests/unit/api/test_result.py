"""The termination message always fits into what a kubelet keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.failures import ADVICE, EXIT_CODES, NEVER_RETRIED, ExitCode, FailureReason
from darkroom_api.names import TERMINATION_MESSAGE_BYTES, child_name, run_id
from darkroom_api.progress import MAXIMUM_ADVICE, Bucket, CheckpointRecord, EarlyStop, Plan
from darkroom_api.result import RunFailure, RunResult, decode_result, encode_result


def checkpoint(epoch: int) -> CheckpointRecord:
    return CheckpointRecord(
        epoch=epoch,
        step=epoch * 75,
        sha256="ab" * 32,
        size_bytes=123_456_789,
        num_samples=4,
        validation_loss=0.1234567890123456 / epoch,
    )


def test_small_result_survives() -> None:
    result = RunResult(
        run="0123456789",
        outcome="Succeeded",
        step=750,
        epoch=10,
        checkpoints=[checkpoint(10)],
        best_epoch=10,
        stopped_early=EarlyStop(epoch=10, validations=3),
    )
    assert decode_result(encode_result(result).decode()) == result


@given(
    num_checkpoints=st.integers(0, 300),
    num_buckets=st.integers(0, 400),
    advice=st.lists(st.text(max_size=400), max_size=MAXIMUM_ADVICE),
    message=st.text(max_size=1024),
)
def test_any_result_fits_and_keeps_the_newest_checkpoints(
    num_checkpoints: int, num_buckets: int, advice: list[str], message: str
) -> None:
    result = RunResult(
        run="0123456789",
        outcome="Failed",
        plan=Plan(
            images=15,
            buckets=[Bucket(width=64 + i, height=64, images=i) for i in range(num_buckets)],
            steps_per_epoch=75,
            total_steps=750,
            advice=advice,
        ),
        checkpoints=[checkpoint(epoch) for epoch in range(1, num_checkpoints + 1)],
        best_epoch=1,
        failure=RunFailure(reason=FailureReason.NOT_FOUND, message=message, advice="Look again."),
    )
    data = encode_result(result)
    assert len(data) <= TERMINATION_MESSAGE_BYTES
    kept = decode_result(data.decode())
    assert kept is not None
    assert kept.failure is not None
    assert kept.best_epoch == 1
    if kept.checkpoints:
        assert kept.checkpoints[-1].epoch == num_checkpoints


def test_ten_epochs_fit_whole() -> None:
    result = RunResult(run="0123456789", outcome="Succeeded", checkpoints=[checkpoint(epoch) for epoch in range(1, 11)])
    kept = decode_result(encode_result(result).decode())
    assert kept is not None
    assert len(kept.checkpoints) == 10


def test_foreign_text_is_no_result() -> None:
    assert decode_result("Traceback (most recent call last):") is None


def test_every_reason_has_advice_and_every_pod_reason_an_exit_code() -> None:
    assert set(ADVICE) == set(FailureReason)
    seen_from_outside = {"DeadlineExceeded", "HostOutOfMemory", "ImagePull", "ScratchFull", "Unschedulable"}
    assert set(FailureReason) - set(EXIT_CODES) == seen_from_outside


def test_what_a_retry_may_mend_is_retried() -> None:
    assert not {ExitCode.UNAVAILABLE, ExitCode.PREEMPTED, ExitCode.SOFTWARE} & set(NEVER_RETRIED)


def test_longest_name_fits_into_a_job_name() -> None:
    assert len(child_name("a" * 50, run_id("some uid"))) <= 63
