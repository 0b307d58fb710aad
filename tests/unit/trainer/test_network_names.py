"""Layers and names of the published topologies, against the rules by which others look for them.

Rules, each stated anew here: kohya's sd-scripts `networks/lora.py` (prefix and its own model's path), ComfyUI
`comfy/lora.py` (`model_lora_keys_unet`, `model_lora_keys_clip`), A1111 `extensions-builtin/Lora/networks.py`
(`convert_diffusers_name_to_compvis`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from darkroom_trainer.families.configurations import FAMILIES
from darkroom_trainer.families.loading import links_of
from darkroom_trainer.families.model import StableDiffusion, TextEncoder
from darkroom_trainer.networks.places import Place, find_places
from tests.builders import models

UNETS: dict[str, dict[str, Any]] = {
    "SD15": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768},
    "SD2": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024},
    "SDXL": {
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10],
    },
}
LAYERS = {
    "SD15": {"text_encoder": 12},
    "SD2": {"text_encoder": 23},
    "SDXL": {"text_encoder": 12, "text_encoder_2": 32},
}


@lru_cache(maxsize=3)
def published(family: str) -> StableDiffusion:
    """Return a family's published topology: no weights, and text encoders as deep, but not as wide."""
    configs: dict[str, Any] = models.CONFIGS[family]
    encoders, parts = [], dict[str, torch.nn.Module]()
    with torch.device("meta"):
        unet = UNet2DConditionModel(**configs["unet"] | UNETS[family])
        for file in FAMILIES[family].text_encoders:
            config = CLIPTextConfig(**configs[file.part] | {"num_hidden_layers": LAYERS[family][file.part]})
            kind = CLIPTextModelWithProjection if file.has_projection else CLIPTextModel
            parts[file.part] = kind(config)
            encoders.append(TextEncoder(file, parts[file.part], None))  # type: ignore[arg-type]
        vae = models.tiny_modules(family)["vae"]
    links = links_of(FAMILIES[family], {"unet": unet, "vae": vae, **parts}, layers_per_block=2)
    rest: Any = None
    return StableDiffusion(
        file=rest,
        family=FAMILIES[family],
        unet=unet,
        vae=rest,
        text_encoders=tuple(encoders),
        scheduler=rest,
        links=links,
        device=torch.device("meta"),
        dtype=torch.float32,
    )


def places(family: str, *, convolutions: bool) -> dict[str, list[Place]]:
    model = published(family)
    return {part: find_places(model, part, convolutions=convolutions) for part in model.parts}


@pytest.mark.parametrize(
    ("family", "plain", "with_convolutions", "text"),
    [
        ("SD15", 192, 278, {"text_encoder": 72}),
        ("SD2", 192, 278, {"text_encoder": 138}),
        ("SDXL", 722, 788, {"text_encoder": 72, "text_encoder_2": 192}),
    ],
)
def test_as_many_layers_as_kohya_adapts(family: str, plain: int, with_convolutions: int, text: dict[str, int]) -> None:
    """Counted in files that kohya's sd-scripts wrote."""
    for convolutions, expected in ((False, plain), (True, with_convolutions)):
        found = {part: len(it) for part, it in places(family, convolutions=convolutions).items()}
        assert found == {"unet": expected, **text}
    spatial = [it for it in places(family, convolutions=True)["unet"] if it.is_spatial]
    assert {it.layer.kernel_size for it in spatial} == {(3, 3)}  # type: ignore[union-attr]
    # Two in each resnet and one in each sampler: 22 and 6, 17 and 4.
    assert len(spatial) == {"SD15": 50, "SD2": 50, "SDXL": 38}[family]


def kohya(family: str) -> set[str]:
    """Return the names of kohya's layers: its UNet of SD 1.x and 2.x has diffusers' names, that of SDXL the files'."""
    found = set()
    for part, its in places(family, convolutions=True).items():
        prefix = {
            "unet": "lora_unet",
            "text_encoder": "lora_te1" if family == "SDXL" else "lora_te",
            "text_encoder_2": "lora_te2",
        }[part]
        for it in its:
            path = in_file(family, part, it.module) if (family, part) == ("SDXL", "unet") else it.module
            head = "" if part == "unet" or path.startswith("text_model.") else "text_model."
            found.add(f"{prefix}.{head}{path}".replace(".", "_"))
    return found


def in_file(family: str, part: str, module: str) -> str:
    """Return what a single file calls a layer, as the loading of base models knows it."""
    link = next(it for it in published(family).links[part] if f"{module}.weight" in it.names)
    return link.key.removesuffix(".weight").removesuffix("_weight").removeprefix("model.diffusion_model.")


