"""A model trained as a whole or in parts, and its checkpoint: the input's file with what was trained in its place.

Neighbours: `families.naming` says where a file keeps each weight, `single_file` writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from darkroom_api.model_training import ModelTrainingSpec
from darkroom_trainer.families.configurations import UNET, VAE
from darkroom_trainer.families.loading import V_PREDICTION_MARK, ZERO_SNR_MARK, key_in_file
from darkroom_trainer.families.model import UNET_PART, StableDiffusion
from darkroom_trainer.number_formats import copied
from darkroom_trainer.single_file import write_checkpoint
from darkroom_trainer.trainees import Write

_AVERAGED: Final = "model_ema."
"""What begins the names of the base model's own averaged weights."""
_SIGNS: Final = {"All": ("",), "Attention": (".attn1.", ".attn2."), "CrossAttention": (".attn2.",), "None": ()}
"""What the names of the UNet's weights hold, any of them, by the API's words for what is trained."""


@dataclass(frozen=True)
class WholeModel:
    """The weights of the model that are trained, in fp32."""

    model: StableDiffusion
    trained: Mapping[str, Mapping[str, torch.nn.Parameter]]
    """By part, then by name in it."""
    file_format: str

    def named_parameters(self, part: str | None = None) -> dict[str, torch.nn.Parameter]:
        """Return the trained weights, of one part of the model or of all, always in the same order."""
        return {
            f"{it}.{name}": parameter
            for it, parameters in self.trained.items()
            if part in (None, it)
            for name, parameter in parameters.items()
        }

    @contextlib.contextmanager
    def rounded(self, dtype: torch.dtype) -> Iterator[None]:
        """Hold all weights, also those that are not trained, as a file of this number format would give them back.

        Exact copies wait in host memory: the accelerator may not hold the model twice.
        """
        exact: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        try:
            for module in (*self.model.parts.values(), self.model.vae):
                for parameter in module.parameters():
                    nearest = parameter.data.to(dtype).to(parameter.dtype)
                    if not torch.equal(nearest, parameter.data):
                        exact.append((parameter, parameter.data.to("cpu", copy=True)))
                        parameter.data.copy_(nearest)
            yield
        finally:
            for parameter, data in exact:
                parameter.data.copy_(data)

    def draft(self, dtype: torch.dtype) -> Write:
        """Copy the trained weights to host memory and return what writes a whole checkpoint.

        Raises:
            RunError: A weight is too large for this number format.
        """
        file, tensors = self.model.file, copied(self._in_file(), dtype)
        untrue = self._untrue_marks()
        weights = (UNET, VAE, _AVERAGED, *(encoder.file.prefix for encoder in self.model.text_encoders))

        def write(path: Path, metadata: Mapping[str, str]) -> None:
            write_checkpoint(
                path,
                file,
                tensors,
                cast=weights,
                dtype=dtype,
                file_format=self.file_format,
                metadata=metadata,
                left_out=untrue,
            )

        return write

    def _in_file(self) -> dict[str, torch.Tensor]:
        """Return the trained weights, and marks that the file needs, under the file's names and in its shapes."""
        file, tensors = self.model.file, dict[str, torch.Tensor]()
        for part, parameters in self.trained.items():
            for link in self.model.links[part]:
                if link.names[0] in parameters:
                    key = key_in_file(link.key, file)
                    packed = link.pack([parameters[name].data for name in link.names])
                    tensors[key] = packed.reshape(file.header.shapes[key])
        return tensors | self._marks()

    def _marks(self) -> dict[str, torch.Tensor]:
        """Return the empty tensors by which ComfyUI and Forge know an SDXL model of v-prediction."""
        nature = self.model.nature
        marks = {V_PREDICTION_MARK: nature.predicts_velocity, ZERO_SNR_MARK: nature.zero_terminal_snr}
        return {mark: torch.empty(0) for mark, wanted in marks.items() if wanted and nature.family.pooled}

    def _untrue_marks(self) -> frozenset[str]:
        nature = self.model.nature
        marks = {V_PREDICTION_MARK: nature.predicts_velocity, ZERO_SNR_MARK: nature.zero_terminal_snr}
        return frozenset(mark for mark, wanted in marks.items() if not wanted)


def unfreeze(spec: ModelTrainingSpec, model: StableDiffusion, *, train_text_encoder: bool) -> WholeModel:
    """Make the parts of a model trainable that a spec asks for; it must have been loaded in fp32."""
    signs = _SIGNS[spec.parts.unet]
    trained = {UNET_PART: _trainable(model.unet, signs)}
    if train_text_encoder:
        trained |= {part: _trainable(module, ("",)) for part, module in model.text_parts.items()}
    return WholeModel(model, {part: it for part, it in trained.items() if it}, spec.checkpoints.format)


def _trainable(module: torch.nn.Module, signs: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    chosen = {name: it for name, it in module.named_parameters() if any(sign in name for sign in signs)}
    for parameter in chosen.values():
        assert parameter.dtype == torch.float32, "steps are too small for half precision"
        parameter.requires_grad_()
    return chosen
