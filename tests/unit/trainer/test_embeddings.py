"""Training of a new word: it alone learns, it resumes exactly, and its file gives others the same picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from darkroom_api.embedding_training import Embedding, EmbeddingTrainingSpec
from darkroom_api.failures import FailureReason
from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer import metadata, sampling
from darkroom_trainer.batches import arrange
from darkroom_trainer.conditioning import Conditions, encode_prompts
from darkroom_trainer.dataset import scan
from darkroom_trainer.embeddings import NewWord, insert
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.configurations import FAMILIES, SDXL
from darkroom_trainer.families.model import Nature, StableDiffusion
from darkroom_trainer.number_formats import DTYPES
from darkroom_trainer.opening import learning_rate_of
from darkroom_trainer.session import Session
from darkroom_trainer.validating import validation_loss
from tests.builders.pictures import write_pictures
from tests.builders.specs import MINIMAL
from tests.e2e.painting import pipeline
from tests.unit.trainer.sessions import Maker, same, weights
from tests.unit.trainer.test_session import RESUMED

Load = Callable[..., StableDiffusion]
TOKEN = "<sks>"
PICTURE = sampling.Picture(
    prompt=f"a {TOKEN} robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=3, guidance_scale=5.0
)
FAMILY_NAMES = list(FAMILIES)
WIDTHS = {"SD15": {"emb_params": 32}, "SD2": {"emb_params": 32}, "SDXL": {"clip_l": 32, "clip_g": 48}}


def trained(model: StableDiffusion, *, vectors: int = 3) -> NewWord:
    """Give a model a word whose vectors change what is painted, as training would."""
    word = insert(Embedding(token=TOKEN, num_vectors=vectors), model, seed=1)
    generator = torch.Generator().manual_seed(5)
    for weight in word.named_parameters().values():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    return word


def weights_of(word: NewWord) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in word.named_parameters().items()}


def conditions(model: StableDiffusion, text: str) -> Conditions:
    return encode_prompts(model, [text], TextEncoding())


def write(word: NewWord, path: Path, precision: str = "FP32", about: dict[str, str] | None = None) -> Path:
    word.draft(DTYPES[precision])(path, about or {})
    return path


def frozen(session: Session) -> dict[str, torch.Tensor]:
    """Copy all weights of the model but the new ones."""
    parts = {**session.model.parts, "vae": session.model.vae}
    return {
        f"{part}.{name}": weight.detach().clone()
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if not name.endswith(".rows")
    }


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def opened_by_diffusers(base_file: Path, embedding: Path) -> Any:
    """Open a pipeline as a user of diffusers does, who loads SDXL's two tensors one by one."""
    pipe = pipeline.__wrapped__(base_file)  # one of its own: what is loaded stays in it
    tensors = load_file(embedding)
    if set(tensors) == {"emb_params"}:
        pipe.load_textual_inversion(str(embedding), token=TOKEN)
        return pipe
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(pipe, f"text_encoder{end}"), getattr(pipe, f"tokenizer{end}")
        pipe.load_textual_inversion(tensors[key], token=TOKEN, text_encoder=encoder, tokenizer=tokenizer)
    return pipe


def painted_by(pipe: Any) -> np.ndarray:
    return pixels(
        pipe(
            prompt=PICTURE.prompt,
            negative_prompt=PICTURE.negative_prompt,
            width=PICTURE.width,
            height=PICTURE.height,
            num_inference_steps=PICTURE.steps,
            guidance_scale=PICTURE.guidance_scale,
            generator=torch.Generator().manual_seed(PICTURE.seed),
        ).images[0]
    )


