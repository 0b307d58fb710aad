from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.storage import Storage
from darkroom_api.uris import S3Location
from darkroom_trainer.connecting import open_store
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.probing import abandon_orphans, probe
from darkroom_trainer.store import ChecksumError, Store, StoredObject, sha256_of
from tests.builders.s3_proxy import Fault, S3Proxy
from tests.integration.trainer_io.conftest import Place, brief, connect

if TYPE_CHECKING:
    from tests.integration.conftest import Store as Server

MEBI = 2**20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file that travels in three parts."""
    path = tmp_path / "large.safetensors"
    path.write_bytes(os.urandom(40 * MEBI))
    return path


@pytest.mark.parametrize("size", [0, 1, 40 * MEBI])
def test_a_file_comes_back_as_it_went(size: int, place: Place, store: Store, tmp_path: Path) -> None:
    there, back = tmp_path / "there.png", tmp_path / "new folder" / "back.png"
    there.write_bytes(os.urandom(size))
    steps: list[tuple[int, int]] = []
    store.upload(there, place.at("a/there.png"))
    store.download(place.at("a/there.png"), back, sha256=sha256_of(there), on_progress=lambda *step: steps.append(step))
    assert back.read_bytes() == there.read_bytes()
    assert max(steps, default=(0, 0)) == ((size, size) if size else (0, 0))
    assert list(back.parent.iterdir()) == [back]
    assert place.client.head_object(Bucket=place.bucket, Key="a/there.png")["ContentType"] == "image/png"


def test_a_listing_has_every_page_and_no_neighbour(place: Place, s3: Server) -> None:
    for key in ("a/1", "a/2", "a/b/3", "a/4", "a/5", "ab/6", "a"):
        place.put(key, key.encode())
    paged = Store(connect(s3)._client, patience=brief(), page_size=2)
    assert paged.list(place.at("a")) == [
        StoredObject("a/1", 3),
        StoredObject("a/2", 3),
        StoredObject("a/4", 3),
        StoredObject("a/5", 3),
        StoredObject("a/b/3", 5),
    ]
    assert len(paged.list(place.at(""))) == 7
    assert paged.list(place.at("none")) == []


def test_creating_never_overwrites(place: Place, store: Store) -> None:
    at = place.at("a/manifest.json")
    store.create(at, b"one")
    store.create(at, b"one")
    with pytest.raises(RunError, match=r"a/manifest\.json exists with other content") as caught:
        store.create(at, b"two!")
    assert caught.value.reason is FailureReason.INTERNAL_ERROR
    assert store.find(at) == b"one"
    assert store.find(place.at("a/none")) is None
    store.replace(at, b"three")
    assert store.read(at) == b"three"
    store.delete([at, place.at("a/none")])
    assert store.find(at) is None


def test_a_lost_answer_to_a_creation_is_no_conflict(place: Place, proxied: Store, proxy: S3Proxy) -> None:
    fault = proxy.add(Fault("lose-answer", method="PUT", times=2))
    proxied.create(place.at("a/manifest.json"), b"one")
    assert fault.done == 2
    assert place.get("a/manifest.json") == b"one"


def test_a_storm_of_refusals_is_sat_out(place: Place, proxied: Store, proxy: S3Proxy, large: Path) -> None:
    proxy.add(Fault("busy", times=9))
    proxied.upload(large, place.at("a/large"))
    proxy.add(Fault("busy", times=3))
    proxied.create(place.at("a/small"), b"one")
    proxy.add(Fault("busy", times=9))
    proxied.download(place.at("a/large"), large.with_name("back"), sha256=sha256_of(large))
    proxy.add(Fault("busy", times=3))
    assert [found.key for found in proxied.list(place.at("a"))] == ["a/large", "a/small"]
    assert place.unfinished() == 0


@pytest.mark.parametrize("after", [0, 3 * MEBI])
def test_connections_that_break_in_the_middle_lose_nothing(
    after: int, place: Place, proxied: Store, proxy: S3Proxy, large: Path
) -> None:
    up = proxy.add(Fault("reset-upload", method="PUT", times=8, after_bytes=after))
    proxied.upload(large, place.at("a/large"))
    down = proxy.add(Fault("reset-download", method="GET", times=8, after_bytes=after))
    proxied.download(place.at("a/large"), large.with_name("back"), sha256=sha256_of(large))
    assert (up.done, down.done) == (8, 8)


def test_a_store_that_ignores_conditions_is_found_out_and_still_never_overwritten(
    s3: Server, place: Place, proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.dropped_headers = ("if-none-match",)
    store = connect(s3, url=proxy.url)
    probe(store, place.prefix)
    assert not store.honours_conditions
    assert "ignores If-None-Match" in caplog.text
    for one in (store, store.uninterrupted()):
        one.create(place.at("a"), b"one")
        with pytest.raises(RunError, match="exists with other content"):
            one.create(place.at("a"), b"two")
    assert place.get("a") == b"one"


def test_a_probe_leaves_nothing_behind(place: Place, store: Store) -> None:
    probe(store, place.prefix)
    assert store.honours_conditions
    assert store.list(place.at("")) == []


def test_what_is_wrong_is_told_within_seconds(place: Place, s3: Server) -> None:
    storage = Storage(endpoint_url=s3.endpoint_url)
    wrong_secret = open_store(storage, {**s3.environment(), "AWS_SECRET_ACCESS_KEY": "wrong-secret-key"})
    wrong_key = open_store(storage, {**s3.environment(), "AWS_ACCESS_KEY_ID": "AKWRONG"})
    started = time.monotonic()
    for store, said in ((wrong_secret, "SignatureDoesNotMatch"), (wrong_key, "InvalidAccessKeyId")):
        with pytest.raises(RunError, match=rf"^spec\.output\.uri: .*{said} \(HTTP 403\)") as caught:
            probe(store, place.prefix)
        assert caught.value.reason is FailureReason.ACCESS_DENIED
    with pytest.raises(RunError, match="there is no bucket 'no-such-bucket' at http://127") as caught:
        probe(connect(s3), S3Location("no-such-bucket", "x"))
    assert caught.value.reason is FailureReason.NOT_FOUND
    for operation in (connect(s3).read, connect(s3).size):
        with pytest.raises(RunError, match=f"no such object in bucket '{place.bucket}'") as caught:
            operation(place.at("a/none"))
        assert caught.value.reason is FailureReason.NOT_FOUND
    assert time.monotonic() - started < 10


def test_patience_ends(place: Place, own_s3: Server) -> None:
    told: list[str] = []
    store = connect(own_s3, patience=brief(total=1.5, on_away=told.append))
    own_s3.server.stop()
    with pytest.raises(RunError, match=r"reading s3://.*: connection refused") as caught:
        store.read(place.at("a"))
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    assert told
    assert all("connection refused" in text for text in told)


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # s3transfer drops a cancelled answer unread
def test_a_request_to_stop_ends_a_download_and_leaves_no_file(
    s3: Server, place: Place, proxy: S3Proxy, large: Path, tmp_path: Path
) -> None:
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise StopRequested

    connect(s3).upload(large, place.at("large"))
    proxy.add(Fault("delay", method="GET", times=100, seconds=0.2))
    slow = connect(s3, url=proxy.url, patience=brief(check=check))
    started: list[float] = []

    def progressed(_done: int, _total: int) -> None:
        started.append(time.monotonic())
        stop.set()

    target = tmp_path / "target" / "large"
    with pytest.raises(StopRequested):
        slow.download(place.at("large"), target, on_progress=progressed)
    assert time.monotonic() - started[0] < 5  # the whole of it would take 26 s
    assert not target.exists()
    saving = slow.uninterrupted()
    saving.create(place.at("state"), b"saved all the same")
    proxy.heal()
    slow._manager.shutdown()
    del slow
    gc.collect()


def test_a_file_with_another_checksum_does_not_arrive(place: Place, store: Store, tmp_path: Path) -> None:
    place.put("a", b"content")
    with pytest.raises(ChecksumError, match="not bbbb"):
        store.download(place.at("a"), tmp_path / "a", sha256="b" * 64)
    assert list(tmp_path.iterdir()) == []


def test_only_unfinished_uploads_below_the_prefix_are_given_up(place: Place, store: Store) -> None:
    for key in (f"{place.prefix.key}/state/x", f"{place.prefix.key}/y", f"{place.prefix.key}-other/z", "w"):
        place.client.create_multipart_upload(Bucket=place.bucket, Key=key)
    assert place.unfinished() == 4
    assert store.abort_uploads(place.prefix) == 2
    assert place.unfinished() == 2
    assert store.abort_uploads(place.prefix) == 0


def test_a_key_that_may_not_look_for_unfinished_uploads_is_good_enough(
    place: Place, proxied: Store, proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    place.client.create_multipart_upload(Bucket=place.bucket, Key=f"{place.prefix.key}/x")
    fault = proxy.add(Fault("deny", path="?uploads", times=1))
    abandon_orphans(proxied, place.prefix)
    assert fault.done == 1
    assert "Unfinished uploads of earlier attempts stay" in caplog.text
    abandon_orphans(proxied, place.prefix)
    assert place.unfinished() == 0


def test_a_lost_answer_to_a_completion_is_no_missing_object(
    place: Place, proxied: Store, proxy: S3Proxy, large: Path
) -> None:
    lost = proxy.add(Fault("lose-answer", method="POST", path="uploadId="))
    gone = proxy.add(Fault("no-upload", method="POST", path="uploadId="))  # what the repeated request is answered
    proxied.upload(large, place.at("a/large"))
    assert (lost.done, gone.done) == (1, 1)
    assert place.client.head_object(Bucket=place.bucket, Key="a/large")["ContentLength"] == 40 * MEBI
    assert place.unfinished() == 0


def test_an_upload_that_is_gone_already_needs_no_giving_up(place: Place, proxied: Store, proxy: S3Proxy) -> None:
    place.client.create_multipart_upload(Bucket=place.bucket, Key=f"{place.prefix.key}/x")
    fault = proxy.add(Fault("no-upload", method="DELETE"))
    assert proxied.abort_uploads(place.prefix) == 1
    assert fault.done == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
def test_a_404_that_is_not_the_stores_is_waited_out(
    method: str, place: Place, proxied: Store, proxy: S3Proxy, tmp_path: Path
) -> None:
    place.put("a", b"content")
    probe(proxied, place.prefix)
    fault = proxy.add(Fault("nobody", method=method, times=2))
    store = proxied.uninterrupted()
    assert store.find(place.at("a")) == b"content"
    assert store.has(place.at("a"), size=7)
    store.download(place.at("a"), tmp_path / "a")
    store.create(place.at("b"), b"new")
    assert fault.done == 2
    assert store.find(place.at("none")) is None
    assert not store.has(place.at("none"), size=1)


def test_a_size_from_a_listing_saves_a_request_and_is_not_believed_twice(
    place: Place, proxied: Store, proxy: S3Proxy, tmp_path: Path
) -> None:
    place.put("a", b"content")
    proxied.download(place.at("a"), tmp_path / "a", size=7)
    assert (proxy.seen("HEAD", ""), proxy.seen("GET", "")) == (0, 1)
    proxied.download(place.at("a"), tmp_path / "b", size=5)
    assert (tmp_path / "b").read_bytes() == b"content"
    assert (proxy.seen("HEAD", ""), proxy.seen("GET", "")) == (1, 3)


def test_a_copy_inside_the_store_is_known_by_its_checksum(place: Place, store: Store, large: Path) -> None:
    digest, size = sha256_of(large), 40 * MEBI
    store.upload(large, place.at("a/large"))
    assert not store.has_copy(place.at("a/large"), size=size, sha256=digest)
    assert not store.has_copy(place.at("b/large"), size=size, sha256=digest)
    store.copy(place.at("a/large"), place.at("b/large"), size=size, sha256=digest)
    assert store.has_copy(place.at("b/large"), size=size, sha256=digest)
    assert not store.has_copy(place.at("b/large"), size=size, sha256="0" * 64)
    store.download(place.at("b/large"), large.with_name("back"), sha256=digest)
