"""What files of other trainers call a layer and its weights, and what alpha they mean.

Kohya and LyCORIS: `<layer>.<suffix>`, as ours. diffusers and PEFT: `<part>.<path>.<ending>`, alpha in the metadata
(`lora_adapter_metadata`, JSON); diffusers has written three endings for the same pair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from darkroom_trainer.networks.adapted import Adapted
from darkroom_trainer.networks.places import Place

ALPHA: Final = "alpha"
_KOHYA: Final = "lora_"
_ENDINGS: Final = {
    ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".alpha": ALPHA,
}
_ADAPTER_METADATA: Final = "lora_adapter_metadata"


@dataclass(frozen=True)
class Foreign:
    """A tensor's name in a file, taken apart."""

    layer: str
    suffix: str
    """As in kohya's files."""

    @classmethod
    def of(cls, key: str) -> Foreign:
        """Take a name apart; one of an unknown kind is a layer by itself."""
        if key.startswith(_KOHYA):
            layer, _, suffix = key.partition(".")
            return cls(layer, suffix)
        for ending, suffix in _ENDINGS.items():
            if key.endswith(ending):
                return cls(_without_text_model(key.removesuffix(ending)), suffix)
        return cls(key, "")


def recognised(place: Place) -> tuple[str, ...]:
    """Return all that a layer may be called in a file."""
    return (*place.names, _without_text_model(f"{place.part}.{place.module}"))


@dataclass(frozen=True)
class Settings:
    """What a LoRA of PEFT says of itself, part by part; empty for other files."""

    told: Mapping[str, Any]

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Settings:
        """Read them.

        Raises:
            ValueError: They are no JSON object.
        """
        told = json.loads(metadata.get(_ADAPTER_METADATA, "{}"))
        if not isinstance(told, dict):
            raise ValueError(f"{_ADAPTER_METADATA} is no JSON object")  # noqa: TRY004 - the file is wrong, not a caller
        return cls(told)

    def alpha(self, layer: Adapted) -> float:
        """Return a layer's alpha where the file has no tensor for it; if nothing is told, every reader scales by 1.

        Raises:
            ValueError: What is told is no number.
        """
        part, alpha = layer.place.part, self.told.get(f"{layer.place.part}.lora_alpha", layer.rank)
        for pattern, own in dict(self.told.get(f"{part}.alpha_pattern") or {}).items():
            if f".{layer.place.module}".endswith(f".{pattern}"):
                alpha = own
        if not isinstance(alpha, (int, float)):
            raise ValueError(f"{_ADAPTER_METADATA}: alpha {alpha!r} is no number")  # noqa: TRY004
        # Kalajdzievski 2023 (arXiv 2312.03732): such a LoRA is scaled by alpha / sqrt(rank).
        return alpha * (math.sqrt(layer.rank) if self.told.get(f"{part}.use_rslora") else 1.0)


def _without_text_model(name: str) -> str:
    return name.replace(".text_model.", ".")
