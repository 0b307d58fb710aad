"""A LoRA's file in kohya's format: what A1111, Forge, ComfyUI, kohya and diffusers all load.

Neighbours: `lora_names` knows the layers' names, `metadata` what a file says of itself. No time and no host name goes
into a file: an epoch that is trained again after a stop must give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from darkroom_trainer.safetensors_file import encode


def encode_lora(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Encode a file of such tensors, with the two hashes by which A1111 and kohya know it."""
    bare = encode(tensors, {name: value for name, value in metadata.items() if name.startswith("ss_")})
    header_bytes = 8 + int.from_bytes(bare[:8], "little")
    hashes = {
        "sshs_model_hash": hashlib.sha256(bare[header_bytes:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8],
    }
    return encode(tensors, {**metadata, **hashes})


def exactly(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a copy in host memory as files keep what must not be rounded: in their number format only where that fits.

    A rounded alpha would scale the whole LoRA.
    """
    copy = tensor.detach().to("cpu", copy=True).contiguous()
    return copy.to(dtype) if torch.equal(copy.to(dtype).to(copy.dtype), copy) else copy
