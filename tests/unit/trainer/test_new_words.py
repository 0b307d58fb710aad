"""New words in prompts: where they are found, that they stay whole, and what a dataset without them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.embedding_training import EmbeddingTrainingSpec
from darkroom_api.failures import FailureReason
from darkroom_api.lora_training import LoraTrainingSpec
from darkroom_trainer.dataset import Picture
from darkroom_trainer.errors import RunError
from darkroom_trainer.families.tokenizer import load_tokenizer
from darkroom_trainer.opening import check_pictures
from darkroom_trainer.prompts import has_word, new_word, tokenize
from tests.builders.specs import MINIMAL

TOKENIZER = load_tokenizer()
END = 49407
NEW = 49408
"""The first id behind the vocabulary."""


def read(text: str, *, token: str = "sks", vectors: int = 2, tokens: int = 75, weighted: bool = False) -> list[int]:
    """Return the ids of a prompt, without the marks and what fills it up."""
    words = {new_word(token): list(range(NEW, NEW + vectors))}
    found = tokenize(text, TOKENIZER, maximum_tokens=tokens, weighted=weighted, words=words)
    return [it for chunk in found.ids for it in chunk[1 : chunk.index(END)]]


def plain(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("a sks robot", "a", "robot"),
        ("sks", "", ""),
        ("a SKS, robot", "a", ", robot"),
        ("Sks's robot", "", "'s robot"),
        ("one_sks_robot", "one_", "_robot"),
        ("(sks)!", "(", ")!"),
        ("a  sks\nrobot", "a", "robot"),
    ],
)
def test_a_word_is_found_in_any_case_and_beside_punctuation(text: str, before: str, after: str) -> None:
    assert read(text) == [*plain(before), NEW, NEW + 1, *plain(after)]
    assert has_word(text, "sks")


@pytest.mark.parametrize("text", ["two masks", "sksy", "sks2", "ősks", "robot", "", "s ks"])
def test_a_part_of_another_word_is_not_it(text: str) -> None:
    assert read(text) == plain(text)
    assert not has_word(text, "sks")


@pytest.mark.parametrize(
    ("token", "text", "expected"),
    [
        ("<robot>", "a <robot>.", [*plain("a"), NEW, NEW + 1, *plain(".")]),
        ("<robot>", "a robot", plain("a robot")),
        ("Café", "CAFE\u0301 sks", [NEW, NEW + 1, *plain("sks")]),
        ("my-robot", "my-robot, my robot", [NEW, NEW + 1, *plain(", my robot")]),
        ("*", "a*", [*plain("a"), NEW, NEW + 1]),
    ],
)
def test_a_word_of_other_signs_is_found_as_it_is_written(token: str, text: str, expected: list[int]) -> None:
    assert read(text, token=token) == expected


def test_a_weighted_word_has_its_weight_on_all_its_vectors() -> None:
    words = {"sks": [NEW, NEW + 1]}
    found = tokenize("a (sks:1.5) robot", TOKENIZER, maximum_tokens=75, weighted=True, words=words)
    assert found.ids[0][1:5] == [*plain("a"), NEW, NEW + 1, *plain("robot")]
    assert found.weights[0][:6] == [1.0, 1.0, 1.5, 1.5, 1.0, 1.0]


@given(st.lists(st.sampled_from(["sks", "robot", "a", "extraordinarily", "!"]), max_size=250), st.integers(1, 64))
def test_a_word_is_read_whole_or_not_at_all(words: list[str], vectors: int) -> None:
    new = {"sks": list(range(NEW, NEW + vectors))}
    for tokens in (75, 150, 225):
        found = tokenize(" ".join(words), TOKENIZER, maximum_tokens=tokens, words=new)
        assert [len(chunk) for chunk in found.ids] == [77] * (tokens // 75)
        assert [len(chunk) for chunk in found.weights] == [77] * (tokens // 75)
        for chunk in found.ids:
            rows = [it - NEW for it in chunk if it >= NEW]
            assert rows == list(range(vectors)) * (len(rows) // vectors)


def test_a_word_that_does_not_fit_begins_the_next_chunk_or_is_left_out_with_what_follows() -> None:
    text = "a " * 73 + "sks robot"
    assert read(text, vectors=3) == plain("a " * 73)
    assert read(text, vectors=2) == [*plain("a " * 73), NEW, NEW + 1]
    found = tokenize(text, TOKENIZER, maximum_tokens=150, words={"sks": [NEW, NEW + 1, NEW + 2]})
    assert found.ids[0][1:] == [*plain("a " * 73), END, END, END]
    assert found.ids[1][1:6] == [NEW, NEW + 1, NEW + 2, *plain("robot"), END]


@given(st.text(max_size=300))
def test_without_a_new_word_nothing_changes(text: str) -> None:
    assert read(text, token="qwxyz") == read(text, token="<qwxyz>") == plain(text)[:75]


def spec(**changes: Any) -> EmbeddingTrainingSpec:
    return EmbeddingTrainingSpec.model_validate({**MINIMAL, "embedding": {"token": "sks"}, **changes})


def refusal(captions: list[str], **changes: Any) -> RunError | None:
    pictures = [
        Picture(Path(f"{index}.png"), f"1_x/{index}.png", "1_x", (64, 64), caption, 1, f"{index:064x}")
        for index, caption in enumerate(captions)
    ]
    try:
        check_pictures(spec(**changes), pictures, field="spec.dataset.uri")
    except RunError as error:
        return error
    return None


def test_captions_without_the_word_are_refused_all_at_once() -> None:
    error = refusal(["a sks robot", "a robot", "two masks\nsks robot"])
    assert error
    assert error.reason is FailureReason.DATASET_REJECTED
    assert error.message == (
        "spec.dataset.uri: nothing of 'sks' (spec.embedding.token) can be learnt from 2 of 3 pictures:\n"
        "1_x/1.png: its caption lacks the word: 'a robot'\n"
        "1_x/2.png: its caption lacks the word: 'two masks'"
    )
    assert "training.captions.prefix: 'sks,'" in error.advice


@pytest.mark.parametrize(
    ("caption", "captions"),
    [
        ("a robot", {"prefix": "sks,"}),
        ("a robot", {"suffix": "by sks"}),
        ("a robot\na sks robot", {"several": "Random"}),
        ("a {robot|Sks} here", {"wildcards": True}),
        ("a sks robot", {"shuffle": True, "tagDropout": 0.5}),
    ],
)
def test_captions_that_may_show_the_word_are_taken(caption: str, captions: dict[str, Any]) -> None:
    assert refusal([caption], training={"captions": captions}) is None


def test_a_word_behind_the_tokens_that_are_read_is_refused() -> None:
    caption = "a " * 72 + "sks"
    assert refusal([caption], embedding={"token": "sks", "numVectors": 3}) is None
    error = refusal([caption])
    assert error
    assert (
        "1_x/0.png: its caption has the word, with its 4 vectors, behind the 75 tokens that are read" in error.message
    )
    assert refusal([caption], training={"textEncoding": {"maximumTokens": 150}}) is None


def test_many_refusals_are_counted() -> None:
    error = refusal([f"robot {index}" for index in range(50)])
    assert error
    assert error.message.count("\n") == 21
    assert error.message.endswith("\n… and 30 more")


def test_other_kinds_take_pictures_as_they_are() -> None:
    picture = Picture(Path("a"), "a", "a", (64, 64), "anything", 1, "0" * 64)
    check_pictures(LoraTrainingSpec.model_validate(MINIMAL), [picture], field="spec.dataset.uri")
