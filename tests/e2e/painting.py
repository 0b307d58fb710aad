"""Paint as a user of diffusers would: `from_single_file`, `load_lora_weights`, prompt and seed; none of our code."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open

from darkroom_trainer.families.tokenizer import END, OPEN_CLIP_PAD, load_tokenizer

CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}
SECOND = {
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
FILES = {"scheduler": "scheduler_config.json"}
OPEN_CLIP_ACTIVATION = "gelu"


@lru_cache(maxsize=4)
def pipeline(base_model: Path) -> Any:
    """Open a base model with diffusers, with the configurations that its own metadata gives."""
    torch.set_num_threads(1)
    with safe_open(base_model, framework="pt") as file:
        configs = json.loads(file.metadata()["darkroom.config"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kind = StableDiffusionXLPipeline if "text_encoder_2" in configs else StableDiffusionPipeline
        write_configs(root, configs, kind=kind.__name__)
        opened = kind.from_single_file(
            str(base_model), config=str(root), local_files_only=True, torch_dtype=torch.float32
        )
    opened.set_progress_bar_config(disable=True)
    return opened


def write_configs(root: Path, configs: dict[str, Any], *, kind: str) -> None:
    """Write what diffusers wants beside a single file: a folder of configurations without weights."""
    classes = CLASSES | (SECOND if "text_encoder_2" in configs else {})
    index = {"_class_name": kind, **classes, "feature_extractor": [None, None]}
    if "text_encoder_2" not in configs:
        index["safety_checker"] = [None, None]
    (root / "model_index.json").write_text(json.dumps(index))
    for part, config in configs.items():
        (root / part).mkdir()
        named = {"_class_name": classes[part][1], **config}
        if part.startswith("text_encoder"):
            named |= {"architectures": [classes[part][1]], "model_type": "clip_text_model"}
            pad = OPEN_CLIP_PAD if config["hidden_act"] == OPEN_CLIP_ACTIVATION else END
            load_tokenizer(pad).save_pretrained(root / part.replace("text_encoder", "tokenizer"))
        (root / part / FILES.get(part, "config.json")).write_text(json.dumps(named))


def paint(base_model: Path, *, weights: bytes | None, samples: dict[str, Any], resolution: int) -> Image.Image:
    """Paint the first prompt with the first seed, with a LoRA file's weights or without."""
    pipe = pipeline(base_model)
    pipe.unload_lora_weights()
    if weights is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "lora.safetensors").write_bytes(weights)
            pipe.load_lora_weights(folder, weight_name="lora.safetensors")
    picture: Image.Image = pipe(
        samples["prompts"][0],
        negative_prompt=samples.get("negativePrompt", ""),
        num_inference_steps=samples.get("steps", 20),
        guidance_scale=samples.get("guidanceScale", 7.0),
        width=samples.get("width", resolution),
        height=samples.get("height", resolution),
        generator=torch.Generator().manual_seed(samples["seeds"][0]),
    ).images[0]
    return picture
