"""Write a whole checkpoint: every tensor of the input's file, with those that changed in their places.

Safetensors are streamed, so that only what changed is in memory; a .ckpt is a pickle and must be held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch

from darkroom_trainer.safetensors_file import Entry, write_streamed
from darkroom_trainer.weights_file import DTYPE_NAMES, WeightsFile

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})


def write_checkpoint(
    path: Path,
    base: WeightsFile,
    changed: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    file_format: str,
    metadata: Mapping[str, str],
) -> None:
    """Write a checkpoint; equal input gives equal bytes.

    Args:
        path: Where to.
        base: The file whose every key is kept, and whose own metadata is as far as no other is given.
        changed: Tensors by their names in the file; ones that it does not have are added.
        dtype: Number format of all floating-point tensors; integers stay as they are.
        file_format: Safetensors or Ckpt.
        metadata: What the file says of itself; a .ckpt has no place for it.
    """
    if file_format == "Ckpt":
        tensors = {name: _cast(tensor, dtype) for name, tensor in base.tensors() if name not in changed}
        torch.save({"state_dict": {name: (tensors | dict(changed))[name] for name in _names(base, changed)}}, path)
        return
    entries = [_entry(name, base, changed, dtype=dtype) for name in _names(base, changed)]

    def read(names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        kept = base.tensors(name for name in names if name not in changed)
        for name in names:
            yield (name, changed[name]) if name in changed else (name, _cast(next(kept)[1], dtype))

    write_streamed(path, entries, read, metadata={**base.header.metadata, **metadata})


def _names(base: WeightsFile, changed: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted({*base.header.shapes, *changed})


def _entry(name: str, base: WeightsFile, changed: Mapping[str, torch.Tensor], *, dtype: torch.dtype) -> Entry:
    if name in changed:
        return Entry(name, DTYPE_NAMES[changed[name].dtype], tuple(changed[name].shape))
    given = base.header.dtypes[name]
    return Entry(name, DTYPE_NAMES[dtype] if given in _FLOATS else given, base.header.shapes[name])


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1 else tensor
