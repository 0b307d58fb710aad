"""A diffusers folder made into one file, as CompVis and Stability publish it: all that follows knows one form.

What the tensors' shapes do not tell (heads, groups, what is predicted) goes along as `darkroom.config` in the file's
metadata. Neighbours: `naming` has the names, `loading` reads the file, `diffusers_folder` chose what is in the folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from darkroom_api.failures import FailureReason
from darkroom_trainer.diffusers_folder import INDEX, SCHEDULER, classes_of
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import SD2, SD15, SDXL, UNET, VAE, Config, Family
from darkroom_trainer.families.loading import CONFIG_KEY, VAE_PART
from darkroom_trainer.families.model import UNET_PART
from darkroom_trainer.families.naming import Link, clip_links, open_clip_links, unet_links, vae_links
from darkroom_trainer.safetensors_file import Entry, write_streamed
from darkroom_trainer.weights_file import WeightsFile, open_weights

_OLD_VAE_NAMES: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the attention, as old releases of diffusers wrote them."""
_OLD_VAE_ATTENTION: Final = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(_OLD_VAE_NAMES)})\.")
_NO_WEIGHTS: Final = (".position_ids",)
_TEXT_KEYS: Final = frozenset(
    {"hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings"}
    | {"num_attention_heads", "num_hidden_layers", "projection_dim", "vocab_size"}
)
"""What is taken over of a text encoder. Not the ids of marks: old configurations have a wrong one for the end."""
_SCHEDULER_KEYS: Final = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type", "rescale_betas_zero_snr"}
)
"""What is taken over of the scheduler: what the model was trained on, not how its folder would sample."""


