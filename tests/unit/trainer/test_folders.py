"""A diffusers folder as base model: the same weights and pictures as the single file, whatever form its parts have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from darkroom_api.failures import FailureReason
from darkroom_trainer import sampling
from darkroom_trainer.errors import RunError, StopRequested
from darkroom_trainer.families.configurations import FAMILIES, UNET
from darkroom_trainer.families.folders import assemble
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.safetensors_file import read_header
from tests.builders.models import CONFIGS, tiny_tensors
from tests.e2e.painting import pipeline

PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="", seed=7, width=64, height=64, steps=2, guidance_scale=5.0
)
UNET_FILE, VAE_FILE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"
Folder = Callable[..., Path]


@pytest.fixture(scope="session")
def saved(base_files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a family's tiny model by diffusers' own means, once."""
    root = tmp_path_factory.mktemp("saved")

    def save(family: str) -> Path:
        if not (root / family).exists():
            pipeline(base_files(family)).save_pretrained(root / family)
        return root / family

    return save


@pytest.fixture
def folder(saved: Callable[[str], Path], tmp_path: Path) -> Folder:
    """Copy a family's folder, which `assemble` removes."""

    def copy(family: str = "SD15", name: str = "tiny") -> Path:
        return Path(shutil.copytree(saved(family), tmp_path / name))

    return copy


def load(path: Path, dtype: torch.dtype = torch.float32) -> StableDiffusion:
    return load_path(path, dtype=dtype, device=torch.device("cpu"))


def rename(path: Path, change: Callable[[str], str]) -> None:
    """Give the tensors of a file other names."""
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a configuration; None takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_it_becomes_the_single_file(
    folder: Folder, base_files: Callable[[str], Path], one_thread: None, family: str
) -> None:
    given = folder(family)
    path = assemble(given)
    assert path == given.with_name("tiny.safetensors")
    assert not given.exists()
    tensors, expected = load_file(path), tiny_tensors(family=family)
    assert {name: tuple(it.shape) for name, it in tensors.items()} == {
        name: tuple(it.shape) for name, it in expected.items()
    }
    assert all(torch.equal(it, expected[name].float()) for name, it in tensors.items())

    ours, theirs = load(path), load(base_files(family))
    assert ours.family.name == family
    assert settings(ours) == settings(theirs)
    pictures = [np.asarray(sampling.paint(model, PICTURE), dtype=np.int16) for model in (ours, theirs)]
    assert np.array_equal(*pictures)


def settings(model: StableDiffusion) -> list[dict[str, Any]]:
    """Return all configurations but the names and releases of who wrote them."""
    configs = [model.unet.config, model.vae.config, *(it.model.config.to_dict() for it in model.text_encoders)]
    return [{name: value for name, value in config.items() if not name.startswith("_")} for config in configs]


def as_old_vae(given: Path) -> None:
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def old(name: str) -> str:
        return next((name.replace(new, was) for new, was in names.items() if new in name), name)

    before = set(load_file(given / VAE_FILE))
    rename(given / VAE_FILE, old)
    assert len(before - set(load_file(given / VAE_FILE))) == 16


def with_text_model(given: Path) -> None:
    rename(given / TEXT_FILE, lambda name: f"text_model.{name.removeprefix('text_model.')}")
    tensors = load_file(given / TEXT_FILE) | {"text_model.embeddings.position_ids": torch.arange(77)}
    save_file(tensors, given / TEXT_FILE)


def without_text_model(given: Path) -> None:
    rename(given / TEXT_FILE, lambda name: name.removeprefix("text_model."))


def as_pickles(given: Path) -> None:
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        path = next((given / part).glob("*.safetensors"))
        torch.save(load_file(path), given / part / f"{name}.bin")
        path.unlink()


def in_shards(given: Path) -> None:
    tensors = sorted(load_file(given / UNET_FILE).items())
    for number in range(3):
        name = f"diffusion_pytorch_model-0000{number + 1}-of-00003.safetensors"
        save_file(dict(tensors[number::3]), given / "unet" / name)
    (given / UNET_FILE).unlink()


@pytest.mark.parametrize("change", [as_old_vae, with_text_model, without_text_model, as_pickles, in_shards])
def test_other_forms_of_its_parts_give_the_same_bytes(
    folder: Folder, change: Callable[[Path], None], one_thread: None
) -> None:
    plain = assemble(folder(name="plain"))
    given = folder()
    change(given)
    assert assemble(given).read_bytes() == plain.read_bytes()


def test_number_formats_stay(folder: Folder) -> None:
    given = folder()
    save_file({name: it.half() for name, it in load_file(given / UNET_FILE).items()}, given / UNET_FILE)
    save_file({name: it.bfloat16() for name, it in load_file(given / TEXT_FILE).items()}, given / TEXT_FILE)
    dtypes = read_header(assemble(given)).dtypes
    assert {name.split(".")[0]: dtype for name, dtype in dtypes.items()} == {
        "cond_stage_model": "BF16",
        "first_stage_model": "F32",
        "model": "F16",
    }


