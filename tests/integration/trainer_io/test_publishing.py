from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from darkroom_api.failures import FailureReason
from darkroom_api.layout import checkpoint_directory, events_file, samples_directory, state_directory, weights_file
from darkroom_api.objects import Index, Manifest
from darkroom_api.progress import Stage
from darkroom_trainer.errors import RunError
from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from darkroom_trainer.restoring import Restored, restore
from darkroom_trainer.store import Store, sha256_of
from dev.cluster.waiting import wait_for
from tests.builders.s3_proxy import Fault, S3Proxy
from tests.integration.trainer_io.conftest import RUN, Place, brief, connect, run_plan

if TYPE_CHECKING:
    from tests.integration.conftest import Store as Server

Files = Callable[..., list[Path]]


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(RUN, "anna-0")


@pytest.fixture
def publishers(reporter: Reporter) -> Iterator[Callable[..., Publisher]]:
    running: list[Publisher] = []

    def start(store: Store, place: Place, **settings: int) -> Publisher:
        running.append(Publisher(store, run_plan(place.bucket), reporter, **settings))
        return running[-1]

    yield start
    for publisher in running:
        publisher.close()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Makes the files of a directory: name -> size of random content, or the content itself."""
    count = 0

    def make(**contents: int | bytes) -> list[Path]:
        nonlocal count
        count += 1
        made = []
        for name, content in contents.items():
            path = tmp_path / f"out-{count}" / name.replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(content) if isinstance(content, int) else content)
            made.append(path)
        return made

    return make


def weights(tmp_path: Path, epoch: int, content: bytes | None = None) -> Path:
    path = tmp_path / f"epoch-{epoch}-{os.urandom(4).hex()}" / weights_file("anna", epoch=epoch)
    path.parent.mkdir()
    path.write_bytes(content or os.urandom(1000))
    return path


def test_an_event_file_is_put_beside_the_others_and_never_over_one(
    place: Place, store: Store, publishers: Callable[..., Publisher], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = publishers(store, place)
    for attempt, (epoch, content) in enumerate([(1, b"one"), (2, b"two"), (1, b"one"), (2, b"other")]):
        path = tmp_path / str(attempt) / events_file(epoch)
        path.parent.mkdir()
        path.write_bytes(content)
        publisher.publish_events(path, epoch, 10 * epoch)
        publisher.flush()
        assert not path.exists()
    assert place.keys("events/") == ["events/events.out.tfevents.000001", "events/events.out.tfevents.000002"]
    assert [place.get(f"{place.prefix.key}/events/{events_file(epoch)}") for epoch in (1, 2)] == [b"one", b"two"]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "tfevents.000002 was published by an earlier attempt with other content, which stays" in warning


def test_an_epoch_is_published_whole_and_in_order(
    place: Place,
    proxied: Store,
    proxy: S3Proxy,
    reporter: Reporter,
    publishers: Callable[..., Publisher],
    files: Files,
    tmp_path: Path,
) -> None:
    publisher = publishers(proxied, place)
    path, metrics = weights(tmp_path, 1), files(metrics_json=b"{}")
    digest = sha256_of(path)
    reporter.validated(0, 0.75)
    publisher.publish(checkpoint_directory(1), [path, *metrics], epoch=1, step=10, validation_loss=0.5)
    publisher.publish_final(path, 1, 10)
    publisher.publish(samples_directory(1), files(**{"p0-s1_png": 50, "p0-s2_png": 50}), epoch=1, step=10)
    publisher.publish(state_directory(10), files(adapter_safetensors=100, state_json=10), epoch=1, step=10)
    publisher.flush()
    publisher.check()
    assert place.keys() == [
        "anna.safetensors",
        "checkpoints/epoch-000001/anna-000001.safetensors",
        "checkpoints/epoch-000001/manifest.json",
        "checkpoints/epoch-000001/metrics.json",
        "index.json",
        "samples/epoch-000001/manifest.json",
        "samples/epoch-000001/p0-s1.png",
        "samples/epoch-000001/p0-s2.png",
        "state/step-00000010/adapter.safetensors",
        "state/step-00000010/manifest.json",
        "state/step-00000010/state.json",
    ]
    manifest = Manifest.model_validate_json(place.get(f"{place.prefix.key}/checkpoints/epoch-000001/manifest.json"))
    assert (manifest.run, manifest.epoch, manifest.step) == (RUN, 1, 10)
    assert [(file.name, file.size_bytes) for file in manifest.files] == [
        ("anna-000001.safetensors", 1000),
        ("metrics.json", 2),
    ]
    assert manifest.files[0].sha256 == digest
    told = reporter.snapshot().checkpoints
    assert [(one.epoch, one.step, one.sha256, one.size_bytes, one.num_samples) for one in told] == [
        (1, 10, digest, 1000, 2)
    ]
    index = Index.model_validate_json(place.get(f"{place.prefix.key}/index.json"))
    assert index.checkpoints == told
    assert (manifest.validation_loss, told[0].validation_loss, index.best_epoch) == (0.5, 0.5, 1)
    assert [(it.epoch, it.loss) for it in index.validations] == [(0, 0.75), (1, 0.5)]
    puts = [path.rpartition("/")[2] for method, path in proxy.requests if method == "PUT"]
    for directory in (("anna-000001.safetensors", "metrics.json"), ("p0-s1.png", "p0-s2.png")):
        first_manifest = puts.index("manifest.json")
        assert set(puts[:first_manifest]) >= set(directory)
        puts = puts[first_manifest + 1 :]
    assert {found for found in tmp_path.rglob("*") if found.is_file()} == {path, *metrics}
    assert reporter.counters().uploaded_bytes == 1000 * 2 + 2 + 100 + 110


def test_an_outage_is_waited_out_while_training_goes_on(
    own_s3: Server, reporter: Reporter, publishers: Callable[..., Publisher], files: Files, tmp_path: Path
) -> None:
    place = Place(own_s3, own_s3.bucket())
    publisher = publishers(connect(own_s3, patience=brief(on_away=reporter.storage_away)), place)
    own_s3.server.stop()
    for epoch in (1, 2, 3):
        publisher.publish(checkpoint_directory(epoch), [weights(tmp_path, epoch)], epoch=epoch, step=epoch)
        publisher.publish(samples_directory(epoch), files(**{"p0-s1_png": 50}), epoch=epoch, step=epoch)
        publisher.check()
    wait_for(lambda: reporter.counters().storage_failures >= 25, "many tries, about ten seconds of them", timeout=60)
    own_s3.server.start()
    publisher.flush()
    assert [one.num_samples for one in reporter.records()] == [1, 1, 1]
    keys = place.keys()
    assert sum(key.endswith("manifest.json") for key in keys) == 6
    assert [key for key in keys if key.endswith(".safetensors")] == [
        f"{checkpoint_directory(epoch)}/{weights_file('anna', epoch=epoch)}" for epoch in (1, 2, 3)
    ]


def test_training_waits_only_when_too_much_waits_for_upload(
    place: Place, proxied: Store, proxy: S3Proxy, publishers: Callable[..., Publisher], files: Files
) -> None:
    publisher = publishers(proxied, place, queue_length=3)
    proxy.add(Fault("reset", times=10**6))
    handed_over: list[int] = []

    def train() -> None:
        for epoch in range(1, 7):
            publisher.publish(samples_directory(epoch), files(**{"p0-s1_png": 5}), epoch=epoch, step=epoch)
            handed_over.append(epoch)

    thread = threading.Thread(target=train)
    thread.start()
    wait_for(lambda: len(handed_over) == 4, "one on its way and three in the queue", timeout=20)
    thread.join(0.5)
    assert len(handed_over) == 4
    proxy.heal()
    thread.join(30)
    publisher.flush()
    assert len(handed_over) == 6
    assert len([key for key in place.keys("samples") if key.endswith("manifest.json")]) == 6


def test_in_an_outage_only_the_newest_state_keeps_its_place(
    place: Place, proxied: Store, proxy: S3Proxy, publishers: Callable[..., Publisher], files: Files, tmp_path: Path
) -> None:
    publisher = publishers(proxied, place)
    proxy.add(Fault("reset", times=10**6))
    publisher.publish(samples_directory(0), files(**{"p0-s1_png": 5}), epoch=0, step=0)
    wait_for(lambda: len(proxy.requests) > 0, "the publisher to be busy", timeout=20)
    for step in (10, 20, 30):
        publisher.publish(state_directory(step), files(state_json=10), epoch=0, step=step)
    proxy.heal()
    publisher.flush()
    assert place.keys("state") == ["state/step-00000030/manifest.json", "state/step-00000030/state.json"]
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_the_last_two_states_are_kept(
    place: Place, store: Store, reporter: Reporter, publishers: Callable[..., Publisher], files: Files
) -> None:
    publisher = publishers(store, place)
    for step in (10, 20, 30, 40):
        publisher.publish(state_directory(step), files(state_json=10), epoch=0, step=step)
        publisher.flush()
    assert [key for key in place.keys("state") if key.endswith("manifest.json")] == [
        "state/step-00000030/manifest.json",
        "state/step-00000040/manifest.json",
    ]
    assert len(place.keys("state")) == 4
    assert reporter.counters().state_age is not None


def test_a_failure_reaches_the_trainers_thread(
    place: Place, store: Store, publishers: Callable[..., Publisher], files: Files
) -> None:
    publisher = publishers(store, place)
    publisher.check()
    place.client.delete_bucket(Bucket=place.bucket)
    publisher.publish(samples_directory(1), files(**{"p0-s1_png": 5}), epoch=1, step=1)
    for entry in (
        publisher.flush,
        publisher.check,
        lambda: publisher.publish(samples_directory(2), [], epoch=2, step=2),
        lambda: publisher.publish_final(Path("x"), 2, 2),
    ):
        with pytest.raises(RunError, match="there is no bucket") as caught:
            entry()
        assert caught.value.reason is FailureReason.NOT_FOUND


def test_an_earlier_attempts_checkpoint_stays_and_is_mended(
    place: Place,
    store: Store,
    proxy: S3Proxy,
    proxied: Store,
    reporter: Reporter,
    publishers: Callable[..., Publisher],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = publishers(store, place)
    first.publish(checkpoint_directory(1), [weights(tmp_path, 1, b"as it was")], epoch=1, step=10)
    first.flush()
    key = f"{place.prefix.key}/{checkpoint_directory(1)}/{weights_file('anna', epoch=1)}"
    again = publishers(proxied, place)
    again.publish(checkpoint_directory(1), [weights(tmp_path, 1, b"as it was")], epoch=1, step=10)
    again.flush()
    assert proxy.seen("PUT", "epoch-000001") == 0
    again.publish(checkpoint_directory(1), [weights(tmp_path, 1, b"other bits")], epoch=1, step=10)
    again.flush()
    assert "which stays" in caplog.text
    assert place.get(key) == b"as it was"
    assert reporter.records()[0].size_bytes == len(b"as it was")
    place.put(key, b"as it")
    again.publish(checkpoint_directory(1), [weights(tmp_path, 1, b"as it was")], epoch=1, step=10)
    again.flush()
    assert place.get(key) == b"as it was"


def test_a_state_that_did_not_verify_is_replaced(
    place: Place, store: Store, publishers: Callable[..., Publisher], files: Files, tmp_path: Path
) -> None:
    publisher = publishers(store, place)
    for content in (b"broken in the store", b"computed anew"):
        publisher.publish(state_directory(10), files(state_json=content), epoch=0, step=10)
        publisher.flush()
    found = restore(store, place.prefix, tmp_path / "back")
    assert found.state_directory is not None
    assert (found.state_directory / "state.json").read_bytes() == b"computed anew"


def test_a_second_writer_is_found_out_and_nothing_of_it_overwritten(
    place: Place, proxied: Store, proxy: S3Proxy, publishers: Callable[..., Publisher], files: Files
) -> None:
    key = f"{place.prefix.key}/{samples_directory(1)}/manifest.json"

    def meanwhile(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("manifest.json"):
            proxy.on_request = None
            place.put(key, b"another pod was faster")

    proxy.on_request = meanwhile
    publisher = publishers(proxied, place)
    publisher.publish(samples_directory(1), files(**{"p0-s1_png": 5}), epoch=1, step=1)
    with pytest.raises(RunError, match=r"samples/epoch-000001/manifest\.json exists with other content") as caught:
        publisher.flush()
    assert caught.value.reason is FailureReason.INTERNAL_ERROR
    assert place.get(key) == b"another pod was faster"


def test_what_earlier_attempts_published_stays_in_the_index(
    place: Place, store: Store, publishers: Callable[..., Publisher], tmp_path: Path
) -> None:
    first = publishers(store, place)
    first.publish(checkpoint_directory(1), [weights(tmp_path, 1)], epoch=1, step=10)
    first.flush()
    resumed = Publisher(store, run_plan(place.bucket), (reporter := Reporter(RUN, "anna-1")))
    resumed.adopt(restore(store, place.prefix, tmp_path / "back"))
    resumed.adopt(Restored())
    resumed.publish(checkpoint_directory(2), [weights(tmp_path, 2)], epoch=2, step=20)
    resumed.flush()
    resumed.close()
    index = Index.model_validate_json(place.get(f"{place.prefix.key}/index.json"))
    assert [one.epoch for one in index.checkpoints] == [1, 2] == [one.epoch for one in reporter.records()]


KILLED = """
import os, sys
from pathlib import Path
from darkroom_api.layout import checkpoint_directory
from darkroom_trainer.publishing import Publisher
from darkroom_trainer.reporting import Reporter
from tests.integration.trainer_io.conftest import run_plan, brief
from darkroom_api.storage import Storage
from darkroom_trainer.connecting import open_store
url, bucket, path = sys.argv[1:]
store = open_store(Storage(endpoint_url=url), os.environ, patience=brief())
publisher = Publisher(store, run_plan(bucket), Reporter("0123456789", "anna-0"))
publisher.publish(checkpoint_directory(1), [Path(path)], epoch=1, step=10)
publisher.flush()
"""


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_visible_and_the_next_start_cleans_up(
    place: Place,
    s3: Server,
    store: Store,
    proxy: S3Proxy,
    reporter: Reporter,
    publishers: Callable[..., Publisher],
    tmp_path: Path,
) -> None:
    path = weights(tmp_path, 1, os.urandom(40 * 2**20))
    kept = weights(tmp_path, 1, path.read_bytes())
    proxy.add(Fault("delay", method="PUT", times=100, seconds=0.02))
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, proxy.url, place.bucket, str(path)], env={**os.environ, **s3.environment()}
    )
    try:
        wait_for(lambda: proxy.forwarded_bytes > 20 * 2**20, "half of the file to be on its way", timeout=60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    proxy.heal()
    assert place.keys() == []
    assert place.unfinished() == 1
    assert restore(store, place.prefix, tmp_path / "back") == Restored()
    assert store.abort_uploads(place.prefix) == 1
    assert place.unfinished() == 0
    publisher = publishers(store, place)
    publisher.publish(checkpoint_directory(1), [kept], epoch=1, step=10)
    publisher.flush()
    assert reporter.records()[0].size_bytes == 40 * 2**20
    assert place.unfinished() == 0


def final(place: Place) -> bytes:
    return place.get(f"{place.prefix.key}/anna.safetensors")


def publish_last(publisher: Publisher, path: Path) -> None:
    publisher.publish(checkpoint_directory(1), [path], epoch=1, step=10)
    publisher.publish_final(path, 1, 10)
    publisher.flush()


def test_the_last_weights_are_always_those_of_the_standing_checkpoint(
    place: Place,
    store: Store,
    proxy: S3Proxy,
    proxied: Store,
    publishers: Callable[..., Publisher],
    tmp_path: Path,
) -> None:
    publish_last(publishers(store, place), weights(tmp_path, 1, b"as it was"))
    assert final(place) == b"as it was"
    for content in (b"as it was", b"other bits"):
        publish_last(publishers(proxied, place), weights(tmp_path, 1, content))
        assert proxy.seen("PUT", "anna") == proxy.seen("PUT", "index.json")  # nothing but the index was written
        assert final(place) == b"as it was"


def test_an_attempt_that_finds_another_checkpoint_copies_it_to_the_last_name(
    place: Place, store: Store, reporter: Reporter, publishers: Callable[..., Publisher], tmp_path: Path
) -> None:
    first = publishers(store, place)
    first.publish(checkpoint_directory(1), [weights(tmp_path, 1, b"as it was")], epoch=1, step=10)
    first.flush()
    place.put(f"{place.prefix.key}/anna.safetensors", b"a third one")
    again = publishers(store, place)
    publish_last(again, weights(tmp_path, 1, b"other bits"))
    assert final(place) == b"as it was"
    assert reporter.counters().uploaded_bytes == len(b"as it was")
    place.client.delete_object(
        Bucket=place.bucket, Key=f"{place.prefix.key}/{checkpoint_directory(1)}/{weights_file('anna', epoch=1)}"
    )
    place.client.delete_object(Bucket=place.bucket, Key=f"{place.prefix.key}/anna.safetensors")
    publish_last(again, weights(tmp_path, 1, b"other bits"))
    assert final(place) == b"other bits"  # better than none


@pytest.mark.parametrize("manifest", [b"{", b'{"run": "0123456789", "version": 9}'])
def test_a_state_whose_manifest_cannot_be_read_is_replaced(
    manifest: bytes, place: Place, store: Store, publishers: Callable[..., Publisher], files: Files, tmp_path: Path
) -> None:
    place.put(f"{place.prefix.key}/{state_directory(10)}/manifest.json", manifest)
    publisher = publishers(store, place)
    publisher.publish(state_directory(10), files(state_json=b"computed anew"), epoch=0, step=10)
    publisher.flush()
    found = restore(store, place.prefix, tmp_path / "back")
    assert found.state_directory is not None
    assert (found.state_directory / "state.json").read_bytes() == b"computed anew"


def test_a_checkpoint_whose_manifest_cannot_be_read_is_named_and_not_touched(
    place: Place, store: Store, publishers: Callable[..., Publisher], tmp_path: Path
) -> None:
    key = f"{place.prefix.key}/{checkpoint_directory(1)}/manifest.json"
    place.put(key, b"{")
    publisher = publishers(store, place)
    publisher.publish(checkpoint_directory(1), [weights(tmp_path, 1)], epoch=1, step=10)
    with pytest.raises(RunError, match=r"epoch-000001/manifest\.json is there but cannot be read") as caught:
        publisher.flush()
    assert "Move everything below" in caught.value.advice
    assert place.get(key) == b"{"
    assert place.keys() == [f"{checkpoint_directory(1)}/manifest.json"]


def test_a_long_last_upload_shows(
    place: Place, proxied: Store, proxy: S3Proxy, reporter: Reporter, publishers: Callable[..., Publisher], files: Files
) -> None:
    publisher = publishers(proxied, place)
    publisher.flush()
    assert reporter.snapshot().stage is Stage.STARTING  # nothing to wait for
    proxy.add(Fault("reset", times=10**6))
    publisher.publish(samples_directory(1), files(**{"p0-s1_png": 5}), epoch=1, step=1)
    flushing = threading.Thread(target=publisher.flush)
    flushing.start()
    wait_for(lambda: reporter.snapshot().stage is Stage.UPLOADING, "the stage to be told", timeout=20)
    proxy.heal()
    flushing.join(30)
    assert not flushing.is_alive()
