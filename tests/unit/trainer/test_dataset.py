"""The look through the pictures: what is taken, and that everything wrong is told at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darkroom_api.failures import FailureReason
from darkroom_trainer.dataset import scan
from darkroom_trainer.decoding import load_rgb
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.stopping import StopSignal
from tests.builders.pictures import draw, write_pictures

FOLDER = "20_sks robot"


def rejection(directory: Path) -> str:
    with pytest.raises(RunError) as caught:
        scan(directory)
    assert caught.value.reason is FailureReason.DATASET_REJECTED
    return caught.value.message


def test_kohya_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder="20_sks robot")
    write_pictures(tmp_path, folder="3_dog", sizes=[(64, 80)], suffix=".webp")
    pictures = scan(tmp_path)
    assert [(it.name, it.repeats) for it in pictures][:2] == [("20_sks robot/0.png", 20), ("20_sks robot/1.png", 20)]
    assert pictures[-1].size == (64, 80)
    assert pictures[-1].caption == "sks robot, thing 0, blue"


def test_a_missing_caption_becomes_the_class_tokens(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder="5_sks_one robot", sizes=[(64, 64)])
    (tmp_path / "5_sks_one robot" / "0.txt").unlink()
    assert scan(tmp_path)[0].caption == "sks_one robot"


def test_txt_wins_over_caption_and_empty_lines_do_not_count(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[(64, 64), (64, 64)])
    (tmp_path / FOLDER / "0.caption").write_text("other")
    (tmp_path / FOLDER / "0.txt").write_text("\ufeff\n first, line \r\n\n\tsecond\n")
    (tmp_path / FOLDER / "1.txt").rename(tmp_path / FOLDER / "1.caption")
    assert [it.caption for it in scan(tmp_path)] == ["first, line\nsecond", "sks robot, thing 1, blue"]


def test_phone_photos_stand_upright(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[])
    path = tmp_path / FOLDER / "photo.jpg"
    image = Image.new("RGB", (80, 64), "black")
    image.paste("white", (0, 0, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be seen
    image.save(path, exif=exif)
    assert scan(tmp_path)[0].size == (64, 80)
    upright = np.asarray(load_rgb(path))
    assert upright.shape == (80, 64, 3)
    assert upright[:30].mean() > 250
    assert upright[-30:].mean() < 5


def test_transparency_becomes_white_and_16_bits_keep_their_range(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clear)
    assert np.asarray(load_rgb(clear)).min() == 255
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((64, 64), 32768, dtype=np.uint16)).save(deep)
    assert np.unique(np.asarray(load_rgb(deep))).tolist() == [128]


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[(64, 64)] * 5)
    folder = tmp_path / FOLDER
    whole = (folder / "0.png").read_bytes()
    (folder / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "1.png").write_text("no picture")
    (folder / "2.txt").write_text("  \n")
    (folder / "3.txt").write_bytes(b"\xff\xfe\x00")
    draw((64, 64), seed=1).save(folder / "x.bmp")
    draw((64, 64), seed=1).save(tmp_path / "loose.png")
    write_pictures(tmp_path, folder="robots", sizes=[(64, 64)])
    write_pictures(tmp_path, folder="0_never", sizes=[(64, 64)])
    (tmp_path / "4_nothing").mkdir()
    message = rejection(tmp_path)
    for expected in (
        f"{FOLDER}/0.png: cannot be decoded",
        f"{FOLDER}/1.png: is no picture in JPEG, PNG or WebP format",
        f"{FOLDER}/2.png: its caption 2.txt is empty",
        f"{FOLDER}/3.png: its caption 3.txt is not UTF-8",
        f"{FOLDER}/x.bmp: .bmp is not allowed",
        "loose.png: lies outside a folder",
        "robots/: 1 pictures in a folder that is not named REPEATS_NAME",
        "0_never/: 0 repeats; 1 to 10000 are allowed",
        "4_nothing/: no picture in it",
        "Allowed: folders named REPEATS_NAME, such as '20_sks robot'",
    ):
        assert expected in message
    assert f"{FOLDER}/4.png" not in message


def test_a_truncated_jpeg_is_found(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[(640, 480)], suffix=".jpg")
    path = tmp_path / FOLDER / "0.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    assert "0.jpg: cannot be decoded" in rejection(tmp_path)


def test_a_gif_in_disguise_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[])
    draw((64, 64), seed=0).save(tmp_path / FOLDER / "a.png", format="GIF")
    assert "a.png: is no picture in JPEG, PNG or WebP format" in rejection(tmp_path)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[])
    Image.new("1", (20_000, 20_000)).save(tmp_path / FOLDER / "bomb.png")
    assert "bomb.png: is too large" in rejection(tmp_path)


def test_no_picture_at_all(tmp_path: Path) -> None:
    assert "there is no picture; found no folder" in rejection(tmp_path)
    (tmp_path / "raw").mkdir()
    assert "there is no picture; found 'raw'" in rejection(tmp_path)


def test_hidden_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[(64, 64)])
    for name in ("._0.png", ".DS_Store", "notes.md", "0.npz"):
        (tmp_path / FOLDER / name).write_bytes(b"x")
    assert len(scan(tmp_path)) == 1


def test_a_request_to_stop_ends_the_look(tmp_path: Path) -> None:
    write_pictures(tmp_path, folder=FOLDER, sizes=[(64, 64)] * 40)
    stop, looked = StopSignal(), list[None]()

    def before_picture() -> None:
        stop.check()
        looked.append(None)
        stop.request()

    with pytest.raises(StopRequested):
        scan(tmp_path, before_picture=before_picture)
    assert 1 <= len(looked) <= 8  # at most one a thread
