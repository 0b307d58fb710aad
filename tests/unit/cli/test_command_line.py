"""Flags that are wrong before anything is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom_cli.__main__ import main
from darkroom_cli.text import duration_text, size_text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "http://x", "--trigger", "sks"], "--to: 'http://x' is not allowed; give s3://BUCKET/KEY"),
        (["--to", "s3://studio", "--class", "robot"], "--trigger: missing"),
        (["--to", "s3://studio", "--trigger", "sks", "--repeats", "0"], "--repeats: 0 is not allowed"),
        (["--to", "s3://studio", "--trigger", "a/b"], "give words without slashes"),
    ],
)
def test_wrong_flags_of_push(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tmp_path), "anna", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_missing_kubeconfig_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "lora/anna", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert "give --kubeconfig FILE" in capsys.readouterr().err


def test_numbers_are_written_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1300, 5_600_000_000)] == ["0 B", "999 B", "1.3 kB", "5.6 GB"]
    assert [duration_text(seconds) for seconds in (-1, 59.4, 185, 7620)] == ["0s", "59s", "3m05s", "2h07m"]
