from __future__ import annotations

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.uris import S3Location
from darkroom_trainer.errors import RunError
from darkroom_trainer.fetching import MAXIMUM_FILE_BYTES, check_files, check_room
from darkroom_trainer.store import StoredObject
from darkroom_trainer.transferring import SPARE_DISK_BYTES

AT = S3Location("studio", "anna/raw")


def objects(*names: str, size: int = 10) -> list[StoredObject]:
    return [StoredObject(f"anna/raw/{name}", size) for name in names]


def test_names_are_told_below_the_prefix() -> None:
    files = check_files(objects("20_sks robot/a.png", "20_sks robot/a.txt"), AT, free=2**40)
    assert files == {"20_sks robot/a.png": 10, "20_sks robot/a.txt": 10}


def test_a_whole_bucket_may_be_a_dataset() -> None:
    assert check_files([StoredObject("1_a/b.png", 3)], S3Location("studio", ""), free=2**40) == {"1_a/b.png": 3}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("1_a/../../etc/passwd",), "'..'"),
        (("/etc/passwd",), "leading slash"),
        (("1_a/b\\c.png",), "backslash"),
        (("1_a/b\x00.png",), "NUL"),
        (("1_a/" + "x" * 256,), "255 bytes"),
        (("1_a//b.png",), "empty"),
        (("1_a/./b.png",), "empty or '.'"),
        (("1_a/B.png", "1_a/b.png"), "'1_a/B.png' and '1_a/b.png'"),
        (("1_a/straße.png", "1_a/STRASSE.png"), "differ only in case"),
        (("1_a/e\u0301.png", "1_a/\u00e9.png"), "accents"),
        (("1_a", "1_a/b.png"), "'1_a' is both"),
    ],
)
def test_names_that_no_folder_could_hold_are_refused(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(RunError, match="s3://studio/anna/raw") as caught:
        check_files(objects(*names), AT, free=2**40)
    assert caught.value.reason is FailureReason.DATASET_REJECTED
    assert told in caught.value.message
    assert caught.value.advice


def test_nothing_there_is_not_found() -> None:
    with pytest.raises(RunError, match="no object below this prefix") as caught:
        check_files([], AT, free=2**40)
    assert caught.value.reason is FailureReason.NOT_FOUND


def test_sizes_are_bounded() -> None:
    with pytest.raises(RunError, match=rf"{MAXIMUM_FILE_BYTES + 1} bytes; at most {MAXIMUM_FILE_BYTES}"):
        check_files(objects("1_a/b.png", size=MAXIMUM_FILE_BYTES + 1), AT, free=2**40)
    with pytest.raises(RunError, match="only 1000 are free") as caught:
        check_files(objects("1_a/b.png"), AT, free=1000)
    assert "scratchSize" in caught.value.advice


def test_a_folder_needs_room_for_itself_and_the_file_that_is_made_of_it() -> None:
    files, spare = {"unet/a.safetensors": 2000, "vae/b.safetensors": 1000}, SPARE_DISK_BYTES
    check_room(files, AT, free=6000 + spare)
    with pytest.raises(RunError, match=rf"{6000 + spare} bytes are needed .* only {5999 + spare} are free") as caught:
        check_room(files, AT, free=5999 + spare)
    assert "compute.scratchSize" in caught.value.advice
