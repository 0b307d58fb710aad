"""A whole model: what its checkpoint keeps, that it paints what the training painted, and that a resume is exact."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer import sampling
from darkroom_trainer.averaging import Average
from darkroom_trainer.conditioning import encode_prompts
from darkroom_trainer.dataset import scan
from darkroom_trainer.families.loading import load_path
from darkroom_trainer.items import placed
from darkroom_trainer.number_formats import DTYPES
from darkroom_trainer.priors import Prior, repeated
from darkroom_trainer.safetensors_file import encode, read_header
from darkroom_trainer.session import Session
from darkroom_trainer.single_file import write_checkpoint
from darkroom_trainer.weights_file import open_weights
from tests.builders.models import write_tiny
from tests.builders.pictures import write_pictures
from tests.e2e.painting import pipeline
from tests.unit.trainer.sessions import Maker, same, weights

TEXT_TOO: dict[str, Any] = {"optimizer": {"type": "AdamW", "learningRate": 2e-3, "textEncoderLearningRate": 1e-3}}
AT_ONCE: dict[str, Any] = {"schedule": {"type": "Constant"}}
"""Without warm-up, so that the first step moves the weights."""
FAMILIES = ["SD15", "SD2", "SDXL"]
PICTURE = sampling.Picture(
    prompt="sks robot", negative_prompt="blurred", seed=7, width=96, height=64, steps=3, guidance_scale=5.0
)


def written(session: Session, path: Path, precision: str = "FP16") -> Path:
    session.trainee.draft(DTYPES[precision])(path, {"modelspec.title": "anna"})
    return path


def pixels(picture: Any) -> np.ndarray:
    return np.asarray(picture, dtype=np.int16)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_paints_the_picture_of_the_training(make: Maker, tmp_path: Path, family: str) -> None:
    session = make("ModelTraining", family=family, **AT_ONCE, **TEXT_TOO)
    untrained = sampling.paint(session.model, PICTURE)
    for _ in range(2):
        session.step()
    with session.evaluating(), session.trainee.rounded(torch.float16):
        ours = sampling.paint(session.model, PICTURE)
    theirs = pipeline(written(session, tmp_path / "anna.safetensors"))(
        PICTURE.prompt,
        negative_prompt=PICTURE.negative_prompt,
        num_inference_steps=PICTURE.steps,
        guidance_scale=PICTURE.guidance_scale,
        width=PICTURE.width,
        height=PICTURE.height,
        generator=torch.Generator().manual_seed(PICTURE.seed),
    ).images[0]
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert np.abs(pixels(ours) - pixels(untrained)).max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_input_is_kept(make: Maker, tmp_path: Path, family: str) -> None:
    session = make("ModelTraining", family=family, **AT_ONCE, **TEXT_TOO)
    session.step()
    base = load_file(session.model.file.path)
    made = load_file(written(session, tmp_path / "anna.safetensors"))
    assert {name: (it.shape, it.dtype) for name, it in made.items()} == {
        name: (it.shape, it.dtype) for name, it in base.items()
    }
    changed = {name for name, it in made.items() if not torch.equal(it, base[name])}
    links = {link.key for part in session.model.parts for link in session.model.links[part]}
    assert changed <= links
    assert len(changed) > len(links) * 0.9  # SDXL's first text encoder has a last layer that nothing reads
    assert read_header(tmp_path / "anna.safetensors").metadata["modelspec.title"] == "anna"
    assert "darkroom.config" in read_header(tmp_path / "anna.safetensors").metadata


def test_what_the_base_model_says_of_itself_is_not_said_of_another(tmp_path: Path, one_thread: None) -> None:
    base, made = tmp_path / "base.safetensors", tmp_path / "made.safetensors"
    about = {"modelspec.author": "somebody", "modelspec.hash_sha256": "0x1", "ss_seed": "1", "licence": "CC0"}
    base.write_bytes(encode({"v_pred": torch.empty(0), "a": torch.ones(2)}, about))
    write_checkpoint(
        made,
        open_weights(base),
        {"a": torch.zeros(2)},
        cast=("a",),
        dtype=torch.float32,
        file_format="Safetensors",
        metadata={"modelspec.title": "anna"},
        left_out=frozenset({"v_pred"}),
    )
    assert read_header(made).metadata == {"licence": "CC0", "modelspec.title": "anna"}
    assert read_header(made).shapes == {"a": (2,)}


def test_tensors_that_nobody_knows_are_kept_as_they_are(tmp_path: Path, make: Maker, one_thread: None) -> None:
    alphas = torch.linspace(0.99915, 0.0047, 1000)
    extra = {"model_ema.in": torch.tensor(0.1), "num_updates": torch.tensor(7), "empty": torch.empty(0)}
    extra |= {"alphas_cumprod": alphas}
    path = write_tiny(tmp_path / "base.safetensors", **extra)
    session = make("ModelTraining")
    model = load_path(path, dtype=torch.float32, device=torch.device("cpu"))
    trainee = replace(session.trainee, model=model, trained={"unet": dict(model.unet.named_parameters())})
    trainee.draft(torch.bfloat16)(tmp_path / "made.safetensors", {})
    made = load_file(tmp_path / "made.safetensors")
    assert made["num_updates"] == 7
    assert made["num_updates"].dtype == torch.int64
    assert made["model_ema.in"].dtype == torch.bfloat16
    assert torch.equal(made["alphas_cumprod"], alphas)  # rounded, its first numbers would be 1: no noise at all
    assert made["empty"].shape == (0,)


def test_equal_weights_give_equal_bytes(make: Maker, tmp_path: Path) -> None:
    session = make("ModelTraining")
    one, other = (written(session, tmp_path / f"{name}.safetensors") for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_ckpt_holds_the_same_tensors_and_can_be_trained_on(make: Maker, tmp_path: Path) -> None:
    session = make("ModelTraining", fields={"checkpoints": {"format": "Ckpt"}})
    session.step()
    plain = replace(session.trainee, file_format="Safetensors")
    plain.draft(torch.float32)(tmp_path / "anna.safetensors", {})
    expected, pickled = load_file(tmp_path / "anna.safetensors"), written(session, tmp_path / "anna.ckpt", "FP32")
    assert pickled.read_bytes() == written(session, tmp_path / "anna.ckpt", "FP32").read_bytes()
    found = torch.load(pickled, weights_only=True)["state_dict"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = open_weights(pickled)
    assert again.header.shapes == read_header(tmp_path / "anna.safetensors").shapes
    assert dict(again.tensors(["first_stage_model.decoder.conv_in.bias"])).keys() == {
        "first_stage_model.decoder.conv_in.bias"
    }


def test_an_sdxl_file_of_v_prediction_is_marked(make: Maker, tmp_path: Path) -> None:
    session = make("ModelTraining", family="SDXL")
    session.model.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    made = written(session, tmp_path / "anna.safetensors")
    assert {"v_pred", "ztsnr"} < read_header(made).shapes.keys()
    again = load_path(made, dtype=torch.float32, device=torch.device("cpu"))
    assert again.nature.predicts_velocity
    assert again.nature.zero_terminal_snr
    assert float(again.scheduler.alphas_cumprod[-1]) == 0


@pytest.mark.parametrize(("unet", "sign"), [("CrossAttention", ".attn2."), ("Attention", ".attn")])
def test_only_what_is_asked_for_is_trained(make: Maker, unet: str, sign: str) -> None:
    session = make("ModelTraining", fields={"parts": {"unet": unet}}, **AT_ONCE)
    before = {name: it.detach().clone() for name, it in session.model.unet.named_parameters()}
    session.step()
    changed = {name for name, it in session.model.unet.named_parameters() if not torch.equal(it, before[name])}
    assert changed == {name for name in before if sign in name}


def test_the_text_encoder_alone(make: Maker) -> None:
    session = make("ModelTraining", fields={"parts": {"unet": "None"}}, **AT_ONCE, **TEXT_TOO)
    unet = {name: it.detach().clone() for name, it in session.model.unet.named_parameters()}
    before = weights(session)
    session.step()
    assert not same(weights(session), before)
    assert all(torch.equal(it, unet[name]) for name, it in session.model.unet.named_parameters())


def test_the_text_encoder_stops_at_its_step(make: Maker) -> None:
    session = make("ModelTraining", fields={"parts": {"textEncoderUntilStep": 2}}, **AT_ONCE, **TEXT_TOO)
    seen = [_text(session)]
    for _ in range(4):
        session.step()
        seen.append(_text(session))
    assert [not torch.equal(one, other) for one, other in itertools.pairwise(seen)] == [
        True,
        True,
        False,
        False,
    ]


def _text(session: Session) -> torch.Tensor:
    return session.model.text_encoders[0].model.state_dict()["encoder.layers.0.mlp.fc1.weight"].clone()


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text encoder": ({}, TEXT_TOO),
    "moving average": ({"ema": {"decay": 0.9}}, {}),
    "until a step": ({"parts": {"textEncoderUntilStep": 2}}, TEXT_TOO),
    "accumulation": ({}, {"gradientAccumulation": 2}),
    "all of it": ({"ema": {"decay": 0.5}, "parts": {"textEncoderUntilStep": 2}}, TEXT_TOO),
    "Prodigy": ({}, {"optimizer": {"type": "Prodigy"}}),
    "ScheduleFreeAdamW": ({}, {"optimizer": {"type": "ScheduleFreeAdamW"}, "schedule": {"type": "Constant"}}),
}


@pytest.mark.parametrize("what", RESUMED)
def test_a_resumed_run_is_the_undisturbed_one(make: Maker, tmp_path: Path, what: str) -> None:
    fields, training = RESUMED[what]
    whole = make("ModelTraining", fields=fields, **training)
    losses = [whole.step().loss for _ in range(4)]
    for stop in (1, 3):
        first = make("ModelTraining", fields=fields, **training)
        assert [first.step().loss for _ in range(stop)] == losses[:stop]
        first.capture().write(tmp_path / str(stop))
        second = make("ModelTraining", fields=fields, **training)
        second.load(tmp_path / str(stop))
        assert [second.step().loss for _ in range(4 - stop)] == losses[stop:]
        assert same(weights(second), weights(whole))
        with second.evaluating(), whole.evaluating():
            assert same(weights(second), weights(whole))


def test_a_validation_reads_prompts_with_the_averaged_weights(make: Maker) -> None:
    """Also after the text encoder stopped: what steps encoded is not the checkpoint's, nor the other way round."""
    fields = {"ema": {"decay": 0.5}, "parts": {"textEncoderUntilStep": 2}}
    session = make("ModelTraining", fields=fields, **AT_ONCE, **TEXT_TOO)
    for _ in range(3):
        session.step()
    assert session.prompts
    trained = session.prompts.encode(["sks robot"]).states_BLD
    with session.evaluating():
        assert session.prompts
        averaged = session.prompts.encode(["sks robot"]).states_BLD
        assert not torch.equal(averaged, trained)
        assert torch.equal(averaged, encode_prompts(session.model, ["sks robot"], TextEncoding()).states_BLD)
    assert torch.equal(session.prompts.encode(["sks robot"]).states_BLD, trained)


