"""What the operator believes of what a pod answers."""

from __future__ import annotations

from datetime import datetime

import pytest

from darkroom_operator.polling import parse
from tests.unit.operator.world import NOW, RUN, observation


def answer(**values: object) -> bytes:
    return observation(**values).progress.model_dump_json(by_alias=True).encode()  # type: ignore[arg-type]


def test_a_good_answer_is_taken() -> None:
    progress, how = parse(answer(step=3), run=RUN)
    assert how == "ok"
    assert progress
    assert progress.step == 3


def test_a_time_without_zone_is_taken_for_utc() -> None:
    progress, _ = parse(answer(updated=datetime(2026, 11, 22, 12)), run=RUN)
    assert progress
    assert progress.updated == NOW


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (answer(run="0000000000"), "foreign"),
        (answer(step=2**60), "insane"),
        (b"", "invalid"),
        (b"[]", "invalid"),
        (b'{"run": "x"}', "invalid"),
        (answer(step=3).replace(b'"step":3', b'"step":-3'), "invalid"),
        (answer(loss=0.5).replace(b'"loss":0.5', b'"loss":NaN'), "invalid"),
        (b"\xff\xfe", "invalid"),
    ],
)
def test_a_bad_answer_is_not(data: bytes, how: str) -> None:
    assert parse(data, run=RUN) == (None, how)