def test_only_what_the_model_was_trained_on_is_taken_over(folder: Folder) -> None:
    given = folder()
    edit(given / "text_encoder/config.json", eos_token_id=2, bos_token_id=0, num_attention_heads=2)
    edit(given / "scheduler/scheduler_config.json", timestep_spacing="linspace", beta_end=0.02)
    edit(given / "vae/config.json", scaling_factor=None)
    model = load(assemble(given))
    text = model.text_encoders[0].model.config
    assert (text.eos_token_id, text.bos_token_id, text.num_attention_heads) == (49407, 49406, 2)
    assert (model.scheduler.config.timestep_spacing, model.scheduler.config.beta_end) == ("leading", 0.02)
    assert model.vae.config.scaling_factor == 0.18215
    assert not model.nature.predicts_velocity


def test_what_it_predicts_is_taken_over(folder: Folder) -> None:
    given = folder("SD2")
    edit(given / "scheduler/scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    model = load(assemble(given))
    assert (model.nature.predicts_velocity, model.nature.zero_terminal_snr) == (True, True)
    assert model.scheduler.config.timestep_spacing == "trailing"


class Code:
    """Something that a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def put_code(given: Path) -> None:
    (given / TEXT_FILE).unlink()
    torch.save({"weight": Code()}, given / "text_encoder/pytorch_model.bin")


def cut_short(given: Path) -> None:
    (given / UNET_FILE).write_bytes((given / UNET_FILE).read_bytes()[:-1])


def add_weight(given: Path) -> None:
    save_file(load_file(given / UNET_FILE) | {"time_embedding.cond_proj.weight": torch.ones(2)}, given / UNET_FILE)


def add_twin(given: Path) -> None:
    tensors = load_file(given / TEXT_FILE)
    twins = {f"text_model.{name.removeprefix('text_model.')}": it.clone() for name, it in tensors.items()}
    save_file({name.removeprefix("text_model."): it for name, it in tensors.items()} | twins, given / TEXT_FILE)


def lose_weight(given: Path) -> None:
    save_file(
        {name: it for name, it in load_file(given / UNET_FILE).items() if "conv_in" not in name}, given / UNET_FILE
    )


def spoil_config(given: Path) -> None:
    (given / "unet/config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put_code, "spec.baseModel.uri: text_encoder/pytorch_model.bin is a pickle that holds more than tensors"),
        (cut_short, "spec.baseModel.uri: unet/diffusion_pytorch_model.safetensors is truncated"),
        (
            add_weight,
            "the parts of the folder tiny do not fit together: ValueError time_embedding.cond_proj.weight is no",
        ),
        (add_twin, "the parts of the folder tiny do not fit together: ValueError two of its weights"),
        (lose_weight, "spec.baseModel.uri: tiny.safetensors is no Stable Diffusion checkpoint"),
        (spoil_config, "the parts of the folder tiny do not fit together: JSONDecodeError"),
    ],
)
def test_parts_that_will_not_do_are_refused(
    folder: Folder, change: Callable[[Path], None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = folder()
    change(given)
    with pytest.raises(RunError) as caught:
        load(assemble(given))
    assert caught.value.reason is FailureReason.MODEL_REJECTED
    assert told in caught.value.message
    assert "run" not in capsys.readouterr().out.split()


def test_an_inpainting_unet_is_recognised(folder: Folder) -> None:
    given = folder()
    tensors = load_file(given / UNET_FILE)
    tensors["conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(tensors, given / UNET_FILE)
    edit(given / "unet/config.json", in_channels=9)
    with pytest.raises(RunError, match=r"tiny.safetensors is an inpainting model \(9 input channels\)"):
        load(assemble(given))


def test_it_can_be_stopped(folder: Folder) -> None:
    given, copied = folder(), 0

    def stop() -> None:
        nonlocal copied
        copied += 1
        if copied == 5:
            raise StopRequested

    with pytest.raises(StopRequested):
        assemble(given, before_tensor=stop)
    assert given.exists()


def test_its_metadata_says_what_shapes_do_not(folder: Folder) -> None:
    told = json.loads(read_header(assemble(folder("SDXL"))).metadata["darkroom.config"])
    assert told["unet"]["attention_head_dim"] == CONFIGS["SDXL"]["unet"]["attention_head_dim"]
    assert told["vae"]["norm_num_groups"] == 8
    assert told["text_encoder_2"]["hidden_act"] == "gelu"
    assert not [name for config in told.values() for name in config if name.startswith("_")]
    assert f"{UNET}input_blocks.0.0.weight" not in told
