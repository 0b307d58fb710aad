"""Put the base model and fifteen drawn pictures of a new character into the store."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console

from darkroom_api.uris import S3Location
from darkroom_cli.pictures import plan_uploads
from darkroom_cli.push import push
from darkroom_cli.store import Access, Store, sha256
from dev.cluster.console import ClusterError, say, stage
from dev.cluster.paths import REPOSITORY
from dev.cluster.storage import REGION, Endpoint
from dev.demo.site import Site, scratch

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.literals import BucketLocationConstraintType

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


def bring(site: Site, console: Console) -> Site:
    """Have the base model and the pictures in the store; return the site with the addresses where they lie.

    Whatever lies in the store already stays as it is: the demo neither overwrites nor removes an object.
    """
    store = open_store(site.state.s3)
    buckets = client(site.state.s3)
    for bucket in sorted({location.bucket for location in site.addresses}):
        ensure_bucket(buckets, bucket, region=site.state.s3.region)
    base_model = upload_base_model(site.addresses.base_model, store)
    dataset = upload_pictures(site.addresses.dataset, draw_pictures(), store=store, console=console)
    return replace(site, addresses=site.addresses._replace(base_model=base_model, dataset=dataset))


def upload_base_model(wanted: S3Location, store: Store) -> S3Location:
    """Upload the small base model unless the store has just this file, and return where it lies."""
    if not BASE_MODEL.exists():
        raise ClusterError(
            f"{BASE_MODEL.relative_to(REPOSITORY)} is missing; make it: make base-model (about 75 min of one core)"
        )
    data = BASE_MODEL.read_bytes()
    with stage(f"have the base model ({len(data) / 1e6:.0f} MB) in the store"):
        target = first_usable(
            (wanted, named_by_content(wanted, sha256(data))), lambda location: _is_free_or(location, data, store)
        )
        if store.entry(target) is None and not store.create(target, data):
            raise ClusterError(f"{target}: somebody else wrote it just now; run make demo again")
    say(f"  it lies in {target}")
    return target


def upload_pictures(wanted: S3Location, folder: Path, *, store: Store, console: Console) -> S3Location:
    """Push the pictures as a user pushes photos, and return where they lie."""
    drawn = {upload.key: upload.path.read_bytes() for upload in plan_uploads(folder, None)}
    digest = sha256("".join(f"{key} {sha256(data)}\n" for key, data in sorted(drawn.items())).encode())
    target = first_usable(
        (wanted, named_by_content(wanted, digest)), lambda location: _holds_nothing_but(location, drawn, store)
    )
    push(folder, target, subject=None, store=store, console=console)
    return target


def first_usable(candidates: Iterable[S3Location], is_usable: Callable[[S3Location], bool]) -> S3Location:
    """Return the first address that is free or holds the right content already.

    Raises:
        ClusterError: There is none.
    """
    tried = list(candidates)
    for location in tried:
        if is_usable(location):
            return location
    raise ClusterError(
        f"{' and '.join(str(location) for location in tried)}: other content lies there, and the demo overwrites "
        "nothing. Remove the last one if nobody needs it, or set DARKROOM_S3_BUCKET to another bucket"
    )


def named_by_content(location: S3Location, digest: str) -> S3Location:
    """Return the address with the first digits of a hash in its name: robot-1a2b3c4d, model-1a2b3c4d.safetensors."""
    folder, slash, name = location.key.rpartition("/")
    stem, dot, ending = name.partition(".")
    return S3Location(location.bucket, f"{folder}{slash}{stem}-{digest[:8]}{dot}{ending}")


def _is_free_or(location: S3Location, data: bytes, store: Store) -> bool:
    entry = store.entry(location)
    return entry is None or store.holds(location, entry, data)


def _holds_nothing_but(folder: S3Location, files: Mapping[str, bytes], store: Store) -> bool:
    """Tell whether nothing lies there but (some of) these files: an upload that was cut off is completed."""
    wanted = {folder.join(name).key: data for name, data in files.items()}
    present = store.list(folder)
    return present.keys() <= wanted.keys() and all(
        store.holds(S3Location(folder.bucket, key), entry, wanted[key]) for key, entry in present.items()
    )


def draw_pictures() -> Path:
    """Return a folder that holds the folder `10_sks robot` with freshly drawn pictures and captions."""
    folder = scratch() / "pictures"
    with stage("draw pictures of a new character"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "examples.base_model", "draw-subject", "--output", str(folder)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command[1:])}: exit {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return folder


def ensure_bucket(s3: S3Client, bucket: str, *, region: str) -> None:
    """Make a bucket if it is missing.

    Raises:
        ClusterError: It is missing and cannot be made, or the store does not answer.
    """
    try:
        if not _is_missing(s3, bucket):
            return
        if region == REGION:
            s3.create_bucket(Bucket=bucket)
        else:
            where = cast("BucketLocationConstraintType", region)
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": where})
    except (BotoCoreError, ClientError) as error:
        raise ClusterError(
            f"s3://{bucket} is missing and cannot be made, or the store does not answer: {error}\n"
            "Is the store up? python -m dev.cluster status; its log: python -m dev.cluster logs seaweedfs. With "
            "DARKROOM_S3_ENDPOINT: make the bucket, or set DARKROOM_S3_BUCKET to one that the key may write to"
        ) from error


def _is_missing(s3: S3Client, bucket: str) -> bool:
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            return True
        if status != 403:  # a key may write to a bucket at which it may not look
            raise
    return False
