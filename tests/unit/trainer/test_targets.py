"""Which layers a network is put into: kinds, globs, and refusals that name what was meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from darkroom_api.failures import FailureReason
from darkroom_api.networks import LoRA
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.networks.adapter import inject
from darkroom_trainer.networks.selection import choose_places
from tests.unit.trainer.sessions import Maker

Load = Callable[..., StableDiffusion]


def network(*, convolutions: bool = False, **targets: Any) -> LoRA:
    conv = {"convRank": 2, "convAlpha": 1} if convolutions else {}
    return LoRA.model_validate({"rank": 2, "targets": targets, **conv})


def names(model: StableDiffusion, asked: LoRA, *, text: bool = True) -> set[str]:
    return {it.name for it in choose_places(asked, model, train_text_encoder=text)}


def refusal(model: StableDiffusion, asked: LoRA, *, text: bool = True) -> list[str]:
    with pytest.raises(RunError) as caught:
        inject(asked, model, seed=1, train_text_encoder=text)
    assert caught.value.reason is FailureReason.INVALID_SPEC
    return caught.value.message.splitlines()


@pytest.mark.parametrize(
    ("kind", "unet", "text"),
    [("All", 192, 12), ("Attention", 16 * 8, 8), ("CrossAttention", 16 * 4, 0), ("FeedForward", 16 * 2, 4)],
)
def test_kinds_of_layers(load_model: Load, kind: str, unet: int, text: int) -> None:
    """Of 16 transformers in the UNet and two layers of the text encoder."""
    found = names(load_model(), network(layers=kind, convolutions=kind == "All"))
    assert len([it for it in found if it.startswith("lora_te_")]) == text
    adapted = [it for it in found if it.startswith("lora_unet_")]
    assert len(adapted) == (277 if kind == "All" else unet)
    assert len(names(load_model(), network(layers=kind), text=False)) == unet


def test_blocks_of_b_lora_by_either_name(load_model: Load) -> None:
    """Frenkel et al. 2024 (arXiv 2403.14572): the blocks of SDXL that make content and style."""
    model = load_model(family="SDXL")
    content, style = (names(model, network(include=[f"lora_unet_output_blocks_{it}_1_*"])) for it in (0, 1))
    assert content == names(model, network(include=["lora_unet_up_blocks_0_attentions_0_*"]))
    assert style == names(model, network(include=["lora_unet_up_blocks_0_attentions_1_*"]))
    assert len(content) == len(style) == 2 * 10 + 2
    assert all(it.startswith("lora_unet_output_blocks_0_1_") for it in content)


def test_what_is_excluded_is_left_out_of_what_is_included(load_model: Load) -> None:
    asked = network(include=["lora_unet_mid_*", "lora_te_*"], exclude=["*_proj_in", "*_mlp_fc?"], layers="All")
    found = names(load_model(), asked)
    assert len(found) == 11 + 8
    assert "lora_unet_mid_block_attentions_0_proj_out" in found


def test_only_chosen_layers_change_the_model(load_model: Load) -> None:
    model = load_model()
    adapter = inject(network(include=["lora_unet_mid_*"]), model, seed=1, train_text_encoder=True)
    assert {name.split(".attentions")[0] for name in adapter.named_parameters()} == {"unet.mid_block"}
    assert [
        it for it, module in model.unet.named_modules() if "forward" in vars(module) and "mid_block" not in it
    ] == []


def test_a_choice_does_not_change_what_a_layer_begins_with(load_model: Load) -> None:
    whole = inject(network(), load_model(), seed=1, train_text_encoder=True).named_parameters()
    part = inject(network(layers="CrossAttention"), load_model(), seed=1, train_text_encoder=True).named_parameters()
    assert all(torch.equal(it, whole[name]) for name, it in part.items())


def test_globs_that_match_nothing_are_told_with_the_nearest_layers(load_model: Load) -> None:
    asked = network(include=["lora_unet_middle_blocks_*_to_q", "lora_unet_*"], exclude=["unet.down_blocks.*"])
    first, second = refusal(load_model(), asked)
    assert first.startswith(
        "spec.network.targets.include[0]: 'lora_unet_middle_blocks_*_to_q' matches no layer; the nearest are lora_unet_"
    )
    assert "nearest are lora_unet_middle_block_1_proj_in, lora_unet_middle_block_1_" in first
    assert second.startswith("spec.network.targets.exclude[0]: 'unet.down_blocks.*' matches no layer")


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (network(include=["lora_unet_*_resnets_*", "lora_unet_mid_*"]), True),
        (network(include=["lora_te_*", "lora_unet_mid_*"]), False),
        (network(include=["*_mlp_*", "lora_unet_*"], layers="Attention"), True),
    ],
    ids=["convolutions", "text encoder", "kind"],
)
def test_globs_of_layers_that_are_not_adapted_are_told(load_model: Load, asked: LoRA, text: bool) -> None:
    (told,) = refusal(load_model(), asked, text=text)
    assert f"include[0]: {asked.targets.include[0]!r} matches only layers that are not adapted, such as" in told
    assert "need network.convRank, text encoders a learning rate above 0" in told


def test_nothing_left_is_told(load_model: Load) -> None:
    asked = network(include=["lora_te_*"], exclude=["*"])
    assert refusal(load_model(), asked) == ["spec.network.targets: no layer is left to train"]


def test_a_network_in_the_text_encoder_alone_is_trained(make: Maker) -> None:
    session = make(network={"type": "LoRA", "rank": 2, "targets": {"include": ["lora_te_*"]}})
    before = {name: it.detach().clone() for name, it in session.trainee.named_parameters().items()}
    for _ in range(3):
        session.step()
    assert {name.split(".")[0] for name in before} == {"text_encoder"}
    assert all(not torch.equal(it, before[name]) for name, it in session.trainee.named_parameters().items())
