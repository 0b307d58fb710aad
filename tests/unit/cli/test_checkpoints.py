"""The table of checkpoints: columns that say something, each address whole, the best epoch marked."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from darkroom_cli.checkpoints import checkpoints
from darkroom_cli.resources import Training, parse_reference


def table(status: dict[str, Any]) -> list[str]:
    body = {"metadata": {"uid": "1"}, "spec": {}, "status": status}
    out = io.StringIO()
    training = Training(parse_reference("lora/anna"), "studio", body)
    assert checkpoints(training, store=None, console=Console(file=out, width=20)) == 0
    return out.getvalue().splitlines()


def record(epoch: int, loss: float | None = None) -> dict[str, Any]:
    measured = {} if loss is None else {"validationLoss": loss}
    uri = f"s3://studio/{'long/' * 9}{epoch}"
    return {"epoch": epoch, "step": 10 * epoch, "uri": uri, "sha256": "0" * 64, "sizeBytes": 1300, **measured}


def test_without_validation_there_is_no_column_for_it() -> None:
    lines = [line.split() for line in table({"checkpoints": [record(9), record(10)]})]
    assert lines[0] == ["EPOCH", "STEP", "SIZE", "URI"]
    assert lines[2] == ["10", "100", "1.3", "kB", record(10)["uri"]]


def test_the_best_epoch_is_marked_and_what_was_not_measured_is_empty() -> None:
    lines = table({"checkpoints": [record(1, 0.25), record(2), record(3, 0.3)], "bestEpoch": 1})
    assert [line.split()[:-1] for line in lines] == [
        ["EPOCH", "STEP", "SIZE", "VALIDATION"],
        ["1", "10", "1.3", "kB", "0.2500", "(best)"],
        ["2", "20", "1.3", "kB"],
        ["3", "30", "1.3", "kB", "0.3000"],
    ]
    assert len({line.index("s3://") for line in lines[1:]}) == 1


def test_no_checkpoint_yet_is_told() -> None:
    assert " ".join(table({})).split() == ["lora/anna", "has", "no", "checkpoint", "yet"]
