"""The trained part: an adapter inside UNet and text encoder. Each network of the spec has its builder here.

`lora_format` writes it to a file, `state` keeps it for a resume.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig, inject_adapter_in_model

from darkroom_api.networks import LoRA
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.lora_format import alpha_tensor, encode_lora
from darkroom_trainer.lora_names import layer_names
from darkroom_trainer.number_formats import copied
from darkroom_trainer.randomness import noise_source
from darkroom_trainer.trainees import Write

_TEXT_ENCODER_LAYERS: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_NAME: Final = "default"  # peft's own name for a single adapter


@dataclass(frozen=True)
class LowRankPair:
    """The two factors at one layer; their product, times alpha / rank, is added to the layer's weight."""

    part: str
    """As in `StableDiffusion.parts`."""
    module: str
    """The layer's path in its part."""
    name: str
    """The layer's name in kohya's files."""
    down: torch.nn.Parameter
    up: torch.nn.Parameter

    def named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield both factors under names that are unique in the adapter."""
        yield f"{self.part}.{self.module}.down", self.down
        yield f"{self.part}.{self.module}.up", self.up

    def in_file(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield both factors under their names in kohya's files."""
        yield f"{self.name}.lora_down.weight", self.down
        yield f"{self.name}.lora_up.weight", self.up


@dataclass(frozen=True)
class Adapter:
    """An adapter of any network that consists of low-rank pairs."""

    rank: int
    alpha: float
    pairs: tuple[LowRankPair, ...]

    def named_parameters(self, part: str | None = None) -> dict[str, torch.nn.Parameter]:
        """Return the trained weights, of one part or of all, always in the same order."""
        return {name: it for pair in self.pairs if part in (None, pair.part) for name, it in pair.named()}

    def file_tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the tensors of a file, copied: down, up and alpha of every layer.

        Raises:
            RunError: A weight is too large for this number format.
        """
        alphas = {f"{pair.name}.alpha": alpha_tensor(self.alpha, dtype) for pair in self.pairs}
        return copied({name: it for pair in self.pairs for name, it in pair.in_file()}, dtype) | alphas

    def draft(self, dtype: torch.dtype) -> Write:
        """Copy the weights to host memory and return what writes the copy to a file.

        Raises:
            RunError: A weight is too large for this number format.
        """
        tensors = self.file_tensors(dtype)

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            path.write_bytes(encode_lora(tensors, metadata))

        return write

    @contextlib.contextmanager
    def rounded(self, dtype: torch.dtype) -> Iterator[None]:
        """Hold the weights as a file of this number format would give them back, to paint what the file paints."""
        exact = {name: parameter.data for name, parameter in self.named_parameters().items()}
        for name, parameter in self.named_parameters().items():
            parameter.data = exact[name].to(dtype).to(exact[name].dtype)
        try:
            yield
        finally:
            for name, parameter in self.named_parameters().items():
                parameter.data = exact[name]


@singledispatch
def inject(network: object, model: StableDiffusion, *, seed: int, train_text_encoder: bool) -> Adapter:
    """Put the network that a spec asks for into a model; at first it changes nothing that the model paints."""
    raise NotImplementedError(f"no adapter for {type(network).__name__}")


@inject.register
def _(network: LoRA, model: StableDiffusion, *, seed: int, train_text_encoder: bool) -> Adapter:
    config = {"r": network.rank, "lora_alpha": network.alpha, "init_lora_weights": False}
    parts = model.parts if train_text_encoder else {UNET_PART: model.unet}
    pairs = [pair for part in parts for pair in _inject_part(model, part, config)]
    for pair in pairs:
        _initialise(pair, noise_source(seed, "adapter", pair.part, pair.module))
    return Adapter(network.rank, network.alpha, tuple(pairs))


def unet_layers(unet: torch.nn.Module) -> list[str]:
    """Return what kohya adapts: every linear layer and 1x1 convolution inside a transformer."""
    transformers = tuple(
        f"{name}." for name, module in unet.named_modules() if type(module).__name__ == "Transformer2DModel"
    )
    return [name for name, module in unet.named_modules() if name.startswith(transformers) and _is_pointwise(module)]


def text_encoder_layers(text_encoder: torch.nn.Module) -> list[str]:
    """Return what kohya adapts: the four projections of attention and the two layers of each MLP."""
    return [name for name, _ in text_encoder.named_modules() if name.endswith(_TEXT_ENCODER_LAYERS)]


def _is_pointwise(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear) or (isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1))


def _inject_part(model: StableDiffusion, part: str, config: Mapping[str, object]) -> list[LowRankPair]:
    module = model.parts[part]
    layers = unet_layers(module) if part == UNET_PART else text_encoder_layers(module)
    inject_adapter_in_model(LoraConfig(target_modules=layers, **config), module, adapter_name=_NAME)
    modules, names = dict(module.named_modules()), layer_names(model, part, layers)
    return [
        LowRankPair(part, it, names[it], modules[it].lora_A[_NAME].weight, modules[it].lora_B[_NAME].weight)
        for it in layers
    ]


def _initialise(pair: LowRankPair, generator: torch.Generator) -> None:
    """Draw `down` as kohya does (and torch for any linear layer), set `up` to 0; both fp32 whatever the base is."""
    down = torch.empty(pair.down.shape)
    torch.nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    device = pair.down.device
    pair.down.data = down.to(device)
    pair.up.data = torch.zeros(pair.up.shape, device=device)
    for parameter in (pair.down, pair.up):
        parameter.requires_grad_()
