"""watch, checkpoints and sheet against a real API server and a real store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from darkroom_cli.__main__ import main
from darkroom_cli.sheet import BEST, GAP, HEADER_HEIGHT, LABEL_WIDTH, MISSING
from dev.cluster.waiting import wait_for
from tests.integration.cli.conftest import Cluster, Run

if TYPE_CHECKING:
    from tests.integration.conftest import Store

TIME = "2026-01-01T00:00:00Z"
Output = pytest.CaptureFixture[str]


def command(cluster: Cluster, *arguments: str) -> int:
    return main([*arguments, "-n", "default", "--kubeconfig", str(cluster.kubeconfig)])


def watching(run: Run, log: Path) -> subprocess.Popen[bytes]:
    """Start `watch` as a process of its own, as a person does, with its output in a file."""
    program = [sys.executable, "-m", "darkroom_cli", "watch", "lora/robot"]
    environment = {**os.environ, "KUBECONFIG": str(run.cluster.kubeconfig), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        return subprocess.Popen(program, stdout=out, stderr=out, env=environment)


def test_watch_follows_the_status_to_success(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = watching(run, log)
    try:
        wait_for(lambda: "Pending" in log.read_text(), "the first line", timeout=30)
        progress = {"stage": "Training", "epoch": 1, "step": 5, "totalSteps": 20, "percentage": 25, "loss": 0.5}
        run.cluster.tell("robot", {"phase": "Running", "progress": {**progress, "lastUpdatedTime": TIME}})
        wait_for(lambda: "epoch 1/2  step 5/20 (25 %)  loss 0.5000" in log.read_text(), "the progress", timeout=30)
        run.cluster.tell("robot", {"phase": "Succeeded", "output": str(run.prefix)})
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    assert log.read_text().splitlines()[-2:] == ["Succeeded", f"everything lies in {run.prefix}"]


def test_watch_ends_with_1_when_the_run_fails(run: Run, capsys: Output) -> None:
    failure = {"reason": "AccessDenied", "message": "s3://b: refused", "advice": "Check the Secret."}
    run.cluster.tell("robot", {"phase": "Failed", "failure": failure})
    assert command(run.cluster, "watch", "lora/robot") == 1
    assert "AccessDenied: s3://b: refused\nwhat to do: Check the Secret." in capsys.readouterr().out


def test_watch_ends_when_the_training_is_deleted(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = watching(run, log)
    try:
        wait_for(lambda: "Pending" in log.read_text(), "the first line", timeout=30)
        run.cluster.delete("robot")
        assert process.wait(timeout=30) == 1
    finally:
        process.kill()
        process.wait()
    assert "lora/robot was deleted meanwhile; its objects in the store stay" in log.read_text()


def test_ctrl_c_ends_a_watch_without_a_traceback(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = watching(run, log)
    try:
        wait_for(lambda: "Pending" in log.read_text(), "the first line", timeout=30)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()


def test_what_is_not_there_is_told(cluster: Cluster, capsys: Output) -> None:
    assert command(cluster, "watch", "lora/nobody") == 1
    assert "lora/nobody does not exist" in capsys.readouterr().err


def test_checkpoints_are_listed_and_verified(run: Run, capsys: Output) -> None:
    run.cluster.tell("robot", {"phase": "Succeeded", "checkpoints": run.put_checkpoints([1, 2])})
    assert command(run.cluster, "checkpoints", "lora/robot", "--verify") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    uri = f"{run.prefix}/checkpoints/epoch-000002/robot-000002.safetensors"
    assert lines[0] == ["EPOCH", "STEP", "SIZE", "IN", "THE", "STORE", "URI"]
    assert lines[2] == ["2", "20", "9", "B", "verified", uri]


def test_checkpoints_show_the_validation_loss_and_the_best(run: Run, capsys: Output) -> None:
    records = run.put_checkpoints([1, 2])
    for record, loss in zip(records, (0.25, 0.3), strict=True):
        record["validationLoss"] = loss
    run.cluster.tell("robot", {"phase": "Succeeded", "checkpoints": records, "bestEpoch": 1})
    assert command(run.cluster, "checkpoints", "lora/robot") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:-1] for line in lines] == [
        ["EPOCH", "STEP", "SIZE", "VALIDATION"],
        ["1", "10", "9", "B", "0.2500", "(best)"],
        ["2", "20", "9", "B", "0.3000"],
    ]


def test_checkpoints_that_are_gone_or_changed_are_found(run: Run, capsys: Output) -> None:
    records = run.put_checkpoints([1, 2, 3, 4])
    folder = run.prefix.join("checkpoints")
    store = run.store.client()
    store.delete_object(Bucket=folder.bucket, Key=f"{folder.key}/epoch-000001/robot-000001.safetensors")
    store.delete_object(Bucket=folder.bucket, Key=f"{folder.key}/epoch-000002/manifest.json")
    store.put_object(Bucket=folder.bucket, Key=f"{folder.key}/epoch-000003/robot-000003.safetensors", Body=b"short")
    records[3]["sha256"] = "f" * 64
    run.cluster.tell("robot", {"checkpoints": records})
    assert command(run.cluster, "checkpoints", "lora/robot", "--verify") == 1
    text = capsys.readouterr().out
    assert all(word in text for word in ("missing", "no manifest", "size differs: 5 B", "manifest differs"))
    assert command(run.cluster, "checkpoints", "lora/robot") == 0


def test_the_sheet_shows_what_manifests_name(run: Run, tmp_path: Path, capsys: Output) -> None:
    red, blue, green = (200, 0, 0), (0, 0, 200), (0, 200, 0)
    run.put_samples(0, {"p0-s1.png": red, "p1-s1.png": blue})
    run.put_samples(1, {"p0-s1.png": green})
    run.put_samples(2, {"p0-s1.png": blue}, manifest=False)  # an upload that was cut off
    run.cluster.tell("robot", {"bestEpoch": 1})
    output = tmp_path / "new" / "sheet.png"
    assert command(run.cluster, "sheet", "lora/robot", "--output", str(output)) == 0
    picture = Image.open(output)
    assert picture.size == (LABEL_WIDTH + 2 * (64 + GAP) + GAP, HEADER_HEIGHT + 2 * (64 + GAP) + GAP)
    left, top = LABEL_WIDTH + GAP + 32, HEADER_HEIGHT + GAP + 32
    cells = [picture.getpixel((left + x * (64 + GAP), top + y * (64 + GAP))) for y in (0, 1) for x in (0, 1)]
    assert cells == [red, green, blue, MISSING]
    assert [picture.getpixel((LABEL_WIDTH + GAP + x * (64 + GAP), 1)) == BEST for x in (0, 1)] == [False, True]
    assert f"wrote {output}" in capsys.readouterr().out


def test_a_sheet_without_samples_and_a_replaced_picture_are_told(run: Run, tmp_path: Path, capsys: Output) -> None:
    output = ["--output", str(tmp_path / "sheet.png")]
    assert command(run.cluster, "sheet", "lora/robot", *output) == 1
    assert "no samples yet" in capsys.readouterr().err
    run.put_samples(0, {"p0-s1.png": (1, 2, 3)})
    key = run.prefix.join("samples/epoch-000000/p0-s1.png").key
    run.store.client().put_object(Bucket=run.prefix.bucket, Key=key, Body=b"other")
    assert command(run.cluster, "sheet", "lora/robot", *output) == 1
    assert "its content is not what" in capsys.readouterr().err


def test_a_flag_wins_over_the_address_that_pods_use(run: Run, s3: Store, capsys: Output) -> None:
    run.cluster.tell("robot", {"checkpoints": run.put_checkpoints([1])})
    wrong = ["--endpoint-url", "http://127.0.0.1:1"]
    assert command(run.cluster, "checkpoints", "lora/robot", "--verify", *wrong) == 1
    assert "the store at http://127.0.0.1:1 does not answer" in capsys.readouterr().err
    right = ["--endpoint-url", s3.endpoint_url]
    assert command(run.cluster, "checkpoints", "lora/robot", "--verify", *right) == 0
