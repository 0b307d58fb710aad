"""The safetensors format where the library is not enough: a check before anything is loaded, and the same bytes twice.

The library loads a damaged file with a message for programmers, and it writes metadata in a random order, so that the
same weights give another file each time. Layout: 8 bytes of header length, the header as JSON, the data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError

if TYPE_CHECKING:
    import torch

BASE_MODEL: Final = "spec.baseModel.uri"
MAXIMUM_HEADER_BYTES: Final = 100_000_000
"""What the format's own library accepts."""
BITS: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64"), 64),
}


@dataclass(frozen=True)
class Header:
    """What a file says it holds."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    dtypes: dict[str, str] = field(default_factory=dict, compare=False)
    """Number formats in the format's own words, such as F16."""


def read_header(path: Path, *, field: str = BASE_MODEL) -> Header:
    """Read and check the header of a file, which a field of the spec names, without loading any tensor.

    Raises:
        RunError: It is no safetensors file, or not a whole one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise _rejected(field, path, f"has {size} bytes; a .safetensors file has at least 8")
        (length,) = struct.unpack("<Q", start)
        if not 2 <= length <= MAXIMUM_HEADER_BYTES:
            raise _rejected(field, path, "does not begin with the header of a .safetensors file")
        if 8 + length > size:
            raise _rejected(field, path, f"is truncated: it has {size} bytes, its header alone says {8 + length}")
        text = file.read(length)
    return _parse(path, text, data_bytes=size - 8 - length, field=field)


def _parse(path: Path, text: bytes, *, data_bytes: int, field: str) -> Header:
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
        needed = _span(header.values())
        shapes = {str(name): tuple(entry["shape"]) for name, entry in header.items()}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")  # noqa: TRY301 - same end as any other damage
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _rejected(field, path, f"has a damaged .safetensors header: {error}") from error
    if needed > data_bytes:
        raise _rejected(field, path, f"is truncated: {data_bytes} bytes of tensors are there, its header says {needed}")
    if needed < data_bytes:
        raise _rejected(field, path, f"has {data_bytes - needed} bytes that its header does not know; it is damaged")
    return Header(shapes, dict(metadata), {str(name): str(entry["dtype"]) for name, entry in header.items()})


def _span(entries: Iterable[dict[str, Any]]) -> int:
    """Return where the last tensor's data ends, if all lie side by side from 0 on, as the format asks."""
    end = 0
    for begin, after in sorted(_place(entry) for entry in entries):
        if begin != end:
            raise ValueError(f"a tensor begins at {begin}, the one before ends at {end}")
        end = after
    return end


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    """Return where a tensor's data begins and ends, if its entry is consistent."""
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(isinstance(number, int) and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"shape {shape} at {begin} to {end}")
    if (end - begin) * 8 != math.prod(shape) * BITS.get(entry["dtype"], 0):
        raise ValueError(f"{entry['dtype']} of shape {shape} in {end - begin} bytes")
    return int(begin), int(end)


def _rejected(field: str, path: Path, problem: str) -> RunError:
    return RunError(FailureReason.MODEL_REJECTED, f"{field}: {path.name} {problem}")


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Encode tensors and metadata; equal input gives equal bytes."""
    from safetensors.torch import save  # torch: seconds that reading a header must not cost

    plain = save(dict(tensors))
    (length,) = struct.unpack("<Q", plain[:8])
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(plain[8 : 8 + length])}
    return _encode_header(header) + plain[8 + length :]


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Return what it takes in the file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def write_streamed(
    path: Path,
    entries: Sequence[Entry],
    read: Callable[[list[str]], Iterable[tuple[str, torch.Tensor]]],
    *,
    metadata: Mapping[str, str],
) -> None:
    """Write a file with one tensor in memory at a time; equal input gives equal bytes.

    Args:
        path: Where to.
        entries: All tensors.
        read: Yields tensors by name in the order that it is given: the widest numbers first, as the library has it.
        metadata: What the file says of itself.
    """
    ordered = sorted(entries, key=lambda entry: (-BITS[entry.dtype], entry.name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.num_bytes],
        }
        end += entry.num_bytes
    with path.open("wb") as file:
        file.write(_encode_header(header))
        for entry, (name, tensor) in zip(ordered, read([entry.name for entry in ordered]), strict=True):
            data = _bytes_of(tensor)
            assert name == entry.name
            assert len(data) == entry.num_bytes
            file.write(data)


def _encode_header(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8, as the format asks
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    data: memoryview = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
