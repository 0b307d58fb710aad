"""The trained part of a LoraTraining: a network's layers inside UNet and text encoders.

`lora_format` writes it to a file, `state` keeps it for a resume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from darkroom_api.networks import Network
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.lora_format import encode_lora, exactly
from darkroom_trainer.networks.adapted import Adapted
from darkroom_trainer.networks.building import build
from darkroom_trainer.networks.initial import begin_with
from darkroom_trainer.networks.selection import choose_places
from darkroom_trainer.number_formats import copied
from darkroom_trainer.randomness import noise_source
from darkroom_trainer.trainees import Write
from darkroom_trainer.weights_file import WeightsFile


@dataclass(frozen=True)
class Adapter:
    """An adapter of any network."""

    layers: tuple[Adapted, ...]

    def named_parameters(self, part: str | None = None) -> dict[str, torch.nn.Parameter]:
        """Return the trained weights, of one part or of all, always in the same order."""
        return {name: it for layer in self.layers if part in (None, layer.place.part) for name, it in layer.named()}

    def file_tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Return the tensors of a file, copied: the weights of every layer, and its alpha.

        Raises:
            RunError: A weight is too large for this number format.
        """
        beside = {
            f"{layer.place.name}.{suffix}": exactly(tensor, dtype)
            for layer in self.layers
            for suffix, tensor in layer.exact().items()
        }
        return copied({name: it for layer in self.layers for name, it in layer.in_file()}, dtype) | beside

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
        written = [parameter for layer in self.layers for _, parameter in layer.in_file()]
        exact = [parameter.data for parameter in written]
        for parameter in written:
            parameter.data = parameter.data.to(dtype).to(parameter.dtype)
        try:
            yield
        finally:
            for parameter, data in zip(written, exact, strict=True):
                parameter.data = data

    @contextlib.contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Let the adapter count for so much, as a person would have it in a prompt: <lora:name:0.8>."""
        for layer in self.layers:
            layer.strength = strength
        try:
            yield
        finally:
            for layer in self.layers:
                layer.strength = 1.0


def build_layers(
    network: Network,
    model: StableDiffusion,
    *,
    seed: int,
    train_text_encoder: bool,
    initial: WeightsFile | None = None,
) -> tuple[Adapted, ...]:
    """Make the layers of the network that a spec asks for, not yet part of the model.

    Args:
        network: What the spec asks for.
        model: The base model.
        seed: All weights that are drawn follow from it.
        train_text_encoder: Whether text encoders take part.
        initial: A trained file to begin with.

    Raises:
        RunError: No layer is left, or the file is of another network.
    """
    places = choose_places(network, model, train_text_encoder=train_text_encoder)
    layers = tuple(build(network, it, noise_source(seed, "adapter", it.part, it.module)) for it in places)
    if initial is not None:
        begin_with(initial, layers)
    return layers


def inject(
    network: Network,
    model: StableDiffusion,
    *,
    seed: int,
    train_text_encoder: bool,
    initial: WeightsFile | None = None,
) -> Adapter:
    """Put a network into a model; without a file to begin with, it changes nothing at first. As `build_layers`."""
    layers = build_layers(network, model, seed=seed, train_text_encoder=train_text_encoder, initial=initial)
    for layer in layers:
        layer.attach()
    return Adapter(layers)
