"""Weights on the disk, whatever holds them: a .safetensors file, a pickled .ckpt, or a part of a diffusers folder.

A header is looked at before any tensor is read. Pickles are unpacked by torch's reader of plain tensors alone, so no
code in them is ever run. Neighbour: `safetensors_file` knows that format.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError
from darkroom_trainer.safetensors_file import BASE_MODEL, Header, read_header

PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How a pickled checkpoint begins: torch's zip, or the bare pickle of before torch 1.6."""
DTYPE_NAMES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
}
"""Number formats in the words of the safetensors format."""
TORCH_DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_SAFE_ADVICE: Final = "Convert the file to .safetensors on a machine that may run it, and give that one."


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights, its header checked."""

    path: Path
    header: Header
    pickled: Mapping[str, torch.Tensor] | None = None
    """The tensors of a .ckpt, mapped from the disk where its format allows that."""
    field: str = BASE_MODEL
    """The field of the spec that names it."""

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors by name, all unless told which, one in memory at a time."""
        wanted = self.header.shapes if names is None else names
        if self.pickled is not None:
            yield from ((name, self.pickled[name]) for name in wanted)
            return
        with safe_open(self.path, framework="pt") as file:
            for name in wanted:
                yield name, file.get_tensor(name)


def open_weights(path: Path, *, field: str = BASE_MODEL) -> WeightsFile:
    """Look at a file of weights, which a field of the spec names, without reading its tensors.

    Raises:
        RunError: It is neither format, not whole, or a pickle of more than tensors.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(PICKLES):
        tensors = _unpickle(path, field)
        shapes = {name: tuple(it.shape) for name, it in tensors.items()}
        dtypes = {name: DTYPE_NAMES[it.dtype] for name, it in tensors.items()}
        return WeightsFile(path, Header(shapes, {}, dtypes), tensors, field)
    return WeightsFile(path, read_header(path, field=field), field=field)


def _unpickle(path: Path, field: str) -> dict[str, torch.Tensor]:
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"{field}: {path.name} is a pickle that holds more than tensors, which could run code: "
            f"{str(error).splitlines()[-1][:300]}",
            advice=_SAFE_ADVICE,
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, MemoryError):
            raise
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"{field}: {path.name} begins as a pickled checkpoint, but cannot be read: "
            f"{type(error).__name__} {str(error)[:300]}",
        ) from error
    found = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(found, Mapping):
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"{field}: {path.name} holds a {type(content).__name__}, no tensors by name",
            advice=_SAFE_ADVICE,
        )
    return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(_stand_ins(path)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # of before torch 1.6: no zip to map


class _StandIn:
    """Stands where a checkpoint of Stability's own trainer mentions a class of its framework; it does nothing."""


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    try:
        mentioned = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # noqa: BLE001 - not a zip, or damaged: reading it will tell
        return []
    return [(_StandIn, name) for name in mentioned if name.startswith("pytorch_lightning.")]
