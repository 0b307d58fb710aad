"""The plan of a run: its spec is of the class that its kind has."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.kinds import TRAININGS, TrainingKind
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.plan import RunPlan
from tests.builders.specs import MINIMAL, REQUIRED


def plan(kind: str, spec: Any) -> RunPlan:
    about = {"kind": kind, "name": "anna", "namespace": "studio", "uid": "u", "run": "0123456789"}
    return RunPlan.model_validate({**about, "spec": spec})


def refusal(kind: str, spec: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        plan(kind, spec)
    return explain(caught.value, "plan")


def test_a_plan_can_be_of_every_kind_of_training() -> None:
    assert get_args(RunPlan.model_fields["kind"].annotation) == tuple(kind.name for kind in TRAININGS)


@pytest.mark.parametrize("kind", TRAININGS, ids=lambda kind: kind.name)
def test_a_plan_survives_its_own_json_with_all_that_its_kind_has(kind: TrainingKind) -> None:
    made = plan(kind.name, kind.spec.model_validate(REQUIRED[kind.name]))
    read = RunPlan.model_validate_json(made.model_dump_json(by_alias=True, exclude_none=True))
    assert read == made
    assert type(read.spec) is kind.spec


def test_a_spec_of_another_kind_is_refused_by_its_own_fields() -> None:
    told = refusal("EmbeddingTraining", MINIMAL | {"network": {"rank": 0}, "ema": {}})
    assert told.splitlines() == [
        "plan.spec.embedding: Field required",
        "plan.spec.network: Extra inputs are not permitted",
        "plan.spec.ema: Extra inputs are not permitted",
    ]
    assert "instance of ModelTrainingSpec" in refusal("ModelTraining", LoraTrainingSpec.model_validate(MINIMAL))


def test_an_unknown_kind_is_refused_with_those_that_there_are() -> None:
    assert "plan.kind: 'Training': Input should be 'LoraTraining', 'ModelTraining' or" in refusal("Training", MINIMAL)
