"""The measuring instruments measure: known answers for the formulas, better than chance for the networks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.instruments import classifier, detector, networks
from benchmarks.instruments.classifier import Reading, agreement, any_scene, draw_scenes, expected, load_classifier
from benchmarks.instruments.diversity import mean_distance, vendi_score
from benchmarks.instruments.networks import augment, shrink, to_tensor
from benchmarks.instruments.painting import held_out_prompts, known_prompts
from examples.base_model.models import build_vae
from examples.base_model.scenes import HELD_OUT
from examples.base_model.subjects import SUBJECTS


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_pictures_that_are_all_alike_count_as_one() -> None:
    same = torch.ones(6, 5)
    assert vendi_score(same) == pytest.approx(1.0)
    assert vendi_score(torch.eye(6)) == pytest.approx(6.0)
    assert vendi_score(torch.cat([torch.eye(3), torch.eye(3)])) == pytest.approx(3.0)


def test_distance_is_in_the_unit_of_the_pictures() -> None:
    black, white = torch.full((1, 3, 4, 4), -1.0), torch.full((1, 3, 4, 4), 1.0)
    assert mean_distance(torch.cat([black, white])) == pytest.approx(2.0)
    assert mean_distance(torch.cat([black, black, white])) == pytest.approx(4 / 3)


def test_a_patterned_thing_needs_both_of_its_colours() -> None:
    wanted = [Reading("cat", ("red",), "white"), Reading("cat", ("red", "blue"), "white")]
    read = [Reading("cat", ("red", "blue"), "black"), Reading("dog", ("blue", "red"), "white")]
    assert agreement(read, wanted) == {"thing": 0.5, "colour": 1.0, "background": 0.5}
    read = [Reading("cat", ("blue", "red"), "white"), Reading("cat", ("blue", "pink"), "white")]
    assert agreement(read, wanted)["colour"] == 0.0


def test_what_a_scene_should_be_read_as() -> None:
    scenes = [any_scene(random.Random(seed)) for seed in range(200)]
    for scene in scenes:
        assert len(expected(scene).colours) == (1 if scene.pattern == "plain" else 2)
    assert {(scene.thing, scene.colour) for scene in scenes} & HELD_OUT  # the judge knows what the model does not


def test_prompts_are_the_same_each_time_and_held_out_ones_are_held_out() -> None:
    assert known_prompts(5) == known_prompts(5)
    known, held_out = known_prompts(300), held_out_prompts(100)
    assert not {(it.wanted.thing, colour) for it in known for colour in it.wanted.colours} & HELD_OUT
    assert {(it.wanted.thing, *it.wanted.colours) for it in held_out} <= HELD_OUT


def test_augmentation_bends_a_picture_and_keeps_it_one() -> None:
    images, _ = draw_scenes(8, seed=3)
    small = shrink(images)
    first, second, other = (augment(small, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert 0.01 < (first - small).abs().mean() < 0.3
    assert first.abs().max() <= 1


def test_pictures_of_any_size_and_mode_are_judged() -> None:
    images = to_tensor([Image.new("L", (40, 90), 255), Image.fromarray(np.zeros((256, 128, 3), np.uint8))])
    assert images.shape == (2, 3, networks.SIDE, networks.SIDE)
    assert images[0].unique().tolist() == [1.0]
    assert images[1].unique().tolist() == [-1.0]


def test_a_classifier_learns_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "CACHE", tmp_path)
    judge = load_classifier(pictures=400, steps=120)
    found = classifier.accuracy(judge, count=80)
    assert found["background"] > 0.8  # chance: 1 in 7
    assert found["colour"] > 0.4  # chance: less than 1 in 8
    assert "training" in capsys.readouterr().out
    images, _ = draw_scenes(8, seed=4)
    assert load_classifier(pictures=400, steps=120).read(images) == judge.read(images)
    assert "training" not in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_examples_for_a_detector_are_balanced_and_hard(name: str) -> None:
    images, labels = detector.draw_examples(name, 48, seed=1)
    assert images.shape == (48, 3, networks.SIDE, networks.SIDE)
    assert labels.sum() == 24
    assert (images.abs() <= 1).all()


def test_a_detector_learns_what_is_new_about_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "CACHE", tmp_path)
    torch.manual_seed(0)
    found = detector.load_detector("monster", build_vae(), key="random", pictures=240, steps=100)
    scores = detector.accuracy(found, "monster", lambda images: images)
    assert scores["with"] > scores["without"] + 0.3
