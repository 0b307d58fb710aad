"""TensorBoard's event files, written so that the same epoch gives the same bytes.

One file per epoch, all in one folder, which TensorBoard reads in the order of their names as one run; `results` says
what goes in. TensorBoard's own writers put times and a host name in, and bring a server along.

Formats: TFRecord (tensorflow/core/lib/io/record_writer.h: length, masked CRC-32C of it, data, masked CRC-32C of it,
little-endian) around Protocol Buffers (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import google_crc32c
from PIL import Image

_VERSION: Final = b"brain.Event:2"
_RGB: Final = 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Protocol Buffers' ways to write a value."""


@dataclass(frozen=True)
class Scalars:
    """Numbers of a step, by tag."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Picture:
    """A picture of a step: a PNG file of three channels."""

    step: int
    tag: str
    path: Path


def write_events(path: Path, scalars: Iterable[Scalars], pictures: Iterable[Picture]) -> None:
    """Write an event file.

    An event's time is its step, in seconds: a clock's would make an epoch that is trained again another file.
    """
    with path.open("wb") as file:
        _write(file, _event(0, _field(3, _VERSION)))
        for point in scalars:
            summary = b"".join(_field(1, _scalar(tag, value)) for tag, value in point.values.items())
            _write(file, _event(point.step, _field(5, summary)))
        for picture in pictures:
            _write(file, _event(picture.step, _field(5, _field(1, _picture(picture)))))


def _write(file: BinaryIO, event: bytes) -> None:
    length = struct.pack("<Q", len(event))
    file.write(length + _checksum(length) + event + _checksum(event))


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _event(step: int, content: bytes) -> bytes:
    return _tag(1, _FIXED64) + struct.pack("<d", step) + _number(2, step) + content


def _scalar(tag: str, value: float) -> bytes:
    return _field(1, tag.encode()) + _tag(2, _FIXED32) + struct.pack("<f", value)


def _picture(picture: Picture) -> bytes:
    with Image.open(picture.path) as image:
        width, height = image.size
    pixels = _number(1, height) + _number(2, width) + _number(3, _RGB) + _field(4, picture.path.read_bytes())
    return _field(1, picture.tag.encode()) + _field(4, pixels)


def _field(number: int, data: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _varint(value)


def _tag(number: int, way: int) -> bytes:
    return _varint(number << 3 | way)


def _varint(value: int) -> bytes:
    """Encode a natural number, seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
