"""push against a real store: layout, repeats, and what is never overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from darkroom_cli.__main__ import main

if TYPE_CHECKING:
    from tests.integration.conftest import Store

Output = pytest.CaptureFixture[str]
SUBJECT = ["--trigger", "sks", "--class", "robot", "--repeats", "20"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"picture %d" % number)
        (folder / f"{number}.txt").write_text(f"caption {number}")
    return folder


@pytest.fixture
def bucket(s3: Store, credentials: None) -> str:
    return s3.bucket()


def push(s3: Store, photos: Path, bucket: str, *more: str) -> int:
    to = f"s3://{bucket}/sets"
    return main(["push", str(photos), "robot", "--to", to, "--endpoint-url", s3.endpoint_url, *(more or SUBJECT)])


def objects(s3: Store, bucket: str) -> dict[str, bytes]:
    listed = s3.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: s3.client().get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}


def test_pictures_and_captions_lie_in_kohyas_layout(s3: Store, photos: Path, bucket: str, capsys: Output) -> None:
    assert push(s3, photos, bucket) == 0
    assert objects(s3, bucket) == {
        f"sets/robot/20_sks robot/{path.name}": path.read_bytes() for path in photos.iterdir()
    }
    text = capsys.readouterr().out
    assert "uploaded 6 files" in text
    assert f"3 pictures and 3 captions lie in s3://{bucket}/sets/robot" in text


def test_a_second_push_uploads_only_what_is_new(s3: Store, photos: Path, bucket: str, capsys: Output) -> None:
    assert push(s3, photos, bucket) == 0
    (photos / "new.png").write_bytes(b"new")
    capsys.readouterr()
    assert push(s3, photos, bucket) == 0
    text = capsys.readouterr().out
    assert "uploaded 1 file," in text
    assert "6 files were there already" in text
    assert "note: new.png without a caption" in text


@pytest.mark.parametrize("content", [b"picture X", b"another length"])
def test_other_content_is_never_overwritten(
    s3: Store, photos: Path, bucket: str, content: bytes, capsys: Output
) -> None:
    assert push(s3, photos, bucket) == 0
    before = objects(s3, bucket)
    (photos / "1.png").write_bytes(content)
    (photos / "new.png").write_bytes(b"new")
    assert push(s3, photos, bucket) == 1
    assert "1 file there with other content; nothing is ever overwritten" in capsys.readouterr().err
    assert objects(s3, bucket) == before


def test_what_else_lies_in_the_dataset_is_mentioned(s3: Store, photos: Path, bucket: str, capsys: Output) -> None:
    s3.client().put_object(Bucket=bucket, Key="sets/robot/5_old cat/1.png", Body=b"x")
    s3.client().put_object(Bucket=bucket, Key="sets/robot2/1.png", Body=b"x")
    assert push(s3, photos, bucket) == 0
    assert "the dataset also holds sets/robot/5_old cat/1.png from earlier" in capsys.readouterr().out


def test_a_store_that_refuses_is_told(
    s3: Store, photos: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    assert push(s3, photos, "no-such-bucket") == 1
    assert "has no bucket 'no-such-bucket'; make it first" in capsys.readouterr().err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert push(s3, photos, bucket) == 1
    assert "refuses the credentials (SignatureDoesNotMatch)" in capsys.readouterr().err


def test_nothing_is_uploaded_from_a_wrong_folder(s3: Store, photos: Path, bucket: str, capsys: Output) -> None:
    (photos / "clip.mp4").write_bytes(b"x")
    assert push(s3, photos, bucket) == 1
    assert "clip.mp4: .mp4 is not allowed" in capsys.readouterr().err
    assert objects(s3, bucket) == {}
