"""Put the base model and fifteen drawn pictures of a new character into the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from darkroom_api.uris import S3Location, parse_s3
from darkroom_cli.push import push
from darkroom_cli.store import Access, Store
from dev.cluster.console import ClusterError, stage
from dev.cluster.paths import REPOSITORY
from dev.cluster.storage import Endpoint
from dev.demo.site import Site, scratch

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BASE_MODEL = REPOSITORY / "examples" / "base-model" / "tiny-sd15.safetensors"


def client(endpoint: Endpoint) -> S3Client:
    """Return a client of the site's store."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        region_name=endpoint.region,
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def open_store(endpoint: Endpoint) -> Store:
    """Return the store as `kubectl darkroom` opens it: with keys from the environment."""
    os.environ.update(endpoint.environment())
    os.environ.pop("AWS_SESSION_TOKEN", None)
    return Store(Access(endpoint.url, endpoint.region))


def upload_base_model(site: Site) -> None:
    """Upload the small base model unless the store has just this file."""
    if not BASE_MODEL.exists():
        raise ClusterError(f"{BASE_MODEL.relative_to(REPOSITORY)} is missing; make it: make base-model (hours of CPU)")
    target = parse_s3(site.spec().base_model.uri)
    data = BASE_MODEL.read_bytes()
    with stage(f"upload the base model ({len(data) / 1e6:.0f} MB) to {target}"), _told(target):
        s3 = client(site.state.s3)
        _ensure_bucket(s3, target.bucket)
        if _entity_tag(s3, target) != md5(data, usedforsecurity=False).hexdigest():
            s3.put_object(Bucket=target.bucket, Key=target.key, Body=data)


def upload_pictures(site: Site, console: Console) -> None:
    """Draw the new character and push the pictures as a user pushes photos."""
    target = parse_s3(site.spec().dataset.uri or "")
    folder = draw_pictures()
    with _told(target):
        s3 = client(site.state.s3)
        for bucket in {target.bucket, parse_s3(site.spec().output.uri).bucket}:
            _ensure_bucket(s3, bucket)
        _forget_other_pictures(s3, target, folder=folder)
    push(folder, target, subject=None, store=open_store(site.state.s3), console=console)


def draw_pictures() -> Path:
    """Return a folder that holds the folder `20_sks robot` with freshly drawn pictures and captions."""
    folder = scratch() / "pictures"
    with stage("draw pictures of a new character"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "examples.base_model", "draw-subject", "--output", str(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command[1:])}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return folder


def _forget_other_pictures(s3: S3Client, target: S3Location, *, folder: Path) -> None:
    """Remove what an older release of the demo drew: `push` overwrites nothing, and rightly so."""
    drawn = {md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in folder.rglob("*") if path.is_file()}
    for item in s3.list_objects_v2(Bucket=target.bucket, Prefix=f"{target.key}/").get("Contents", []):
        if item["ETag"].strip('"') not in drawn:
            s3.delete_object(Bucket=target.bucket, Key=item["Key"])


def _ensure_bucket(s3: S3Client, bucket: str) -> None:
    if bucket not in {entry["Name"] for entry in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket)


def _entity_tag(s3: S3Client, location: S3Location) -> str | None:
    """Return the MD5 that a store keeps of an object written in one piece, None if there is no object."""
    try:
        return s3.head_object(Bucket=location.bucket, Key=location.key)["ETag"].strip('"')
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise


@contextmanager
def _told(location: S3Location) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise ClusterError(
            f"{location}: {error}\nIs the store up? python -m dev.cluster status; its log: python -m dev.cluster logs "
            "seaweedfs. With DARKROOM_S3_ENDPOINT: may its key make buckets and write to them?"
        ) from error
