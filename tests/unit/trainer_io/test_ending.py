from __future__ import annotations

import errno
import io
import logging
from pathlib import Path

import pytest

from darkroom_api.failures import EXIT_CODES, FailureReason
from darkroom_api.memory import Adaptation, Memory
from darkroom_api.names import TERMINATION_MESSAGE_BYTES
from darkroom_api.progress import Bucket, CheckpointRecord, EarlyStop, Plan
from darkroom_api.result import decode_result
from darkroom_trainer import logs
from darkroom_trainer.ending import judge, leave_message
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.reporting import Reporter

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.fixture
def reporter() -> Reporter:
    reporter = Reporter("0123456789", "anna-0")
    reporter.planned(Plan(images=15, buckets=[], steps_per_epoch=10, total_steps=30))
    reporter.restored(epoch=2, step=19)
    reporter.checkpointed(CheckpointRecord(epoch=1, step=10, sha256="a" * 64, size_bytes=5))
    return reporter


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301 - the traceback is the point
    except BaseException as caught:  # noqa: BLE001
        return caught


@pytest.mark.parametrize("reason", sorted(EXIT_CODES))
def test_every_reason_has_its_exit_code_and_is_told(reason: FailureReason, reporter: Reporter) -> None:
    end = judge(RunError(reason, "a/b: 3 is not allowed"), run="0123456789", reporter=reporter)
    assert end.code == EXIT_CODES[reason]
    assert end.result.outcome == "Failed"
    assert end.result.failure is not None
    assert end.result.failure.reason is reason
    assert end.result.failure.message == "a/b: 3 is not allowed"
    assert end.result.failure.advice
    assert (end.result.step, end.result.epoch) == (19, 1)
    assert [one.epoch for one in end.result.checkpoints] == [1]


def test_success_and_a_stop_are_no_failures(reporter: Reporter) -> None:
    done = judge(None, run="0123456789", reporter=reporter)
    assert (done.code, done.result.outcome, done.result.failure) == (0, "Succeeded", None)
    stopped = judge(StopRequested(), run="0123456789", reporter=reporter)
    assert (stopped.code, stopped.result.outcome, stopped.result.failure) == (75, "Preempted", None)


def test_the_last_word_tells_the_best_epoch_and_why_epochs_were_left_out(reporter: Reporter) -> None:
    assert judge(None, run="0123456789", reporter=reporter).result.best_epoch is None
    reporter.checkpointed(CheckpointRecord(epoch=2, step=20, sha256="a" * 64, size_bytes=5, validation_loss=0.25))
    reporter.restored(epoch=2, step=20)
    reporter.stopped_early(EarlyStop(epoch=2, validations=1))
    told = judge(None, run="0123456789", reporter=reporter).result
    assert (told.best_epoch, told.stopped_early) == (2, EarlyStop(epoch=2, validations=1))
    assert told.plan
    assert (told.step, told.plan.total_steps, told.epoch) == (20, 20, 2)


def test_the_last_word_tells_what_was_tried_for_lack_of_memory(reporter: Reporter) -> None:
    tried = Adaptation(micro_batch=1, gradient_checkpointing=True)
    reporter.adapted(tried)
    error = RunError(FailureReason.ACCELERATOR_OUT_OF_MEMORY, "the accelerator's 7.8 GiB are not enough")
    end = judge(error, run="0123456789", reporter=reporter)
    assert end.code == 80
    assert end.result.memory == Memory(adaptation=tried)


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("x"), KeyboardInterrupt(), SystemExit(0)])
def test_anything_else_is_a_bug_with_its_place(error: BaseException) -> None:
    end = judge(raised(error), run="", reporter=None)
    assert end.code == 70
    assert end.result.failure is not None
    assert end.result.failure.reason is FailureReason.INTERNAL_ERROR
    assert type(error).__name__ in end.result.failure.message
    assert "test_ending.py:" in end.result.failure.message
    assert "in raised" in end.result.failure.message


def test_a_full_disk_names_the_field_that_helps() -> None:
    end = judge(raised(OSError(errno.ENOSPC, "No space left on device")), run="", reporter=None)
    assert end.result.failure is not None
    assert "scratchSize" in end.result.failure.advice


def test_a_termination_message_always_fits_and_reads_back(tmp_path: Path, reporter: Reporter) -> None:
    buckets = [Bucket(width=512, height=512, images=1)] * 500
    reporter.planned(Plan(images=15, buckets=buckets, steps_per_epoch=10, total_steps=30))
    for epoch in range(200):
        reporter.checkpointed(CheckpointRecord(epoch=epoch, step=epoch, sha256="b" * 64, size_bytes=5))
    error = RunError(FailureReason.DATASET_REJECTED, "\u00e9" * 5000, advice="\u00e9" * 5000)
    leave_message(judge(error, run="0123456789", reporter=reporter).result, tmp_path / "log")
    data = (tmp_path / "log").read_bytes()
    assert len(data) <= TERMINATION_MESSAGE_BYTES
    told = decode_result(data.decode())
    assert told is not None
    assert told.failure is not None
    assert told.failure.reason is FailureReason.DATASET_REJECTED


def test_no_place_for_the_message_is_no_second_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_message(judge(None, run="", reporter=None).result, tmp_path / "none" / "log")
    assert "No such file" in caplog.text


def test_secrets_show_in_no_message_and_no_line() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "", "HF_TOKEN": "hf_abcdefgh"}
    secrets = logs.secrets_of(environ)
    end = judge(raised(ValueError(f"bad {SECRET}")), run="", reporter=None, secrets=secrets)
    assert end.result.failure is not None
    assert SECRET not in end.result.failure.message
    stream = io.StringIO()
    kept = logging.getLogger().handlers[:]
    try:
        logs.configure(environ, stream)
        logging.getLogger("x").warning("key %s and %s", SECRET, "hf_abcdefgh")
        logging.getLogger("x").error("bug", exc_info=ValueError(SECRET))
    finally:
        logging.captureWarnings(capture=False)
        logging.getLogger().handlers[:] = kept
    assert "key *** and ***" in stream.getvalue()
    assert SECRET not in stream.getvalue()
