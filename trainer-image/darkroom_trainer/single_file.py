"""Write a whole checkpoint: every tensor of the input's file, with those that changed in their places.

Safetensors are streamed, so that only what changed is in memory; a .ckpt is a pickle and must be held as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch

from darkroom_trainer.safetensors_file import Entry, write_streamed
from darkroom_trainer.weights_file import DTYPE_NAMES, TORCH_DTYPES, WeightsFile

_FLOATS: Final = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_OF_ITSELF: Final = ("modelspec.", "ss_", "sshs_")


def write_checkpoint(
    path: Path,
    base: WeightsFile,
    changed: Mapping[str, torch.Tensor],
    *,
    cast: tuple[str, ...],
    dtype: torch.dtype,
    file_format: str,
    metadata: Mapping[str, str],
    left_out: frozenset[str] = frozenset(),
) -> None:
    """Write a checkpoint; equal input gives equal bytes.

    Args:
        path: Where to.
        base: The file whose every key is kept.
        changed: Tensors by their names in the file; ones that it does not have are added.
        left_out: Marks of the base that are no longer true.
        cast: Beginnings of the names of weights, which get the number format. All else is copied bit for bit: rounded,
            the noise schedule that old files hold would end in numbers that are not finite.
        dtype: The number format; integers stay as they are.
        file_format: Safetensors or Ckpt.
        metadata: What the file says of itself; a .ckpt has no place for it.
    """
    names = sorted({*base.header.shapes, *changed} - left_out)
    if file_format == "Ckpt":
        kept = {name: it.to(_wanted(name, it.dtype, cast, dtype)) for name, it in base.tensors() if name not in changed}
        tensors = {**kept, **changed}
        torch.save({"state_dict": {name: tensors[name] for name in names}}, path)
        return
    entries = [_entry(name, base, changed, cast=cast, dtype=dtype) for name in names]

    def read(names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        kept = base.tensors(name for name in names if name not in changed)
        for name in names:
            if name in changed:
                yield name, changed[name]
            else:
                tensor = next(kept)[1]
                yield name, tensor.to(_wanted(name, tensor.dtype, cast, dtype))

    write_streamed(path, entries, read, metadata={**_inherited(base), **metadata})


def _inherited(base: WeightsFile) -> dict[str, str]:
    """Return what of a base model's metadata is still true: not its author, its hash, its title."""
    return {key: value for key, value in base.header.metadata.items() if not key.startswith(_OF_ITSELF)}


def _entry(
    name: str,
    base: WeightsFile,
    changed: Mapping[str, torch.Tensor],
    *,
    cast: tuple[str, ...],
    dtype: torch.dtype,
) -> Entry:
    if name in changed:
        return Entry(name, DTYPE_NAMES[changed[name].dtype], tuple(changed[name].shape))
    given = TORCH_DTYPES[base.header.dtypes[name]]
    return Entry(name, DTYPE_NAMES[_wanted(name, given, cast, dtype)], base.header.shapes[name])


def _wanted(name: str, given: torch.dtype, cast: tuple[str, ...], dtype: torch.dtype) -> torch.dtype:
    return dtype if name.startswith(cast) and given in _FLOATS else given
