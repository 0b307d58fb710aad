"""A checkpoint's file: what others read in it, and that it paints what the training painted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from darkroom_api.failures import FailureReason
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_api.networks import LoRA
from darkroom_trainer import lora_format, metadata, sampling
from darkroom_trainer.batches import arrange
from darkroom_trainer.dataset import scan
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import SD15
from darkroom_trainer.families.model import Nature, StableDiffusion
from darkroom_trainer.networks.adapter import Adapter, inject
from darkroom_trainer.number_formats import DTYPES
from tests.builders import networks
from tests.builders.pictures import write_pictures
from tests.e2e.painting import pipeline

Load = Callable[..., StableDiffusion]
PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=3, guidance_scale=5.0
)


def trained(model: StableDiffusion, *, alpha: float = 2, text_encoder: bool = True) -> Adapter:
    return networks.trained(model, LoRA(rank=4, alpha=alpha), text_encoder=text_encoder)


def encoded(adapter: Adapter, metadata: dict[str, str]) -> bytes:
    return lora_format.encode_lora(adapter.file_tensors(torch.float16), metadata)


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def spec(**changes: Any) -> LoraTrainingSpec:
    required = {"baseModel": {"uri": "s3://abc/m"}, "dataset": {"uri": "s3://abc/d"}, "output": {"uri": "s3://abc/o"}}
    return LoraTrainingSpec.model_validate({**required, **changes})


@pytest.mark.parametrize(("precision", "alpha"), [("FP32", 2.0), ("FP16", 2.0), ("BF16", 2.0), ("FP16", 0.3)])
def test_diffusers_paints_the_picture_of_the_training(
    load_model: Load, base_file: Path, tmp_path: Path, precision: str, alpha: float
) -> None:
    model = load_model()
    before = sampling.paint(model, PICTURE)
    adapter = trained(model, alpha=alpha)
    dtype = DTYPES[precision]
    with adapter.rounded(dtype):
        ours = sampling.paint(model, PICTURE)
    (tmp_path / "lora.safetensors").write_bytes(lora_format.encode_lora(adapter.file_tensors(dtype), {}))

    pipe = pipeline(base_file)
    pipe.unload_lora_weights()
    generator = {"generator": torch.Generator().manual_seed(PICTURE.seed)}
    arguments = {
        "prompt": PICTURE.prompt,
        "negative_prompt": PICTURE.negative_prompt,
        "width": PICTURE.width,
        "height": PICTURE.height,
        "num_inference_steps": PICTURE.steps,
        "guidance_scale": PICTURE.guidance_scale,
    }
    plain = pipe(**arguments, **generator).images[0]
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    generator["generator"].manual_seed(PICTURE.seed)
    theirs = pipe(**arguments, **generator).images[0]
    pipe.unload_lora_weights()

    assert np.array_equal(pixels(before), pixels(plain))
    assert np.array_equal(pixels(ours), pixels(theirs))
    assert np.abs(pixels(ours) - pixels(before)).max() > 3


def test_an_adapter_changes_nothing_before_training(load_model: Load) -> None:
    model = load_model()
    before = sampling.paint(model, PICTURE)
    inject(LoRA(), model, seed=1, train_text_encoder=True)
    assert np.array_equal(pixels(before), pixels(sampling.paint(model, PICTURE)))


def test_names_are_kohyas(load_model: Load) -> None:
    names = set(load(encoded(trained(load_model()), {})))
    assert len(names) == 3 * (192 + 2 * 6)  # all of the UNet's modules of SD 1.5; six a layer of the text encoder
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        assert f"lora_te_text_model_encoder_layers_0_self_attn_q_proj.{part}" in names
        assert f"lora_te_text_model_encoder_layers_1_mlp_fc1.{part}" in names
        assert f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.{part}" in names
        assert f"lora_unet_mid_block_attentions_0_proj_in.{part}" in names
        assert f"lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj.{part}" in names


def test_without_text_encoder_the_file_has_none(load_model: Load) -> None:
    names = load(encoded(trained(load_model(), text_encoder=False), {})).keys()
    assert len(names) == 3 * 192
    assert not [name for name in names if name.startswith("lora_te")]


@pytest.mark.parametrize(("alpha", "dtype"), [(2.0, torch.float16), (0.3, torch.float32)])
def test_alpha_is_exact(load_model: Load, alpha: float, dtype: torch.dtype) -> None:
    tensors = trained(load_model(), alpha=alpha).file_tensors(torch.float16)
    values = [value for name, value in tensors.items() if name.endswith(".alpha")]
    assert {value.dtype for value in values} == {dtype}
    assert {value.item() for value in values} == {torch.tensor(alpha).item()}


@pytest.mark.parametrize(("precision", "fits"), [("FP32", True), ("BF16", True), ("FP16", False)])
def test_weights_too_large_for_the_files_format_are_refused(load_model: Load, precision: str, fits: bool) -> None:
    adapter = trained(load_model())
    adapter.layers[-1].weights["up"].data[0, 0] = 70_000.0
    if fits:
        assert adapter.file_tensors(DTYPES[precision])
        return
    with pytest.raises(
        RunError, match=r"lora_te_\S+lora_up.weight holds numbers that are not finite in FP16"
    ) as caught:
        adapter.file_tensors(DTYPES[precision])
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE
    assert "checkpoints.precision FP32 or BF16" in caught.value.advice


def test_the_same_training_gives_the_same_bytes(load_model: Load) -> None:
    about = {f"ss_key{index}": "x" for index in range(20)}
    files = {
        encoded(trained(load_model()), dict(order)) for order in (list(about.items()), list(reversed(about.items())))
    }
    assert len(files) == 1


def test_metadata(load_model: Load, tmp_path: Path, base_file: Path) -> None:
    course = arrange(scan(write_pictures(tmp_path / "set")), spec(training={"resolution": 256}).training)
    about = metadata.metadata(
        spec(network={"type": "LoRA", "rank": 4, "alpha": 2}),
        course,
        metadata.hash_base_model(base_file),
        nature=Nature(SD15),
        name="anna-000003",
        epoch=3,
    )
    path = tmp_path / "anna-000003.safetensors"
    path.write_bytes(encoded(trained(load_model()), about))
    with safe_open(path, framework="pt") as file:
        read = file.metadata()
    assert read["ss_output_name"] == path.stem
    assert read["ss_base_model_version"] == "sd_v1"
    assert (read["ss_network_dim"], read["ss_network_alpha"]) == ("4", "2.0")
    assert read["ss_new_sd_model_hash"] == hashlib.sha256(base_file.read_bytes()).hexdigest()
    assert read["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(read["ss_dataset_dirs"]) == {"2_sks robot": {"n_repeats": 2, "img_count": 4}}
    assert json.loads(read["ss_tag_frequency"])["2_sks robot"]["blue"] == 4
    assert sum(it["count"] for it in json.loads(read["ss_bucket_info"])["buckets"].values()) == 8
    assert "ss_num_validation_images" not in read
    assert not [key for key in read if "time" in key or "date" in key or "started" in key]


def told(tmp_path: Path, training: dict[str, Any]) -> dict[str, str]:
    chosen = spec(training={"resolution": 256, **training})
    course = arrange(scan(write_pictures(tmp_path / "set")), chosen.training)
    base = metadata.BaseModelFile("m.safetensors", "0" * 64, "0" * 8)
    return metadata.metadata(chosen, course, base, nature=Nature(SD15), name="anna", epoch=2)


def test_metadata_of_a_plain_training_has_kohyas_words(tmp_path: Path) -> None:
    assert {
        "ss_optimizer": "AdamW(weight_decay=0.01,beta1=0.9,beta2=0.999,epsilon=1e-08)",
        "ss_lr_scheduler": "constant",
        "ss_lr_warmup_steps": "0",
        "ss_gradient_accumulation_steps": "1",
        "ss_max_grad_norm": "1.0",
        "ss_noise_offset": "None",
        "ss_multires_noise_iterations": "None",
        "ss_multires_noise_discount": "None",
        "ss_min_snr_gamma": "None",
        "ss_debiased_estimation": "False",
        "ss_ip_noise_gamma": "None",
        "ss_loss_type": "l2",
        "ss_huber_schedule": "None",
        "ss_huber_c": "None",
    }.items() <= told(tmp_path, {}).items()


def test_metadata_tells_optimizer_schedule_and_objective(tmp_path: Path) -> None:
    about = told(
        tmp_path,
        {
            "batchSize": 2,
            "gradientAccumulation": 3,
            "maximumGradientNorm": 0,
            "optimizer": {"type": "Prodigy", "dCoefficient": 2, "safeguardWarmup": True},
            "schedule": {"type": "CosineWithRestarts", "cycles": 3, "warmupRatio": 0.1},
            "objective": {
                "debiased": True,
                "multiresNoise": {"iterations": 8, "discount": 0.4},
                "inputPerturbation": 0.1,
                "loss": {"type": "SmoothL1", "delta": 0.2, "schedule": "Exponential"},
                "timesteps": {"minimum": 10, "maximum": 900},
            },
        },
    )
    batches = int(about["ss_num_batches_per_epoch"])
    steps = -(-batches // 3)
    assert steps < batches
    assert about["ss_optimizer"].startswith("Prodigy(weight_decay=0.01,beta1=0.9,")
    assert ",d_coefficient=2.0,safeguard_warmup=True)" in about["ss_optimizer"]
    assert {
        "ss_steps": str(2 * steps),
        "ss_max_train_steps": str(10 * steps),
        "ss_total_batch_size": "6",
        "ss_batch_size_per_device": "2",
        "ss_lr_scheduler": "cosine_with_restarts",
        "ss_lr_warmup_steps": str(steps),  # a tenth of ten epochs
        "ss_text_encoder_lr": "1.0",
        "ss_gradient_accumulation_steps": "3",
        "ss_max_grad_norm": "0.0",
        "ss_multires_noise_iterations": "8",
        "ss_multires_noise_discount": "0.4",
        "ss_debiased_estimation": "True",
        "ss_ip_noise_gamma": "0.1",
        "ss_loss_type": "smooth_l1",
        "ss_huber_schedule": "exponential",
        "ss_huber_c": "0.2",
        "modelspec.timestep_range": "10,900",
    }.items() <= about.items()


@pytest.mark.parametrize(
    ("training", "key", "value"),
    [
        ({"schedule": {"type": "Constant", "warmupSteps": 3}}, "ss_lr_scheduler", "constant_with_warmup"),
        ({"schedule": {"type": "REX"}}, "ss_lr_scheduler", "rex"),
        ({"schedule": {"type": "OneCycle"}}, "ss_lr_warmup_steps", "0"),
        ({"objective": {"noiseOffset": 0.05}}, "ss_noise_offset", "0.05"),
        ({"augmentation": {"flip": True}}, "ss_flip_aug", "True"),
        ({"augmentation": {"color": True}}, "ss_random_crop", "False"),
        ({"captions": {"tagDropout": 0.1}}, "ss_caption_tag_dropout_rate", "0.1"),
        ({"captions": {"dropoutEveryEpochs": 3}}, "ss_caption_dropout_every_n_epochs", "3"),
        ({"objective": {"minSnrGamma": 5}}, "ss_min_snr_gamma", "5.0"),
        ({"objective": {"loss": {"type": "Huber"}}}, "ss_huber_schedule", "snr"),
    ],
)
def test_metadata_of_single_choices(tmp_path: Path, training: dict[str, Any], key: str, value: str) -> None:
    assert told(tmp_path, training)[key] == value


def test_metadata_counts_held_out_pictures_apart(tmp_path: Path, base_file: Path) -> None:
    """Under kohya's name, and in none of the numbers of what was trained on."""
    asked = spec(training={"resolution": 256}, validation={"images": 1})
    course = arrange(scan(write_pictures(tmp_path / "set")), asked.training, validation=asked.validation)
    about = metadata.metadata(
        asked, course, metadata.hash_base_model(base_file), nature=Nature(SD15), name="anna", epoch=1
    )
    assert (about["ss_num_train_images"], about["ss_num_validation_images"]) == ("6", "1")
    assert json.loads(about["ss_dataset_dirs"]) == {"2_sks robot": {"n_repeats": 2, "img_count": 3}}
    assert json.loads(about["ss_tag_frequency"])["2_sks robot"]["blue"] == 3


def test_hashes_are_those_that_kohya_computes(load_model: Load) -> None:
    """Of the tensors' bytes alone, so that editing the metadata does not change them."""
    adapter = trained(load_model())
    data = save(adapter.file_tensors(torch.float16))
    header = 8 + int.from_bytes(data[:8], "little")
    written = encoded(adapter, {"ss_seed": "1"})
    assert hashlib.sha256(data[header:]).hexdigest().encode() in written[:100_000]


def test_legacy_hash_is_of_the_second_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"a" * 0x100000 + b"b" * 0x10000 + b"c")
    about = metadata.hash_base_model(path, "0" * 64)
    assert about.legacy_hash == hashlib.sha256(b"b" * 0x10000).hexdigest()[:8]
    assert about.sha256 == "0" * 64
