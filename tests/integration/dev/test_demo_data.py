"""The demo's uploads against a real store that holds what others put there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from darkroom_api.uris import S3Location
from darkroom_cli.store import Store as Opened
from dev.cluster.console import ClusterError
from dev.demo.data import BASE_MODEL, ensure_bucket, open_store, upload_base_model, upload_pictures

if TYPE_CHECKING:
    from tests.integration.conftest import Store

CONSOLE = Console(file=io.StringIO())


@pytest.fixture
def store(s3: Store, monkeypatch: pytest.MonkeyPatch) -> Opened:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)  # `open_store` sets them for good
    return open_store(s3.server.endpoint)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "20_sks robot"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"picture %d" % number)
        (folder / f"{number}.txt").write_text(f"caption {number}")
    return tmp_path


def objects(s3: Store, bucket: str) -> dict[str, bytes]:
    listed = s3.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: s3.client().get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}


def test_other_peoples_pictures_stay_and_ours_get_a_name_of_their_own(s3: Store, store: Opened, pictures: Path) -> None:
    bucket = s3.bucket()
    wanted = S3Location(bucket, "datasets/robot")
    theirs = {"datasets/robot/20_sks robot/0.png": b"somebody's", "datasets/robot/5_cat/1.png": b"a cat"}
    for key, data in theirs.items():
        s3.client().put_object(Bucket=bucket, Key=key, Body=data)
    target = upload_pictures(wanted, pictures, store=store, console=CONSOLE)
    assert target.key.startswith("datasets/robot-")
    ours = {f"{target.key}/20_sks robot/{path.name}": path.read_bytes() for path in pictures.rglob("*.*")}
    assert objects(s3, bucket) == theirs | ours
    assert upload_pictures(wanted, pictures, store=store, console=CONSOLE) == target


def test_free_or_half_uploaded_pictures_keep_the_plain_name(s3: Store, store: Opened, pictures: Path) -> None:
    bucket = s3.bucket()
    wanted = S3Location(bucket, "datasets/robot")
    assert upload_pictures(wanted, pictures, store=store, console=CONSOLE) == wanted
    whole = objects(s3, bucket)
    assert len(whole) == 6
    s3.client().delete_object(Bucket=bucket, Key="datasets/robot/20_sks robot/1.txt")
    assert upload_pictures(wanted, pictures, store=store, console=CONSOLE) == wanted
    assert objects(s3, bucket) == whole


def test_newly_drawn_pictures_do_not_mix_with_the_old(s3: Store, store: Opened, pictures: Path) -> None:
    wanted = S3Location(s3.bucket(), "datasets/robot")
    upload_pictures(wanted, pictures, store=store, console=CONSOLE)
    before = objects(s3, wanted.bucket)
    (pictures / "20_sks robot" / "0.png").write_bytes(b"drawn anew")
    target = upload_pictures(wanted, pictures, store=store, console=CONSOLE)
    assert target != wanted
    assert before.items() <= objects(s3, wanted.bucket).items()


def test_another_base_model_is_never_overwritten(s3: Store, store: Opened) -> None:
    bucket = s3.bucket()
    wanted = S3Location(bucket, "tiny.safetensors")
    s3.client().put_object(Bucket=bucket, Key=wanted.key, Body=b"somebody's model")
    target = upload_base_model(wanted, store)
    found = objects(s3, bucket)
    assert found == {wanted.key: b"somebody's model", target.key: BASE_MODEL.read_bytes()}
    assert upload_base_model(wanted, store) == target
    s3.client().put_object(Bucket=bucket, Key=target.key, Body=b"changed")
    with pytest.raises(ClusterError, match="the demo overwrites nothing"):
        upload_base_model(wanted, store)


def test_the_same_base_model_is_found_even_where_its_etag_is_no_md5(s3: Store, store: Opened) -> None:
    wanted = S3Location(s3.bucket(), "tiny.safetensors")
    client, data = s3.client(), BASE_MODEL.read_bytes()
    upload = client.create_multipart_upload(Bucket=wanted.bucket, Key=wanted.key)["UploadId"]
    half = len(data) // 2
    parts = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(
                Bucket=wanted.bucket, Key=wanted.key, UploadId=upload, PartNumber=number, Body=piece
            )["ETag"],
        }
        for number, piece in enumerate((data[:half], data[half:]), start=1)
    ]
    client.complete_multipart_upload(
        Bucket=wanted.bucket,
        Key=wanted.key,
        UploadId=upload,
        MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
    )
    assert upload_base_model(wanted, store) == wanted
    assert list(objects(s3, wanted.bucket)) == [wanted.key]


def test_a_missing_bucket_is_made_once(s3: Store) -> None:
    name = f"{s3.bucket()}-more"
    for _ in range(2):
        ensure_bucket(s3.client(), name, region=s3.region)
    assert objects(s3, name) == {}


def test_a_bucket_that_cannot_be_made_is_told(s3: Store) -> None:
    with pytest.raises(ClusterError, match="set DARKROOM_S3_BUCKET"):
        ensure_bucket(s3.client(), "Not_A_Bucket", region=s3.region)