@pytest.mark.parametrize(
    ("family", "precision", "vectors"),
    [("SD15", "FP32", 3), ("SD15", "FP16", 1), ("SD2", "BF16", 2), ("SDXL", "FP16", 3)],
)
def test_diffusers_reads_and_paints_what_the_training_does(
    load_model: Load,
    base_files: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    precision: str,
    vectors: int,
) -> None:
    model = load_model(family=family)
    before = pixels(sampling.paint(model, PICTURE))
    word = trained(model, vectors=vectors)
    exact = weights_of(word)
    with word.rounded(DTYPES[precision]):
        read, ours = conditions(model, PICTURE.prompt), pixels(sampling.paint(model, PICTURE))
    assert same(weights_of(word), exact)
    pipe = opened_by_diffusers(base_files(family), write(word, tmp_path / "word.safetensors", precision))
    theirs = pipe.encode_prompt(
        PICTURE.prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(read.states_BLD, theirs[0])
    assert read.pooled_BD is None or torch.equal(read.pooled_BD, theirs[2])
    # Products of equal matrices may differ in the last bit, by where in memory these lie.
    assert np.abs(ours - painted_by(pipe)).max() <= 1
    assert np.abs(ours - before).max() > 3


def as_a1111_reads(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Follow `create_embedding_from_data` in modules/textual_inversion/textual_inversion.py of A1111 1.10.1."""
    if {"clip_g", "clip_l"} <= tensors.keys():
        return tensors
    assert len(tensors) == 1, "embedding file has multiple terms in it"
    return {"": next(iter(tensors.values()))}


def as_comfyui_reads(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """Follow `load_embed` in comfy/sd1_clip.py of ComfyUI; keys are the tokenizers' `embedding_key`."""
    return tensors[key] if key in tensors else next(iter(tensors.values()))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tensors_are_those_that_other_tools_read(load_model: Load, tmp_path: Path, family: str) -> None:
    """The names are kohya's too: `save_weights` of (sdxl_)train_textual_inversion.py in sd-scripts."""
    tensors = load_file(write(trained(load_model(family=family)), tmp_path / "word.safetensors", "FP16"))
    assert {name: tuple(it.shape) for name, it in tensors.items()} == {
        name: (3, width) for name, width in WIDTHS[family].items()
    }
    assert {it.dtype for it in tensors.values()} == {torch.float16}
    assert len(as_a1111_reads(tensors)) == len(FAMILIES[family].text_encoders)
    keys = ("clip_l", "clip_g") if family == "SDXL" else ("clip_l",)
    assert [as_comfyui_reads(tensors, key).shape[1] for key in keys] == list(WIDTHS[family].values())


def test_the_same_training_gives_the_same_bytes(load_model: Load, tmp_path: Path) -> None:
    about = {f"ss_key{index}": "x" for index in range(20)}
    orders = (dict(about), dict(reversed(about.items())))
    files = {
        write(trained(load_model()), tmp_path / f"{index}", about=order).read_bytes()
        for index, order in enumerate(orders)
    }
    assert len(files) == 1


def test_vectors_too_large_for_the_files_format_are_refused(load_model: Load) -> None:
    word = trained(load_model())
    word.vectors[0].weight.data[0, 0] = 70_000.0
    word.draft(torch.bfloat16)
    with pytest.raises(RunError, match="emb_params holds numbers that are not finite in FP16") as caught:
        word.draft(torch.float16)
    assert caught.value.reason is FailureReason.LOSS_NOT_FINITE


def test_a_file_tells_what_it_is(tmp_path: Path, load_model: Load) -> None:
    spec = EmbeddingTrainingSpec.model_validate(
        {**MINIMAL, "embedding": {"token": "sks", "numVectors": 3, "initializer": "small robot"}}
    )
    course = arrange(scan(write_pictures(tmp_path / "set")), spec.training)
    base = metadata.BaseModelFile("xl.safetensors", "0" * 64, "0" * 8)
    about = metadata.metadata(spec, course, base, nature=Nature(SDXL), name="robot-000002", epoch=2)
    path = write(trained(load_model()), tmp_path / "word.safetensors", about=about)
    with safe_open(path, framework="pt") as file:
        read = file.metadata()
    assert {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "robot-000002",
        "ss_output_name": "robot-000002",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_learning_rate": "0.0005",
        "ss_unet_lr": "None",
        "ss_text_encoder_lr": "None",
        "ss_token_string": "sks",
        "ss_init_word": "small robot",
        "ss_num_vectors_per_token": "3",
        "ss_new_sd_model_hash": "0" * 64,
        "ss_steps": "16",
    }.items() <= read.items()
    assert json.loads(read["ss_dataset_dirs"]) == {"2_sks robot": {"n_repeats": 2, "img_count": 4}}
    assert not [key for key in read if "network" in key or "time" in key or "date" in key]


def equal(one: Conditions, other: Conditions) -> bool:
    pooled = [it.pooled_BD for it in (one, other) if it.pooled_BD is not None]
    return torch.equal(one.states_BLD, other.states_BLD) and (not pooled or torch.equal(*pooled))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize(
    ("initializer", "vectors", "reads"),
    [("robot", 2, "robot robot"), ("teal robot", 3, "teal robot teal"), ("a big red robot", 2, "a big")],
)
def test_a_word_begins_as_its_initializer_and_other_words_stay(
    load_model: Load, family: str, initializer: str, vectors: int, reads: str
) -> None:
    """SDXL's pooled state among them: it is that of the end mark, which a new id must not be taken for."""
    model = load_model(family=family)
    expected, other = conditions(model, f"a {reads} on blue"), conditions(model, "a robot on blue")
    insert(Embedding(token="sks", num_vectors=vectors, initializer=initializer), model, seed=1)
    assert equal(conditions(model, "a sks on blue"), expected)
    assert equal(conditions(model, "a robot on blue"), other)


def test_a_word_without_initializer_begins_as_noise_of_the_usual_length(load_model: Load) -> None:
    def begin(seed: int, initializer: str = "") -> list[torch.Tensor]:
        model = load_model(family="SDXL")
        word = insert(Embedding(token="sks", num_vectors=8, initializer=initializer), model, seed=seed)
        for vectors, encoder in zip(word.vectors, model.text_encoders, strict=True):
            table = encoder.model.get_input_embeddings().table.weight
            usual = table.norm(dim=1).median()
            torch.testing.assert_close(vectors.weight.norm(dim=1), usual.expand(8))
        return [it.weight.detach() for it in word.vectors]

    first = begin(1)
    assert all(map(torch.equal, first, begin(1, "  ")))
    assert not any(map(torch.equal, first, begin(2)))
    assert torch.nn.functional.cosine_similarity(first[0][:1], first[0][1:]).abs().max() < 0.9
    assert not torch.allclose(first[0], first[1][:, :32])


def test_the_pooled_state_is_the_end_marks_with_a_new_word_before_it(load_model: Load) -> None:
    """transformers takes the largest id for the end mark where a configuration has the old eos_token_id 2."""
    model = load_model(family="SDXL")
    encoder = model.text_encoders[1].model
    trained(model)
    text = f"a {TOKEN} robot"
    pooled = conditions(model, text).pooled_BD
    encoder.text_model.eos_token_id = 2
    mistaken = conditions(model, text).pooled_BD
    assert pooled is not None
    assert mistaken is not None
    assert not torch.allclose(pooled, mistaken)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_it_alone_learns(make: Maker, family: str) -> None:
    session = make("EmbeddingTraining", family=family, epochs=1)
    begun, before = weights(session), frozen(session)
    assert len(session.peaks) == len(session.model.text_encoders)
    assert session.prompts is None
    while not session.epoch_to_close:
        session.step()
    assert before.keys() == frozen(session).keys()
    assert same(frozen(session), before)
    assert all(not torch.equal(weight, begun[name]) for name, weight in weights(session).items())
    assert {weight.dtype for weight in weights(session).values()} == {torch.float32}


def test_its_loss_falls(make: Maker) -> None:
    session = make(
        "EmbeddingTraining",
        fields={"embedding": {"token": "sks", "numVectors": 8}},
        epochs=8,
        optimizer={"type": "AdamW", "learningRate": 5e-2, "weightDecay": 0},
        schedule={"type": "Constant"},
        captions={},
        validation={"images": 1, "draws": 8},
    )

    def measure() -> float:
        return validation_loss(session, before_batch=lambda _number, _total: None)

    begun = measure()
    while session.position.step < session.course.total_steps:
        session.step()
    assert measure() < 0.997 * begun


def test_a_batch_of_captions_that_were_left_out_has_no_gradient(make: Maker) -> None:
    session = make(
        "EmbeddingTraining",
        captions={"dropout": 1},
        schedule={"type": "Constant"},
        optimizer={"type": "AdamW", "weightDecay": 0},
    )
    begun = weights(session)
    assert session.step().loss > 0
    assert same(weights(session), begun)


@pytest.mark.parametrize("name", ["AdamW", "ScheduleFreeAdamW", "Prodigy", "accumulated"])
def test_a_stopped_run_goes_on_bit_for_bit(make: Maker, tmp_path: Path, name: str) -> None:
    chosen, stops = RESUMED[name]
    straight = make("EmbeddingTraining", **chosen)
    begun, total = weights(straight), straight.course.total_steps
    while straight.position.step < total:
        straight.step()
        if straight.position.step in stops:
            straight.capture().write(tmp_path / f"state-{straight.position.step}")
    assert not same(weights(straight), begun)
    for stop in stops:
        resumed = make("EmbeddingTraining", **chosen)
        resumed.load(tmp_path / f"state-{stop}")
        while resumed.position.step < total:
            resumed.step()
        assert resumed.position == straight.position
        assert same(weights(resumed), weights(straight))


def test_a_stopped_run_of_sdxl_goes_on_bit_for_bit(make: Maker, tmp_path: Path) -> None:
    straight, resumed = (make("EmbeddingTraining", family="SDXL") for _ in range(2))
    for _ in range(3):
        straight.step()
    straight.capture().write(tmp_path / "state")
    resumed.load(tmp_path / "state")
    straight.step()
    resumed.step()
    assert resumed.position == straight.position
    assert same(weights(resumed), weights(straight))


def test_checkpointing_activations_changes_no_bit(make: Maker) -> None:
    plain, checkpointed = (make("EmbeddingTraining", gradientCheckpointing=it) for it in (False, True))
    for _ in range(2):
        plain.step()
        checkpointed.step()
    assert plain.position.losses == checkpointed.position.losses
    assert same(weights(plain), weights(checkpointed))


def test_half_precision_keeps_the_vectors_in_fp32(make: Maker) -> None:
    session = make("EmbeddingTraining", precision="BF16")
    loss = session.step().loss
    assert {weight.dtype for weight in weights(session).values()} == {torch.float32}
    assert loss == pytest.approx(make("EmbeddingTraining").step().loss, rel=0.05)


def test_one_rate_is_for_all_text_encoders() -> None:
    spec = EmbeddingTrainingSpec.model_validate({**MINIMAL, "embedding": {"token": "sks"}})
    assert [learning_rate_of(spec, part) for part in ("text_encoder", "text_encoder_2")] == [5e-4, 5e-4]
