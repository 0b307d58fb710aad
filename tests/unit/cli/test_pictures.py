"""What may be pushed, where it goes, and how wrong folders are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom_cli.errors import UserError
from darkroom_cli.pictures import Subject, plan_uploads, without_caption

SKS = Subject(repeats=20, trigger="sks", class_name="robot")


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    return folder


def test_loose_pictures_go_to_kohyas_folder(tmp_path: Path) -> None:
    fill(tmp_path, "b.JPG", "a.png", "a.txt", ".DS_Store", "Thumbs.db", "sub/ignored.png")
    uploads = plan_uploads(tmp_path, SKS)
    assert [upload.key for upload in uploads] == ["20_sks robot/a.png", "20_sks robot/a.txt", "20_sks robot/b.JPG"]
    assert [upload.is_picture for upload in uploads] == [True, False, True]
    assert [path.name for path in without_caption(uploads)] == ["b.JPG"]


def test_masks_go_with_their_pictures_and_are_none(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "a-masklabel.png", "a.txt")
    uploads = plan_uploads(tmp_path, SKS)
    assert [upload.key for upload in uploads] == [
        "20_sks robot/a-masklabel.png",
        "20_sks robot/a.jpg",
        "20_sks robot/a.txt",
    ]
    assert [upload.is_picture for upload in uploads] == [False, True, False]
    assert without_caption(uploads) == []


def test_the_class_may_be_left_out() -> None:
    assert Subject(repeats=3, trigger="sks", class_name="").folder == "3_sks"


def test_kohyas_folders_keep_their_names(tmp_path: Path) -> None:
    fill(tmp_path, "5_anna woman/1.png", "20_sks robot/1.webp", "20_sks robot/1.txt", "other/1.png")
    keys = [upload.key for upload in plan_uploads(tmp_path, None)]
    assert keys == ["20_sks robot/1.txt", "20_sks robot/1.webp", "5_anna woman/1.png"]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["a.png", "clip.mp4"],
            r"clip\.mp4: \.mp4 is not allowed; give \.caption, \.jpeg, \.jpg, \.png, \.txt, \.webp",
        ),
        (["a.png", "a.TXT"], r"a\.TXT: \.TXT is not allowed"),
        (["a.png", "A.txt"], r"A\.txt: a caption without its picture"),
        (["a.png", "README"], r"README: no ending is not allowed"),
        (["a.png", "b.txt"], r"b\.txt: a caption without its picture"),
        (["a.png", "A.jpg"], r"a\.png: A\.jpg has the same name but for case or ending"),
        (["a.png", "b\\c.png"], r"no leading slash, backslash"),
        (["a.txt"], r"a caption without its picture"),
        (["a.png", "b-masklabel.png"], r"b-masklabel\.png: a mask without its picture"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        plan_uploads(fill(tmp_path, *names), SKS)


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "a.png").joinpath("a.txt").touch()
    with pytest.raises(UserError, match=r"a\.txt: empty"):
        plan_uploads(tmp_path, SKS)


def test_all_problems_are_told_at_once_but_not_without_end(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", *(f"{number}.mp4" for number in range(13)))
    with pytest.raises(UserError) as caught:
        plan_uploads(tmp_path, SKS)
    assert str(caught.value).count(".mp4 is not allowed") == 10
    assert "and 3 more" in str(caught.value)


def test_a_folder_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: not a folder"):
        plan_uploads(tmp_path / "nowhere", SKS)
    with pytest.raises(UserError, match="no pictures; give a folder with"):
        plan_uploads(tmp_path, SKS)


def test_loose_and_foldered_pictures_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "20_sks robot/1.png")
    with pytest.raises(UserError, match="both loose and in '20_sks robot'"):
        plan_uploads(tmp_path, SKS)


def test_the_subject_is_given_exactly_when_it_is_needed(tmp_path: Path) -> None:
    fill(tmp_path / "loose", "1.png")
    fill(tmp_path / "kohya", "20_sks robot/1.png")
    with pytest.raises(UserError, match="give --trigger WORD"):
        plan_uploads(tmp_path / "loose", None)
    with pytest.raises(UserError, match="leave out --repeats"):
        plan_uploads(tmp_path / "kohya", SKS)