def comfyui(family: str) -> set[str]:
    """Return every name that ComfyUI knows: any weight of the file, diffusers' names, and a table for text encoders."""
    paths = {it.module for it in places(family, convolutions=True)["unet"]}
    known = {f"lora_unet_{name}".replace(".", "_") for name in paths}
    known |= {f"lora_unet_{in_file(family, 'unet', name)}".replace(".", "_") for name in paths}
    layers = ["mlp_fc1", "mlp_fc2", *(f"self_attn_{it}" for it in ("k_proj", "q_proj", "v_proj", "out_proj"))]
    prefixes = ["lora_te1", "lora_te2"] if family == "SDXL" else ["lora_te", "lora_te1"]
    return known | {
        f"{prefix}_text_model_encoder_layers_{index}_{layer}"
        for prefix in prefixes
        for index in range(32)
        for layer in layers
    }


RESNETS = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
OPEN_CLIP = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj"}


def a1111(name: str, *, sd2: bool) -> str:
    """Return the module that A1111 looks for."""
    if match := re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        block, attends = 3 * int(match[2]) + int(match[4]), match[3] == "attentions"
        head = f"input_blocks_{block + 1}" if match[1] == "down" else f"output_blocks_{block}"
        found = f"diffusion_model_{head}_{int(attends)}_{match[5] if attends else RESNETS[match[5]]}"
    elif match := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        attends = match[1] == "attentions"
        inner = match[3] if attends else RESNETS[match[3]]
        found = f"diffusion_model_middle_block_{1 if attends else 2 * int(match[2])}_{inner}"
    elif match := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name):
        found = f"diffusion_model_input_blocks_{3 + 3 * int(match[1])}_0_op"
    elif match := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name):
        found = f"diffusion_model_output_blocks_{2 + 3 * int(match[1])}_{2 if int(match[1]) else 1}_conv"
    elif match := re.fullmatch(r"lora_te(2?)_text_model_encoder_layers_(\d+)_(.+)", name):
        inner = OPEN_CLIP.get(match[3], match[3].replace("self_attn", "attn"))
        open_clip = f"{'1_' if match[1] else ''}model_transformer_resblocks_{match[2]}_{inner}"
        plain = f"transformer_text_model_encoder_layers_{match[2]}_{match[3]}"
        found = open_clip if sd2 or match[1] else plain
    else:
        found = name.replace("lora_unet", "diffusion_model").replace("lora_te1_text_model", "0_transformer_text_model")
    return found


def modules_of_a1111(family: str) -> set[str]:
    """Return A1111's modules: those of the single file, its query, key and value apart even where they are stacked."""
    found = set()
    for part, its in places(family, convolutions=True).items():
        for it in its:
            path = in_file(family, part, it.module)
            path = re.sub(r"^(cond_stage_model|conditioner\.embedders)\.", "", path)
            if path.endswith("attn.in_proj"):
                path = path.removesuffix("in_proj") + it.module[-6:]
            found.add((path if part != "unet" else f"diffusion_model.{path}").replace(".", "_"))
    return found


@pytest.mark.parametrize("family", ["SD15", "SD2", "SDXL"])
def test_every_reader_finds_every_layer(family: str) -> None:
    names = {it.name for its in places(family, convolutions=True).values() for it in its}
    assert len(names) == sum(map(len, places(family, convolutions=True).values()))
    assert names == kohya(family)
    assert names <= comfyui(family)
    assert {a1111(name, sd2=family == "SD2") for name in names} == modules_of_a1111(family)


@pytest.mark.parametrize(
    ("family", "examples"),
    [
        (
            "SD15",
            {
                "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
                "lora_unet_mid_block_attentions_0_proj_in",
                "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
                "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
                "lora_unet_mid_block_resnets_1_time_emb_proj",
                "lora_unet_down_blocks_2_downsamplers_0_conv",
                "lora_unet_up_blocks_0_upsamplers_0_conv",
                "lora_te_text_model_encoder_layers_11_mlp_fc2",
            },
        ),
        (
            "SDXL",
            {
                "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k",
                "lora_unet_middle_block_1_transformer_blocks_9_ff_net_2",
                "lora_unet_input_blocks_3_0_op",
                "lora_unet_output_blocks_2_2_conv",
                "lora_unet_output_blocks_8_0_skip_connection",
                "lora_unet_middle_block_2_emb_layers_1",
                "lora_unet_input_blocks_1_0_in_layers_2",
                "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
                "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
            },
        ),
    ],
)
def test_names_that_others_files_have(family: str, examples: set[str]) -> None:
    assert examples <= {it.name for its in places(family, convolutions=True).values() for it in its}
