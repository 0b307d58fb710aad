"""The bare loop does what a session does; programs are timed by what they draw; other trainers get the same case."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.instruments.bare_loop import BareLoop
from benchmarks.instruments.peers import Case, DiffusersExamples, SdScripts, open_peer, write_image_folder
from benchmarks.instruments.watching import Moment, _between, steps_in, watch
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_trainer import objectives
from darkroom_trainer.randomness import noise_source
from darkroom_trainer.session import Session
from tests.builders.models import write_tiny
from tests.builders.pictures import write_pictures
from tests.builders.specs import MINIMAL
from tests.unit.trainer.conftest import base_file, base_files, load_model, make, one_thread  # noqa: F401
from tests.unit.trainer.sessions import Maker

PLAIN = {"captions": {}, "schedule": {"type": "Constant"}}


def loss_of_session(session: Session, step: int) -> tuple[torch.Tensor, objectives.Noised, torch.Tensor]:
    """Return a step's loss with the noise, and the clean latents, that it was made of."""
    (batch,) = session.course.window(step)
    seed, clean, noised = session.spec.training.seed, [], []
    for number, item in enumerate(batch):
        generator = noise_source(seed, "noise", step, number)
        clean.append(session.latents.draw([item], generator) * session.model.vae.config.scaling_factor)
        alphas = session.model.scheduler.alphas_cumprod
        noised.append(objectives.add_noise(clean[-1], alphas, generator, objective=session.spec.training.objective))
    joined = objectives.joined(noised, session.model.device)
    predicted = session.predict(joined, [item.picture.caption for item in batch], batch)
    return session.losses(joined, predicted).mean(), joined, torch.cat(clean)


@pytest.mark.parametrize("text_rate", [1e-3, 0])
def test_the_bare_loop_computes_what_a_session_computes(make: Maker, text_rate: float) -> None:  # noqa: F811
    session = make(**PLAIN, optimizer={"type": "AdamW", "learningRate": 1e-3, "textEncoderLearningRate": text_rate})
    bare = BareLoop(session)
    for step in range(2):
        loss, noised, clean = loss_of_session(session, step)
        same = bare.loss(clean, noised.target_BCHW, noised.timesteps_B, batch=bare.gather(step))
        assert torch.allclose(same, loss, rtol=1e-5)
        assert bare.step(bare.gather(step)) > 0  # the next is compared with weights that the loop has moved


def test_the_bare_loop_knows_what_it_does_not_do(make: Maker) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="no accumulation"):
        BareLoop(make(**PLAIN, gradientAccumulation=2))


def test_steps_are_read_from_progress_bars() -> None:
    bar = b"\rsteps:  25%|##5       | 3/12 [00:13<00:40,  4.51s/it, avr_loss=0.12]\rSteps:  33%|###| 4/12 [00:18<"
    assert steps_in(bar) == [3, 4]
    assert steps_in(b"caching latents: 100%|##| 15/15 [00:01<00:00]") == []
    assert steps_in(b"steps: 8%|| 1/12 [\n") == [1]


def test_only_what_follows_the_warm_up_counts() -> None:
    moments = [Moment(1, 50, 20), Moment(2, 52, 22), Moment(3, 54, 24), Moment(5, 60, 27)]
    found = _between(moments, warm_up=2, memory_bytes=1)
    assert (found.first_step, found.wall_per_step, found.processor_per_step) == (50, 8 / 3, 5 / 3)
    assert _between(moments, warm_up=9, memory_bytes=1).wall_per_step == 3


def run(code: str, folder: Path) -> float:
    environ = dict(os.environ)
    return watch(
        [sys.executable, "-c", code], environ=environ, directory=folder, log=folder / "log", warm_up=1
    ).processor_per_step


def test_a_program_is_timed_and_its_failure_is_told(tmp_path: Path) -> None:
    step = "print(f'steps: 0%|| {n}/4 [', file=sys.stderr, flush=True); t = time.process_time()\n"
    busy = "  while time.process_time() < t + 0.1: pass\n"
    assert 0.05 < run(f"import sys, time\nfor n in range(1, 5):\n  {step}{busy}", tmp_path) < 0.5
    with pytest.raises(RuntimeError, match=r"ended with 3 after 0 steps\n(?s:.*)no such model"):
        run("import sys; print('no such model', file=sys.stderr); sys.exit(3)", tmp_path)


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Case]:
    def build(family: str = "SD15", **training: object) -> Case:
        spec = LoraTrainingSpec.model_validate(
            MINIMAL | {"training": training, "network": {"type": "LoRA", "rank": 8, "alpha": 8}}
        )
        model = write_tiny(tmp_path / "m.safetensors", family)
        return Case(model, write_pictures(tmp_path / "pictures"), spec, 12)

    return build


def test_sd_scripts_gets_the_same_case_twice(
    case: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = case(resolution=256, batchSize=2, precision="BF16")
    with pytest.raises(ValueError, match="give --full-size"):
        next(iter(SdScripts(tmp_path).programs(small, python="python", folder=tmp_path)))
    monkeypatch.setattr(Case, "is_full_size", True)
    cached, uncached = SdScripts(tmp_path).programs(small, python="python", folder=tmp_path)
    assert (cached.is_cached, uncached.is_cached) == (True, False)
    assert set(cached.command) - set(uncached.command) == {"--cache_latents"}
    asked = ("--network_dim=8", "--network_alpha=8.0", "--train_batch_size=2", "--mixed_precision=bf16")
    assert set(asked) <= set(cached.command)
    vocabulary = json.loads((tmp_path / "tokenizers" / "openai_clip-vit-large-patch14" / "vocab.json").read_text())
    assert (vocabulary["cat</w>"], len(vocabulary)) == (2368, 49408)


def test_diffusers_gets_a_folder_of_parts_and_each_picture_as_often_as_it_is_repeated(
    case: Callable[..., Case], tmp_path: Path
) -> None:
    (program,) = DiffusersExamples(tmp_path).programs(case(), python="python", folder=tmp_path / "made")
    assert not program.is_cached
    assert "--rank=8" in program.command
    parts = {path.name for path in (tmp_path / "made" / "model").iterdir()}
    assert parts == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    lines = (tmp_path / "made" / "images" / "metadata.jsonl").read_text().splitlines()
    names = [json.loads(line)["file_name"] for line in lines]
    assert sorted(names) == sorted(it.name for it in (tmp_path / "made" / "images").iterdir() if it.suffix == ".png")
    again = write_image_folder(tmp_path / "pictures", tmp_path / "again")
    assert (again / "metadata.jsonl").read_text().splitlines() == lines


def test_a_checkout_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither kohya-ss/sd-scripts nor huggingface/diffusers"):
        open_peer(tmp_path)
    (tmp_path / "train_network.py").touch()
    assert isinstance(open_peer(tmp_path), SdScripts)
