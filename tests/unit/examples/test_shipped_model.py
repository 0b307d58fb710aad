"""The shipped base model: its card tells the truth about the file, and it paints the colours that it is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from darkroom_trainer.families.tokenizer import load_tokenizer
from examples.base_model.export import draw, load, write_config
from examples.base_model.models import SCHEDULER_CONFIG, TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG
from examples.base_model.scenes import BACKGROUNDS, COLOURS

FOLDER = Path(__file__).parents[3] / "examples" / "base-model"
MODEL = FOLDER / "tiny-sd15.safetensors"


def test_the_card_names_the_file_that_lies_beside_it() -> None:
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() in (FOLDER / "README.md").read_text()
    assert MODEL.stat().st_size <= 24e6


def test_the_file_says_what_no_shape_says() -> None:
    with safe_open(MODEL, framework="pt") as file:
        config = json.loads(file.metadata()["darkroom.config"])
        finite = all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118 - no mapping
    assert config == {
        "unet": UNET_CONFIG,
        "vae": VAE_CONFIG,
        "text_encoder": TEXT_CONFIG,
        "scheduler": SCHEDULER_CONFIG,
    }
    assert finite


@pytest.mark.parametrize(("colour", "background"), [("red", "white"), ("blue", "black"), ("yellow", "navy")])
def test_prompts_steer(colour: str, background: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    pipeline = load(MODEL, write_config(tmp_path, load_tokenizer()))
    image = draw(pipeline, [f"a large {colour} square on a {background} background"], seeds=[3])[0] * 255

    def nearest(patch: np.ndarray, table: dict[str, tuple[int, int, int]]) -> str:
        mean = patch.reshape(-1, 3).mean(axis=0)
        return min(table, key=lambda name: float(np.abs(mean - np.array(table[name])).sum()))

    assert nearest(image[56:72, 56:72], COLOURS) == colour
    assert nearest(image[:6], BACKGROUNDS) == background
