"""Buckets, steps and metadata of whole datasets, number by number as kohya's sd-scripts has them.

The numbers in `kohya_tables.json` were made by sd-scripts itself (kohya-ss/sd-scripts 48d368fa of 2026-02-16): blank
pictures of these sizes were laid into these folders, and `train_network.py`'s own dataset, its count of steps and its
metadata were asked. A row is a picture's size, its bucket, and the size that it is scaled to. Captions in a list go
to a folder's pictures in turn; without one they have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_trainer.batches import Course, arrange
from darkroom_trainer.buckets import Placement
from darkroom_trainer.dataset import Picture, tokens_of
from darkroom_trainer.families.configurations import SD15
from darkroom_trainer.families.model import Nature
from darkroom_trainer.metadata import BaseModelFile, metadata
from tests.builders.specs import MINIMAL

Table = dict[str, Any]
TABLES: dict[str, Table] = json.loads(Path(__file__).with_name("kohya_tables.json").read_text())
EVERY_TABLE = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def pictures(table: Table) -> list[Picture]:
    found = []
    for folder, rows in table["folders"].items():
        captions = table["captions"].get(folder) or [tokens_of(folder)]
        for index, ((width, height), *_) in enumerate(rows):
            name = f"{folder}/{index:02}.png"
            caption = captions[index % len(captions)]
            repeats = int(folder.partition("_")[0])
            found.append(Picture(Path(name), name, folder, (width, height), caption, repeats, name))
    return found


def trained(table: Table) -> tuple[LoraTrainingSpec, Course]:
    spec = LoraTrainingSpec.model_validate(MINIMAL | {"training": table["training"]})
    return spec, arrange(pictures(table), spec.training)


def test_there_are_at_least_ten_sets_of_sizes() -> None:
    assert len(TABLES) >= 10
    assert sum(len(rows) for table in TABLES.values() for rows in table["folders"].values()) > 100


@EVERY_TABLE
def test_every_picture_is_scaled_and_cropped_as_kohya_does(table: Table) -> None:
    _, course = trained(table)
    rows = [row for folder in table["folders"].values() for row in folder]
    expected = [Placement(tuple(scaled), tuple(bucket)) for _, bucket, scaled in rows]
    assert [item.placement for item in course.items] == expected


@EVERY_TABLE
def test_an_epoch_has_as_many_batches_and_steps_as_kohyas(table: Table) -> None:
    _, course = trained(table)
    told = table["metadata"]
    assert course.batches_per_epoch == int(told["ss_num_batches_per_epoch"])
    assert course.steps_per_epoch == table["stepsPerEpoch"]
    assert course.total_steps == int(told["ss_max_train_steps"])
    assert sum(len(batch) for batch in course.order(0)) == int(told["ss_num_train_images"])


@EVERY_TABLE
def test_a_file_tells_of_its_dataset_what_kohyas_tells(table: Table) -> None:
    spec, course = trained(table)
    base = BaseModelFile("m.safetensors", "0" * 64, "0" * 8)
    ours = metadata(spec, course, base, nature=Nature(SD15), name="x", epoch=1)
    expected = table["metadata"]
    told = {name: ours.get(name) for name in expected}
    read = {
        name: json.loads(value) if value and not isinstance(expected[name], str) else value
        for name, value in told.items()
    }
    assert read == expected
