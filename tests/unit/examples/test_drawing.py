"""The drawn pictures: what a caption says is what the picture shows, and a seed gives the same pixels."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.base_model.drawing import render, render_oddity, to_array
from examples.base_model.scenes import BACKGROUNDS, COLOURS, PATTERNS, THINGS, Scene, sample_scene
from examples.base_model.subject import draw_subject, write_subject


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


def test_subject_folder_is_what_trainers_take(tmp_path: Path) -> None:
    folder = write_subject(tmp_path, count=15)
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
    first, second = draw_subject(15), draw_subject(15)
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
