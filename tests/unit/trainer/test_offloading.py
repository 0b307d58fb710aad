"""What waits in host memory while steps run: only what they can do without, and they do the same without it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_api.captions import Captions
from darkroom_trainer.captions import all_presented, present
from darkroom_trainer.dataset import scan
from darkroom_trainer.items import placed
from darkroom_trainer.offloading import captions_known_ahead, encode_captions, let_wait
from darkroom_trainer.priors import Prior, repeated
from darkroom_trainer.session import Session
from darkroom_trainer.validating import validation_loss
from tests.builders.pictures import write_pictures
from tests.unit.trainer.sessions import Maker, same, weights

LINES = "a, b | c, d\nsecond"
FROZEN: dict[str, Any] = {
    "captions": {"dropout": 0.5, "prefix": "photo of"},
    "optimizer": {"type": "AdamW", "learningRate": 2e-3, "textEncoderLearningRate": 0},
}


@pytest.mark.parametrize(
    ("spec", "listed"),
    [
        ({}, ["a, b | c, d"]),
        ({"several": "Random"}, ["a, b | c, d", "second"]),
        ({"dropout": 0.5}, ["a, b | c, d", ""]),
        ({"dropoutEveryEpochs": 2}, ["a, b | c, d", ""]),
        ({"prefix": "see", "suffix": "end"}, ["see a, b | c, d end"]),
        ({"keepTokensSeparator": "|"}, ["a, b, c, d"]),
        ({"keepTokens": 1}, ["a, b | c, d"]),
        ({"wildcards": True}, ["a, b | c, d"]),
    ],
)
def test_every_caption_that_may_be_shown_is_known(spec: dict[str, Any], listed: list[str]) -> None:
    captions = Captions.model_validate(spec)
    shown = {present(LINES, captions, random.Random(seed), epoch=1 + seed % 2) for seed in range(40)}
    assert all_presented(LINES, captions) == listed
    assert shown == set(listed)


@pytest.mark.parametrize("spec", [{"shuffle": True}, {"tagDropout": 0.1}, {"wildcards": True}])
def test_what_chance_makes_is_not_known(spec: dict[str, Any]) -> None:
    assert all_presented("{a|b|a}, c", Captions.model_validate(spec)) is None


@pytest.mark.parametrize("epoch", [1, 2])
def test_braces_that_are_meant_are_no_chance(epoch: int) -> None:
    captions = Captions(wildcards=True)
    assert all_presented("a {{b}}", captions) == [present("a {{b}}", captions, random.Random(1), epoch=epoch)]


@contextmanager
def at_rest(*modules: torch.nn.Module) -> Iterator[None]:
    """Fail if one of these parts of a model is asked for anything."""

    def asked(module: torch.nn.Module, _: object) -> None:
        raise AssertionError(f"{type(module).__name__} should wait")

    handles = [part.register_forward_pre_hook(asked) for module in modules for part in module.children()]
    yield
    for handle in handles:
        handle.remove()


def with_prior(session: Session, folder: Path) -> Session:
    written = write_pictures(folder, folder="1_robot", sizes=[(96, 96)] * 2)
    items = repeated(placed(scan(written), session.spec.training, path="x"))
    session.course = replace(session.course, prior=Prior(items, 0.5, 42))
    session.latents.fill(session.course.known_ahead, on_item=lambda _: None)
    return session


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_steps_and_validations_need_neither_vae_nor_text_encoders(make: Maker, tmp_path: Path, precision: str) -> None:
    chosen = FROZEN | {"precision": precision, "validation": {"images": 1, "draws": 1}}
    expected, session = (with_prior(make(**chosen), tmp_path / name) for name in ("expected", "session"))
    let_wait(session, before_prompt=lambda: None)

    def losses(of: Session) -> list[float]:
        return [of.step().loss, of.step().loss, validation_loss(of, before_batch=lambda _, __: None)]

    with at_rest(session.model.vae, *session.model.text_parts.values()):
        found = losses(session)
    assert found == losses(expected)
    assert same(weights(session), weights(expected))


@pytest.mark.parametrize(
    "training", [{"captions": {"shuffle": True}}, {"optimizer": {"type": "AdamW"}}], ids=["shuffled", "trained"]
)
def test_text_encoders_stay_where_they_are_needed(make: Maker, training: dict[str, Any]) -> None:
    session = make(**FROZEN | training)
    assert not encode_captions(session, before_prompt=lambda: None)


def test_text_encoders_stay_where_there_is_no_room_for_all_captions(make: Maker) -> None:
    session = make(**FROZEN)
    assert session.prompts
    known = captions_known_ahead(session)
    assert known
    assert (known[0], len(known)) == ("", 1 + len(session.course.items))
    session.prompts.maximum_bytes = 1
    assert not encode_captions(session, before_prompt=lambda: None)
