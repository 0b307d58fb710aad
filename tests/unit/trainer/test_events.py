"""Event files as TensorBoard itself reads them: one run from many files, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from darkroom_api.layout import events_file
from darkroom_trainer.events import Picture, Scalars, write_events
from darkroom_trainer.results import curves
from tests.unit.trainer.sessions import Maker


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "p0-s1.png"
    Image.fromarray(np.arange(24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)).save(path)
    return path


def write_run(folder: Path, picture: Path) -> Path:
    """Write twelve epochs of three steps with a picture and a validation after each."""
    folder.mkdir()
    for epoch in range(13):
        steps = range(3 * epoch - 2, 3 * epoch + 1) if epoch else range(0)
        scalars = [Scalars(step, {"loss": 1 / step, "learning_rate/unet": 1e-4}) for step in steps]
        scalars.append(Scalars(3 * epoch, {"validation_loss": 0.5 + epoch}))
        write_events(folder / events_file(epoch), scalars, [Picture(3 * epoch, "samples/p0-s1", picture)])
    return folder


def test_tensorboard_reads_all_epochs_as_one_run(tmp_path: Path, picture: Path) -> None:
    shown = EventAccumulator(str(write_run(tmp_path / "events", picture)), size_guidance={"images": 0}).Reload()
    assert sorted(shown.Tags()["scalars"]) == ["learning_rate/unet", "loss", "validation_loss"]
    losses = shown.Scalars("loss")
    assert [point.step for point in losses] == list(range(1, 37))
    assert [point.value for point in losses] == [float(np.float32(1 / step)) for step in range(1, 37)]
    assert [point.wall_time for point in losses] == [float(step) for step in range(1, 37)]
    assert [point.step for point in shown.Scalars("validation_loss")] == [3 * epoch for epoch in range(13)]
    images = shown.Images("samples/p0-s1")
    assert [image.step for image in images] == [3 * epoch for epoch in range(13)]
    assert (images[0].width, images[0].height) == (40, 24)
    assert images[0].encoded_image_string == picture.read_bytes()


def test_the_same_epoch_gives_the_same_bytes(tmp_path: Path, picture: Path) -> None:
    one, two = (write_run(tmp_path / name, picture) for name in ("one", "two"))
    assert [path.read_bytes() for path in sorted(one.iterdir())] == [it.read_bytes() for it in sorted(two.iterdir())]


@given(st.integers(0, 2**53), st.floats(width=32, allow_nan=False), st.text(max_size=300))
def test_any_step_and_value_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, step: int, value: float, tag: str
) -> None:
    path = tmp_path_factory.mktemp("events") / events_file(1)
    write_events(path, [Scalars(step, {tag: value})], [])
    version, event = list(LegacyEventFileLoader(str(path)).Load())
    assert version.file_version == "brain.Event:2"
    assert (event.step, event.wall_time) == (step, step)
    assert [(it.tag, it.simple_value) for it in event.summary.value] == [(tag, value)]


def test_what_is_written_is_what_protocol_buffers_would_write(tmp_path: Path) -> None:
    path = tmp_path / events_file(7)
    write_events(path, [Scalars(200, {"a": 0.5, "b": -2.0})], [])
    event = Event(wall_time=200, step=200)
    event.summary.value.add(tag="a", simple_value=0.5)
    event.summary.value.add(tag="b", simple_value=-2.0)
    assert event.SerializeToString(deterministic=True) in path.read_bytes()


def test_the_curves_of_an_epoch_are_its_own_steps(make: Maker) -> None:
    """Whether or not the epochs before had a checkpoint, at which the session forgets its steps."""
    session = make(epochs=3, validation={"images": 1, "draws": 1})
    per_epoch = session.course.steps_per_epoch
    session.position.record_validation(0, 0.75)
    assert [(it.step, dict(it.values)) for it in curves(session, 0)] == [(0, {"validation_loss": 0.75})]
    done = [session.step() for _ in range(2 * per_epoch)]
    session.position.record_validation(2, 0.5)
    found = curves(session, 2)
    assert [it.step for it in found] == [*range(per_epoch + 1, 2 * per_epoch + 1), 2 * per_epoch]
    for point, stepped in zip(found, done[per_epoch:], strict=False):
        half = stepped.learning_rate / 2
        rates = {"learning_rate/unet": stepped.learning_rate, "learning_rate/text_encoder": half}
        assert point.values == {"loss": stepped.loss} | rates
    assert found[-1].values == {"validation_loss": 0.5}
    session.position.forget_steps()
    session.step()
    assert [it.step for it in curves(session, 3)] == [2 * per_epoch + 1]


def test_a_part_that_is_not_trained_has_no_curve(make: Maker) -> None:
    session = make(optimizer={"type": "AdamW", "textEncoderLearningRate": 0})
    session.step()
    assert curves(session, 1)[0].values.keys() == {"loss", "learning_rate/unet"}


def test_a_damaged_record_is_seen(tmp_path: Path) -> None:
    """TensorBoard takes the checksums for good, so they are right."""
    path = tmp_path / events_file(1)
    write_events(path, [Scalars(step, {"loss": 0.5}) for step in range(5)], [])
    whole = path.read_bytes()
    assert len(list(LegacyEventFileLoader(str(path)).Load())) == 6
    path.write_bytes(whole[:-8] + b"\x00\x01" + whole[-6:])
    assert len(list(LegacyEventFileLoader(str(path)).Load())) == 5