@dataclass(frozen=True)
class _Place:
    """Where a weight lies in the folder."""

    file: WeightsFile
    name: str

    @property
    def dtype(self) -> str:
        return self.file.header.dtypes[self.name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.header.shapes[self.name]


@dataclass(frozen=True)
class _Source:
    """Where a tensor of the file comes from."""

    link: Link
    places: tuple[_Place, ...]

    @property
    def entry(self) -> Entry:
        (dtype, *others), shapes = {it.dtype for it in self.places}, [it.shape for it in self.places]
        if others:
            raise ValueError(f"{', '.join(it.name for it in self.places)} have different number formats")
        shape = (sum(first for first, *_ in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
        return Entry(self.link.key, dtype, self._outer(shape[::-1] if self.link.transposed else shape))

    def pack(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the file's tensor."""
        tensor = self.link.pack(weights)
        return tensor.reshape(self._outer(tuple(tensor.shape)))

    def _outer(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in the file: its VAE has 1x1 convolutions where diffusers has linear layers."""
        is_projection = self.link.key.startswith(VAE) and ".attn_1." in self.link.key and len(shape) == 2
        return (*shape, 1, 1) if is_projection else shape


def _go_on() -> None:
    """Do nothing."""


def assemble(folder: Path, *, before_tensor: Callable[[], None] = _go_on) -> Path:
    """Make one file of a folder, beside it, remove the folder, and return the file; equal input gives equal bytes.

    Args:
        folder: As diffusers' `save_pretrained` writes it.
        before_tensor: Called before each tensor is copied; may raise to give up.

    Raises:
        RunError: The parts are damaged or do not fit together.
    """
    path = folder.with_name(f"{folder.name}.safetensors")
    try:
        configs = {part: _config(folder / part / "config.json") for part in classes_of((folder / INDEX).read_bytes())}
        configs["scheduler"] = _config(folder / SCHEDULER)
        family = _family(configs)
        sources = [it for part in configs if part != "scheduler" for it in _sources(folder, part, family, configs)]
        by_key = {it.link.key: it for it in sources}
        if len(by_key) < len(sources):
            raise ValueError("two of its weights belong in the same place")  # noqa: TRY301 - same end as other misfits

        def read(keys: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for found in _read(by_key, keys):
                before_tensor()
                yield found

        metadata = {CONFIG_KEY: json.dumps(_told(configs), sort_keys=True), "format": "pt"}
        write_streamed(path, [it.entry for it in sources], read, metadata=metadata)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: the parts of the folder {folder.name} do not fit together: "
            f"{type(error).__name__} {str(error)[:400]}",
        ) from error
    shutil.rmtree(folder)
    return path


def _config(path: Path) -> Config:
    content: Config = json.loads(path.read_bytes())
    return {name: value for name, value in content.items() if not name.startswith("_")}


def _family(configs: Mapping[str, Config]) -> Family:
    if SDXL.text_encoders[1].part in configs:
        return SDXL
    # CLIP ViT-L alone has the quick variant, which is transformers' default too.
    return SD2 if configs["text_encoder"].get("hidden_act", "quick_gelu") == "gelu" else SD15


def _sources(folder: Path, part: str, family: Family, configs: Mapping[str, Config]) -> list[_Source]:
    places = {_name_now(part, place.name): place for place in _places(folder, part)}
    links = _links(part, list(places), family, configs)
    sources = [_Source(link, tuple(places[name] for name in link.names)) for link in links]
    return sources + _unused_layers(part, sources, family)


def _places(folder: Path, part: str) -> Iterator[_Place]:
    """Yield all weights of a part, from one file or from shards."""
    for path in sorted(it for it in (folder / part).iterdir() if it.suffix in {".safetensors", ".bin"}):
        try:
            file = open_weights(path)
        except RunError as error:
            told = error.message.replace(path.name, f"{part}/{path.name}", 1)
            raise RunError(error.reason, told, advice=error.advice) from error
        yield from (_Place(file, name) for name in file.header.shapes if not name.endswith(_NO_WEIGHTS))


def _name_now(part: str, name: str) -> str:
    """Return the name that a weight has in today's diffusers."""
    if part != VAE_PART:
        return name
    return _OLD_VAE_ATTENTION.sub(lambda match: f"{match[1]}.{_OLD_VAE_NAMES[match[2]]}.", name)


def _links(part: str, names: list[str], family: Family, configs: Mapping[str, Config]) -> list[Link]:
    if part == UNET_PART:
        return unet_links(names, UNET, layers_per_block=configs[part].get("layers_per_block", 2))
    if part == VAE_PART:
        return vae_links(names, VAE, num_levels=len(configs[part]["block_out_channels"]))
    encoder = next(it for it in family.text_encoders if it.part == part)
    return (open_clip_links if encoder.is_open_clip else clip_links)(names, encoder.prefix)


def _unused_layers(part: str, sources: Sequence[_Source], family: Family) -> list[_Source]:
    """Return the last layers that files have and folders leave out: copies of the one before, as kohya writes them."""
    encoder = next((it for it in family.text_encoders if it.part == part), None)
    if encoder is None or not encoder.skipped_layers:
        return []
    start = f"{encoder.prefix}transformer.resblocks."
    number = {it.link.key: int(it.link.key[len(start) :].split(".")[0]) for it in sources if start in it.link.key}
    last = max(number.values())
    return [
        _Source(Link(it.link.key.replace(f"{start}{last}.", f"{start}{last + more}."), it.link.names), it.places)
        for more in range(1, encoder.skipped_layers + 1)
        for it in sources
        if number.get(it.link.key) == last
    ]


def _told(configs: Mapping[str, Config]) -> dict[str, Any]:
    """Return what `loading` is to know of the folder's configurations."""
    told: dict[str, Any] = {}
    for part, config in configs.items():
        keys = _SCHEDULER_KEYS if part == "scheduler" else _TEXT_KEYS if part.startswith("text_encoder") else config
        told[part] = {name: value for name, value in config.items() if name in keys}
    if told["scheduler"].get("rescale_betas_zero_snr"):
        told["scheduler"]["timestep_spacing"] = "trailing"  # the last step must be sampled too
    return told


def _read(sources: Mapping[str, _Source], keys: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the file's tensors in an order, with every file of the folder opened once."""
    asked: dict[Path, list[str]] = {}
    files: dict[Path, WeightsFile] = {}
    for place in (place for key in keys for place in sources[key].places):
        asked.setdefault(place.file.path, []).append(place.name)
        files[place.file.path] = place.file
    opened = {path: files[path].tensors(names) for path, names in asked.items()}
    for key in keys:
        yield key, sources[key].pack([next(opened[place.file.path])[1] for place in sources[key].places])
