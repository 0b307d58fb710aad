"""The drawn pictures: what a caption says is what the picture shows, and a seed gives the same pixels."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.base_model.drawing import DARK, render, render_oddity, to_array
from examples.base_model.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PATTERNS,
    THINGS,
    Scene,
    sample_held_out,
    sample_scene,
)
from examples.base_model.subjects import SUBJECTS, draw_class, draw_subject, write_class, write_subject


def share_of(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(image.astype(int) - colour).max(axis=2) <= 2).mean())


def test_a_seed_gives_the_same_pictures() -> None:
    first, second = (
        [to_array(render(sample_scene(rng))) for _ in range(5)] + [to_array(render_oddity(rng)) for _ in range(5)]
        for rng in (random.Random(3), random.Random(3))
    )
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_captions_say_what_is_seen() -> None:
    rng = random.Random(0)
    for _ in range(60):
        scene = sample_scene(rng)
        words = scene.caption.split()
        image = to_array(render(scene))
        assert scene.thing in words
        assert scene.colour in words
        assert (scene.second in words) == (scene.pattern != "plain")
        assert share_of(image, BACKGROUNDS[scene.background]) > 0.2
        assert share_of(image, COLOURS[scene.colour]) > 0.01
        if scene.pattern != "plain":
            assert share_of(image, COLOURS[scene.second]) > 0.004
        drawn = np.abs(image.astype(int) - BACKGROUNDS[scene.background]).max(axis=2) > 30
        middle = np.nonzero(drawn)[1].mean() / image.shape[1]
        assert ("left" in words) <= (middle < 0.47)
        assert ("right" in words) <= (middle > 0.53)


@pytest.mark.parametrize("thing", THINGS)
def test_things_and_patterns_differ(thing: str) -> None:
    def picture(other: str, pattern: str) -> np.ndarray:
        scene = Scene(other, "red", "blue", pattern, "white", "large", 0.42, 0.5, 0.5)
        return to_array(render(scene)).astype(int)

    own = picture(thing, "plain")
    assert all(np.abs(own - picture(other, "plain")).mean() > 2 for other in THINGS if other != thing)
    assert len({picture(thing, pattern).tobytes() for pattern in PATTERNS}) == len(PATTERNS)


def test_a_thing_never_leaves_the_picture() -> None:
    rng = random.Random(1)
    for _ in range(60):
        scene = sample_scene(rng)
        image = to_array(render(scene))
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (np.abs(corners.astype(int) - BACKGROUNDS[scene.background]) <= 2).all()


def test_combinations_held_out_are_never_shown() -> None:
    rng = random.Random(2)
    for scene in (sample_scene(rng) for _ in range(2000)):
        shown = {scene.colour} if scene.pattern == "plain" else {scene.colour, scene.second}
        assert not HELD_OUT & {(scene.thing, colour) for colour in shown}, scene.caption
    held_out = [sample_held_out(rng) for _ in range(300)]
    assert {(scene.thing, scene.colour) for scene in held_out} == HELD_OUT
    # every thing and every colour is held out once, so each is seen seven times as often as it is asked for unseen
    assert {thing for thing, _ in HELD_OUT} == set(THINGS)
    assert {colour for _, colour in HELD_OUT} == set(COLOURS)


CHARACTERS = [name for name, subject in SUBJECTS.items() if subject.face is not None]


@pytest.mark.parametrize("name", CHARACTERS)
def test_a_character_is_bold_and_its_captions_tell_nothing_of_it(name: str) -> None:
    subject, pictures = SUBJECTS[name], draw_subject(name, 15)
    face = subject.face
    assert face is not None
    features = [COLOURS[colour] for colour in subject.colours] + [it for it in (face.horns, face.hat) if it is not None]
    for picture in pictures:
        assert f"{subject.trigger} {subject.noun}" in picture.caption
        words = set(picture.caption.split()) - {"left", "right"}
        assert not words & {*COLOURS, *PATTERNS, "eye", "eyes", "horns", "hat"}
        pixels = to_array(picture.image)
        assert min(share_of(pixels, colour) for colour in features) > 0.003
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert any((np.abs(corners - colour) <= 2).all() for colour in BACKGROUNDS.values())


def test_the_style_changes_how_any_thing_looks() -> None:
    pictures = draw_subject("style", 20)
    assert len({picture.caption for picture in pictures}) == 20
    for picture in pictures:
        assert picture.caption.startswith("lun style, a ")
        pixels = to_array(picture.image)
        background = next(colour for name, colour in BACKGROUNDS.items() if f" {name} background" in picture.caption)
        assert (np.abs(pixels[2, 2].astype(int) - background) <= 2).all()
        assert (np.abs(pixels[-2, 2].astype(int) - np.array(background) * 0.55) <= 3).all()
        assert share_of(pixels, DARK) > 0.005


def test_regularisation_pictures_show_the_class_and_nothing_new(tmp_path: Path) -> None:
    folder = write_class("robot", tmp_path, count=12)
    assert folder == tmp_path / "1_robot"
    captions = [path.read_text().strip() for path in sorted(folder.glob("*.txt"))]
    assert len(captions) == len(list(folder.glob("*.png"))) == 12
    for picture, caption in zip(draw_class("robot", 12), captions, strict=True):
        assert picture.caption == caption
        assert "robot" in caption
        assert SUBJECTS["robot"].trigger not in caption.split()


def test_no_two_subjects_share_a_trigger() -> None:
    assert len({subject.trigger for subject in SUBJECTS.values()}) == len(SUBJECTS) >= 4
    with pytest.raises(ValueError, match=r"subject: got 'dog'; allowed: robot, cat, monster, style"):
        draw_subject("dog", 1)


def test_subject_folder_is_what_trainers_take(tmp_path: Path) -> None:
    folder = write_subject("robot", tmp_path, count=15)
    assert folder == tmp_path / "10_sks robot"
    images = sorted(folder.glob("*.png"))
    assert [path.stem for path in images] == [f"{index:02d}" for index in range(1, 16)]
    sizes = set()
    for path in images:
        caption = path.with_suffix(".txt").read_text().strip()
        assert "sks robot" in caption
        assert not {"teal", "orange", "striped", "eye", "horns"} & set(caption.split())
        with Image.open(path) as image:
            sizes.add(image.size)
            pixels = np.asarray(image)
        assert min(share_of(pixels, COLOURS[colour]) for colour in ("teal", "orange", "yellow")) > 0.004
    assert {width > height for width, height in sizes} == {True, False}
    assert all(128 <= side <= 192 for size in sizes for side in size)


def test_the_subject_is_deterministic_and_varied() -> None:
    first, second = draw_subject("robot", 15), draw_subject("robot", 15)
    assert [picture.caption for picture in first] == [picture.caption for picture in second]
    assert [picture.image.tobytes() for picture in first] == [picture.image.tobytes() for picture in second]
    assert {background for background in BACKGROUNDS if any(background in p.caption for p in first)} == set(BACKGROUNDS)


def test_drawing_the_subject_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from examples.base_model.__main__ import main; "
        f"code = main(['draw-subject', '--output', {str(tmp_path)!r}, '--count', '2']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)
    assert len(list(tmp_path.rglob("*.png"))) == 2
