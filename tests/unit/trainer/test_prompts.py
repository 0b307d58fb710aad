"""How prompts become ids and weights: A1111's brackets, chunks of 75 tokens, and what diffusers makes of the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.text_encoding import TextEncoding
from darkroom_trainer.conditioning import Conditions, Frame, PromptCache, encode_prompts, unet_arguments
from darkroom_trainer.families.model import StableDiffusion
from darkroom_trainer.families.tokenizer import OPEN_CLIP_PAD, load_tokenizer
from darkroom_trainer.prompts import parse_weights, tokenize

Load = Callable[..., StableDiffusion]
TOKENIZER = load_tokenizer()
PLAIN = TextEncoding()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("", []),
        ("a (red) cat", [("a ", 1.0), ("red", 1.1), (" cat", 1.0)]),
        ("a ((red)) cat", [("a ", 1.0), ("red", 1.21), (" cat", 1.0)]),
        ("a [red] cat", [("a ", 1.0), ("red", 1 / 1.1), (" cat", 1.0)]),
        ("a (red:1.5) cat", [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]),
        ("(a (very:2) red cat:0.5)", [("a ", 0.5), ("very", 1.0), (" red cat", 0.5)]),
        (r"a \(red\) cat", [("a (red) cat", 1.0)]),
        ("a (red cat", [("a ", 1.0), ("red cat", 1.1)]),
        ("a) red] cat", [("a) red] cat", 1.0)]),
        ("time: now (a:b)", [("time: now ", 1.0), ("a:b", 1.1)]),
        ("10:30 (x: 1.2 )", [("10:30 ", 1.0), ("x", 1.2)]),
    ],
)
def test_brackets_weigh_as_in_a1111(text: str, expected: list[tuple[str, float]]) -> None:
    """Expected values by the rules of A1111's `parse_prompt_attention`, in its own examples."""
    found = parse_weights(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet="ab ,()[]:\\0.5", max_size=40))
def test_no_text_fails_and_none_is_lost(text: str) -> None:
    found = parse_weights(text)
    letters = "".join(piece for piece, _ in found)
    assert letters.count("a") == text.count("a")
    assert letters.count("b") == text.count("b")


@pytest.mark.parametrize("maximum", [75, 150, 225])
@pytest.mark.parametrize("words", [0, 3, 74, 75, 76, 149, 150, 151, 300])
def test_chunks_of_75_between_the_marks(maximum: int, words: int) -> None:
    found = tokenize("cat " * words, TOKENIZER, maximum_tokens=maximum)
    assert [len(chunk) for chunk in found.ids] == [77] * (maximum // 75)
    assert all(chunk[0] == 49406 and 49407 in chunk for chunk in found.ids)
    assert sum(chunk.count(2368) for chunk in found.ids) == min(words, maximum)
    assert not found.is_weighted


def test_ids_are_those_of_the_tokenizer_itself() -> None:
    for pad in ("<|endoftext|>", OPEN_CLIP_PAD):
        tokenizer = load_tokenizer(pad)
        for text in ("a photo of a cat, (red:1.2) [hat]", "sks robot, thing 3, blue", "", "word " * 120):
            theirs = tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids
            assert tokenize(text, tokenizer, maximum_tokens=75).ids == [theirs]


def test_weights_stand_beside_their_ids() -> None:
    found = tokenize("a (red cat:1.5)", TOKENIZER, maximum_tokens=75, weighted=True)
    assert found.ids[0][:5] == [49406, 320, 736, 2368, 49407]
    assert found.weights[0][:5] == [1.0, 1.0, 1.5, 1.5, 1.0]
    assert found.is_weighted


@pytest.mark.parametrize("family", ["SD15", "SD2", "SDXL"])
@torch.no_grad()
def test_long_prompts_are_read_chunk_by_chunk(load_model: Load, family: str) -> None:
    """kohya's shape: the first mark, 75 states of each chunk, the last mark."""
    model = load_model(family=family)
    text = ", ".join(f"word {index}" for index in range(60))
    short, long = (encode_prompts(model, [text], TextEncoding(maximum_tokens=it)) for it in (75, 225))
    assert short.states_BLD.shape[1] == 77
    assert long.states_BLD.shape[1] == 227
    torch.testing.assert_close(long.states_BLD[:, :76], short.states_BLD[:, :76])
    assert not torch.equal(long.states_BLD[:, 76:151], long.states_BLD[:, 1:76])
    if family == "SDXL":
        assert short.pooled_BD is not None
        assert long.pooled_BD is not None
        torch.testing.assert_close(long.pooled_BD, short.pooled_BD)


@torch.no_grad()
def test_clip_skip_takes_an_earlier_layer_normalised(load_model: Load) -> None:
    model = load_model()
    (encoder,) = model.text_encoders
    ids = torch.tensor(tokenize("a cat", encoder.tokenizer, maximum_tokens=75).ids)
    states = encoder.model(ids, output_hidden_states=True).hidden_states
    found = encode_prompts(model, ["a cat"], TextEncoding(clip_skip=2)).states_BLD
    assert torch.equal(found, encoder.model.final_layer_norm(states[-2]))
    assert torch.equal(encode_prompts(model, ["a cat"], PLAIN).states_BLD, encoder.model.final_layer_norm(states[-1]))


@torch.no_grad()
def test_weights_multiply_states_and_keep_the_mean(load_model: Load) -> None:
    model, spec = load_model(), TextEncoding(weighted=True)
    plain = encode_prompts(model, ["a red cat"], spec).states_BLD
    weighed = encode_prompts(model, ["a (red:1.5) cat"], spec).states_BLD
    expected = plain.clone()
    expected[:, 2] *= 1.5
    expected *= plain.mean() / expected.mean()
    torch.testing.assert_close(weighed, expected)
    assert not torch.allclose(weighed, plain)


@torch.no_grad()
def test_prompts_are_kept_up_to_the_bound_and_the_same_whenever_they_are_read(load_model: Load) -> None:
    model = load_model()
    one = encode_prompts(model, ["a"], PLAIN)
    cache = PromptCache(model, PLAIN, maximum_bytes=2 * one.num_bytes)
    first = cache.encode(["a", "b"])
    cache.encode(["c", "d", "e"])
    assert len(cache._kept) == 2
    again = cache.encode(["b", "a", "a"])
    assert torch.equal(again.states_BLD, first.states_BLD[[1, 0, 0]])


def test_sdxl_is_told_heights_first() -> None:
    """Order of diffusers' `_get_add_time_ids`: original size, crop, target size, each height before width."""
    frame = Frame(original=(640, 480), crop=(7, 3), target=(512, 384))
    assert frame.numbers == [480, 640, 3, 7, 384, 512]
    assert Frame.whole((512, 384)).numbers == [384, 512, 0, 0, 384, 512]


def test_only_sdxl_is_told_sizes(load_model: Load) -> None:
    states = Conditions(torch.zeros(1, 77, 32))
    assert set(unet_arguments(load_model(), states, [Frame.whole((64, 64))])) == {"encoder_hidden_states"}
    pooled = Conditions(torch.zeros(1, 77, 80), torch.zeros(1, 48))
    told = unet_arguments(load_model(family="SDXL"), pooled, [Frame.whole((64, 96))])
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]]