def test_the_average_is_the_published_one() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = Average({"a": parameter}, decay=0.5)
    expected = 1.0
    for step, value in enumerate([2.0, 3.0, -1.0, 8.0, 5.0, 6.0, 1.0, 0.0, 4.0], start=1):
        parameter.data.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.tensors["a"]) == pytest.approx(expected, rel=1e-6)
    with average.applied():
        assert float(parameter.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(parameter.detach()) == 4.0


def test_checkpoints_take_the_average(make: Maker, tmp_path: Path) -> None:
    session = make("ModelTraining", fields={"ema": {"decay": 0.9}}, **AT_ONCE)
    session.step()
    with session.evaluating():
        averaged = load_file(written(session, tmp_path / "a.safetensors", "FP32"))
    trained = load_file(written(session, tmp_path / "b.safetensors", "FP32"))
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(trained[name], session.model.unet.conv_in.weight)
    assert not torch.equal(averaged[name], trained[name])


@pytest.fixture
def with_prior(make: Maker, tmp_path: Path) -> Callable[..., Session]:
    """Open a session with pictures of the class beside the subject's."""

    def open_one(weight: float = 0.5, **training: Any) -> Session:
        session = make("ModelTraining", **training)
        folder = write_pictures(tmp_path / "class", folder="1_robot", sizes=[(100, 64), (64, 100), (80, 80)])
        items = repeated(placed(scan(folder), session.spec.training, path="x"))
        session.course = replace(session.course, prior=Prior(items, weight, 42))
        session.latents.fill(session.course.known_ahead, on_item=lambda _: None)
        return session

    return open_one


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_step_has_as_many_pictures_of_the_class(with_prior: Callable[..., Session], accumulation: int) -> None:
    course = with_prior(gradientAccumulation=accumulation).course
    assert course.prior
    shown = []
    for step in range(course.total_steps):
        own, others = course.window(step), course.prior_window(step)
        assert sum(map(len, own)) == sum(map(len, others))
        assert all(len({it.placement.bucket for it in batch}) == 1 for batch in others)
        assert all(len(batch) <= course.batch_size for batch in others)
        shown += sorted(it.picture.name for batch in others for it in batch)
    whole, size = len(shown) // len(course.prior.items), len(course.prior.items)
    names = sorted(it.picture.name for it in course.prior.items)
    assert whole >= 2
    # In whole rounds every picture came equally often, whatever steps they were cut into.
    counts = {name: shown.count(name) for name in names}
    assert max(counts.values()) - min(counts.values()) <= max(names.count(name) for name in names)
    assert sum(counts.values()) == len(shown)
    assert size == len(names)


def test_the_loss_is_the_subjects_mean_plus_the_weighted_one_of_the_class(with_prior: Callable[..., Session]) -> None:
    losses = {weight: with_prior(weight).step().loss for weight in (0.0, 0.5, 1.0)}
    assert losses[0.0] < losses[0.5] < losses[1.0]
    assert losses[0.5] - losses[0.0] == pytest.approx((losses[1.0] - losses[0.0]) / 2, rel=1e-4)


def test_neither_masks_nor_what_is_put_around_captions_touch_the_class(with_prior: Callable[..., Session]) -> None:
    def losses(**training: Any) -> tuple[float, float]:
        """Return the subject's share of the first loss and the class's."""
        asked = {"captions": {}} | training
        subject, both = (with_prior(weight, **asked).step().loss for weight in (0.0, 1.0))
        return subject, both - subject

    plain = losses()
    changed = losses(captions={"prefix": "sks,", "suffix": ", blue"}, mask={"source": "File"})
    assert abs(changed[0] / plain[0] - 1) > 0.05
    assert changed[1] == pytest.approx(plain[1], rel=1e-4)


def test_a_run_with_a_prior_resumes_exactly(with_prior: Callable[..., Session], tmp_path: Path) -> None:
    whole = with_prior()
    losses = [whole.step().loss for _ in range(3)]
    first = with_prior()
    first.step()
    first.capture().write(tmp_path / "state")
    second = with_prior()
    second.load(tmp_path / "state")
    assert [second.step().loss for _ in range(2)] == losses[1:]
    assert same(weights(second), weights(whole))


def test_the_classs_pictures_are_part_of_the_fingerprint(with_prior: Callable[..., Session]) -> None:
    course = with_prior().course
    assert replace(course, prior=None).fingerprint != course.fingerprint
