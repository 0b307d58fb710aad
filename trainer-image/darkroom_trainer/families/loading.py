"""Load a base model of any family, offline: configurations from the tensors' shapes, names by `naming`.

Neighbours: `recognition` judged the file before, `folders` brings a diffusers folder into the same form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_api.failures import FailureReason
from darkroom_api.objectives import Objective
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import (
    SCHEDULER,
    SD2,
    UNET,
    VAE,
    Config,
    Family,
    TextEncoderFile,
    text_encoder_config,
    unet_config,
    vae_config,
)
from darkroom_trainer.families.model import UNET_PART, StableDiffusion, TextEncoder
from darkroom_trainer.families.naming import Link, clip_links, open_clip_links, unet_links, vae_links
from darkroom_trainer.families.recognition import check_family
from darkroom_trainer.families.tokenizer import END, OPEN_CLIP_PAD, load_tokenizer
from darkroom_trainer.weights_file import WeightsFile, open_weights

CONFIG_KEY: Final = "darkroom.config"
V_PREDICTION_MARK: Final = "v_pred"
"""An empty tensor by which ComfyUI and Forge know an SDXL file that predicts v."""
ZERO_SNR_MARK: Final = "ztsnr"
"""An empty tensor that tells of a noise schedule which ends in pure noise."""
_PLAIN: Final = Objective()
VAE_PART: Final = "vae"
_MAXIMUM_LISTED: Final = 3


@dataclass(frozen=True)
class Configs:
    """What builds a model, in the words of diffusers and transformers."""

    unet: Config
    vae: Config
    text_encoders: tuple[Config, ...]
    scheduler: Config


def load(
    file: WeightsFile, family: Family, *, objective: Objective, dtype: torch.dtype, device: torch.device
) -> StableDiffusion:
    """Load a checked file; the VAE stays in fp32, since half precision turns some pictures into NaN.

    Args:
        file: The weights.
        family: What they are.
        objective: What the spec says of prediction and noise schedule.
        dtype: Number format of UNet and text encoders.
        device: Where to.

    Raises:
        RunError: Its tensors do not fit together.
    """
    configs = configurations(file, family, objective)
    try:
        with init_empty_weights():
            parts = {
                UNET_PART: UNet2DConditionModel.from_config(configs.unet),
                VAE_PART: AutoencoderKL.from_config(configs.vae),
                **{
                    encoder.part: _build_text_encoder(encoder, config)
                    for encoder, config in zip(family.text_encoders, configs.text_encoders, strict=True)
                },
            }
        links = links_of(family, parts, layers_per_block=configs.unet["layers_per_block"])
        for part, module in parts.items():
            _fill(module, file, links[part], device=device, dtype=torch.float32 if part == VAE_PART else dtype)
        scheduler = DDIMScheduler.from_config(configs.scheduler)
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {file.path.name} has the names of {family.title}, but its tensors do not fit: "
            f"{str(error)[:400]}",
        ) from error
    encoders = tuple(
        TextEncoder(it, parts[it.part], load_tokenizer(OPEN_CLIP_PAD if it.is_open_clip else END))
        for it in family.text_encoders
    )
    return StableDiffusion(file, family, parts[UNET_PART], parts[VAE_PART], encoders, scheduler, links, device, dtype)


def load_path(
    path: Path, *, dtype: torch.dtype, device: torch.device, objective: Objective = _PLAIN
) -> StableDiffusion:
    """Look at a file, recognise it and load it.

    Raises:
        RunError: It is no whole checkpoint of a family that is known here.
    """
    file = open_weights(path)
    family = check_family(file.header.shapes, path.name, family=None)
    return load(file, family, objective=objective, dtype=dtype, device=device)


def configurations(file: WeightsFile, family: Family, objective: Objective) -> Configs:
    """Derive the configurations from shapes, then let the file's own metadata, then the spec, have the last word.

    Raises:
        RunError: The metadata cannot be read, or a tensor that must be there is not.
    """
    shapes = file.header.shapes
    try:
        own = json.loads(file.header.metadata.get(CONFIG_KEY, "{}"))
        return Configs(
            unet={**unet_config(family, shapes), **own.get(UNET_PART, {})},
            vae={**vae_config(family, shapes), **own.get(VAE_PART, {})},
            text_encoders=tuple(
                {**text_encoder_config(it, shapes), **own.get(it.part, {})} for it in family.text_encoders
            ),
            scheduler=_schedule(file, family, own.get("scheduler", {}), objective),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(
            FailureReason.MODEL_REJECTED,
            f"spec.baseModel.uri: {file.path.name} is no complete {family.title} checkpoint: "
            f"{type(error).__name__} {error}",
        ) from error


def _schedule(file: WeightsFile, family: Family, own: Config, objective: Objective) -> Config:
    """Return the noise schedule: the family's, as the file and then the spec say otherwise.

    Raises:
        RunError: Nothing says what an SD 2.x model predicts; both are usual, and no tensor tells.
    """
    names, config = file.header.shapes, {**SCHEDULER, **own}
    told = file.header.metadata.get("modelspec.prediction_type")
    if told == "v" or V_PREDICTION_MARK in names:
        config["prediction_type"] = "v_prediction"
    if objective.prediction_type is not None:
        config["prediction_type"] = "epsilon" if objective.prediction_type == "Epsilon" else "v_prediction"
    elif family is SD2 and told is None and "prediction_type" not in own:
        raise RunError(
            FailureReason.INVALID_SPEC,
            f"spec.training.objective.predictionType: {file.path.name} does not say what it predicts; allowed for "
            f"{family.title}: Epsilon (the models of 512 pixels), VPrediction (those of 768)",
        )
    zero = objective.zero_terminal_snr
    if zero or (zero is None and ZERO_SNR_MARK in names):
        # Lin et al. 2023 (arXiv 2305.08891): the last step must be sampled too, or its pure noise is never seen.
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    elif zero is False:
        config |= {"rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
    return config


def _build_text_encoder(encoder: TextEncoderFile, config: Config) -> torch.nn.Module:
    kind = CLIPTextModelWithProjection if encoder.has_projection else CLIPTextModel
    built: torch.nn.Module = kind(CLIPTextConfig(**config))
    return built


def links_of(family: Family, parts: dict[str, torch.nn.Module], *, layers_per_block: int) -> dict[str, list[Link]]:
    names = {part: [name for name, _ in module.named_parameters()] for part, module in parts.items()}
    return {
        UNET_PART: unet_links(names[UNET_PART], UNET, layers_per_block=layers_per_block),
        VAE_PART: vae_links(names[VAE_PART], VAE, num_levels=4),
        **{
            it.part: (open_clip_links if it.is_open_clip else clip_links)(names[it.part], it.prefix)
            for it in family.text_encoders
        },
    }


def _fill(
    module: torch.nn.Module, file: WeightsFile, links: list[Link], *, device: torch.device, dtype: torch.dtype
) -> None:
    """Put tensors into an empty model, frozen and in evaluation mode, without a second copy in memory."""
    keys = {key_in_file(link.key, file): link for link in links}
    missing = [key for key in keys if key not in file.header.shapes]
    if missing:
        more = f" and {len(missing) - _MAXIMUM_LISTED} more" if len(missing) > _MAXIMUM_LISTED else ""
        raise KeyError(f"it lacks {', '.join(missing[:_MAXIMUM_LISTED])}{more}")
    expected, filled = dict(module.named_parameters()), dict[str, torch.Tensor]()
    for key, tensor in file.tensors(keys):
        for name, weight in zip(keys[key].names, keys[key].unpack(tensor), strict=True):
            fitted = _fitted(weight, expected[name].shape, key=key).to(device, dtype, copy=True)
            filled[name] = fitted.contiguous()  # a transposed one is multiplied slower, and rounded otherwise
    module.load_state_dict(filled, assign=True, strict=True)
    module.to(device)  # buffers that no file carries
    module.requires_grad_(requires_grad=False)
    module.eval()


def key_in_file(key: str, file: WeightsFile) -> str:
    """Return the name that a file has for a tensor: merging tools wrote text encoders without `text_model.`."""
    return key if key in file.header.shapes else key.replace(".transformer.text_model.", ".transformer.")


def _fitted(weight: torch.Tensor, shape: torch.Size, *, key: str) -> torch.Tensor:
    """Return a weight in the model's shape: 1x1 convolutions stand for linear layers in the files' VAE."""
    if [side for side in weight.shape if side != 1] != [side for side in shape if side != 1]:
        raise ValueError(f"{key} has the shape {tuple(weight.shape)}; expected {tuple(shape)}")
    return weight.reshape(shape)
