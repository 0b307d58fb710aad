"""What becomes of a caption: kohya's outputs to the letter, and what holds for all of them."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_api.captions import Captions
from darkroom_trainer.captions import lines_shown, present, split_tags, whole

LIVELY: dict[str, Any] = {
    "wildcards": True,
    "several": "Random",
    "shuffle": True,
    "tagDropout": 0.2,
    "keepTokensSeparator": "|||",
    "dropout": 0.2,
}
TWO_LINES = "a {1|2} ||| b, c, {d|e, f}, g\nh ||| i, j, k, l"

# What `process_caption` of kohya-ss/sd-scripts 48d368fa returned after `random.seed(seed)`.
KOHYA: list[tuple[dict[str, Any], str, int, str]] = [
    ({}, "b ,a,  c", 1, "b ,a,  c"),
    ({}, "one\ntwo", 1, "one"),
    ({"prefix": "sks robot,", "suffix": ", best"}, "red, blue", 1, "sks robot, red, blue , best"),
    ({"shuffle": True}, "a, b, c, d, e", 1, "c, d, e, a, b"),
    ({"shuffle": True}, "a, b, c, d, e", 2, "c, b, d, e, a"),
    ({"shuffle": True, "keepTokens": 2}, "a, b, c, d, e", 1, "a, b, d, e, c"),
    ({"shuffle": True, "keepTokens": 9}, "a, b, c", 1, "a, b, c"),
    ({"shuffle": True, "keepTokens": 1, "prefix": "sks,", "suffix": ", z"}, "a, b, c, d", 7, "sks, z, a, d, b, c"),
    ({"shuffle": True, "keepTokensSeparator": "|||"}, "a, b ||| c, d, e", 1, "a, b, d, e, c"),
    ({"shuffle": True, "keepTokensSeparator": "|||", "keepTokens": 1}, "a, b ||| c, d, e", 2, "a, b, d, e, c"),
    ({"shuffle": True, "keepTokensSeparator": "|||", "keepTokens": 1}, "a, b, c, d, e", 2, "a, c, d, e, b"),
    ({"shuffle": True, "keepTokensSeparator": "|||"}, "a, b ||| c, d, e ||| f, g", 3, "a, b, d, e, c, f, g"),
    (
        {"shuffle": True, "keepTokensSeparator": "|||", "tagDropout": 0.5},
        "a, b ||| c, , d, e, f ||| g, h ||| i",
        4,
        "a, b, e, g, h ||| i",
    ),
    ({"shuffle": True, "keepTokensSeparator": "|||", "prefix": "sks |||"}, "c, d, e", 5, "sks, c, d, e"),
    ({"shuffle": True, "separator": ";"}, "a, b; c; d", 5, "a, b, c, d"),
    ({"tagDropout": 0.5}, "a, b, c, d, e, f", 1, "b, c"),
    ({"tagDropout": 0.5, "keepTokens": 2}, "a, b, c, d, e, f", 2, "a, b, c, d"),
    ({"tagDropout": 1}, "a, b", 3, ""),
    ({"shuffle": True, "tagDropout": 0.3, "keepTokens": 1}, "a, b, c, d, e, f", 3, "a, b, f"),
    ({"wildcards": True}, "{a|b|c} and {d|e|f}", 6, "c and d"),
    ({"wildcards": True}, "{{a|b}} {c|d} {e} {} }} {|f}", 7, "{a|b} d e {} } f"),
    ({"wildcards": True}, "{a|{b|c}} d", 8, "{a|{b|c} d"),
    ({"wildcards": True}, "{{{a|b}}}", 8, "{a"),
    ({}, "{a|b}, {{c}}", 8, "{a|b}, {{c}}"),
    ({"wildcards": True, "several": "Random"}, "one, 1\ntwo, 2\nthree, 3", 1, "one, 1"),
    ({"wildcards": True, "several": "Random"}, "one {x|y}\ntwo {x|y}\nthree {x|y}", 4, "one y"),
    (LIVELY, TWO_LINES, 11, "h, i, k, l"),
    (LIVELY, TWO_LINES, 12, "h, k, i, l, j"),
    ({"dropout": 0.5}, "a", 1, ""),
    ({"dropout": 0.5}, "a", 2, "a"),
    ({"dropout": 1, "prefix": "p"}, "a", 3, ""),
]


def show(caption: str, spec: dict[str, Any], *, seed: int = 1, epoch: int = 1) -> str:
    return present(caption, Captions.model_validate(spec), random.Random(seed), epoch=epoch)


@pytest.mark.parametrize(("spec", "caption", "seed", "shown"), KOHYA)
def test_it_is_what_kohya_shows(spec: dict[str, Any], caption: str, seed: int, shown: str) -> None:
    assert show(caption, spec, seed=seed) == shown


@pytest.mark.parametrize(("every", "empty"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, [])])
def test_epochs_without_captions_are_counted_from_1(every: int, empty: list[int]) -> None:
    shown = {epoch: show("a", {"dropoutEveryEpochs": every}, epoch=epoch) for epoch in range(1, 7)}
    assert [epoch for epoch, caption in shown.items() if caption == ""] == empty


def test_prefix_and_suffix_go_to_every_line() -> None:
    spec = {"several": "Random", "prefix": "sks,", "suffix": ", z"}
    assert {show("a\nb", spec, seed=seed) for seed in range(20)} == {"sks, a , z", "sks, b , z"}


def test_the_sign_for_kept_tags_is_never_shown() -> None:
    assert show("a, b ||| c", {"keepTokensSeparator": "|||"}) == "a, b, c"
    assert show("a, b ||| c", {}) == "a, b ||| c"


def test_empty_tags_do_not_count() -> None:
    assert show(", a,, b, ", {"shuffle": True, "keepTokens": 2}) == "a, b"


@pytest.mark.parametrize(
    ("caption", "spec", "seen"),
    [
        ("b ,a,  c", {}, "b ,a,  c"),
        (TWO_LINES, LIVELY, "a 1, b, c, d, g"),
        ("a, b, c", {"shuffle": True, "tagDropout": 1, "dropout": 1, "dropoutEveryEpochs": 1}, "a, b, c"),
        ("a; b", {"separator": ";", "shuffle": True, "prefix": "p;", "suffix": "; s"}, "p, a, b, s"),
        ("{{x}} {1|2}", {"wildcards": True}, "{x} 1"),
    ],
)
def test_validation_sees_the_first_of_everything_and_all_tags(caption: str, spec: dict[str, Any], seen: str) -> None:
    assert whole(caption, Captions.model_validate(spec)) == seen


TAGS = st.lists(st.text("abcxyz ", min_size=1).filter(str.strip), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**32)


@given(TAGS, SEEDS, st.integers(0, 9))
def test_shuffling_keeps_the_first_tags_and_loses_none(tags: list[str], seed: int, keep: int) -> None:
    shown = split_tags(show(",".join(tags), {"shuffle": True, "keepTokens": keep}, seed=seed))
    expected = [tag.strip() for tag in tags]
    assert shown[:keep] == expected[:keep]
    assert sorted(shown) == sorted(expected)


@given(TAGS, SEEDS, st.integers(0, 9), st.floats(0, 1), st.booleans())
def test_dropping_tags_takes_only_those_that_are_not_kept(
    tags: list[str], seed: int, keep: int, share: float, shuffle: bool
) -> None:
    spec = {"tagDropout": share, "keepTokens": keep, "shuffle": shuffle}
    shown = split_tags(show(",".join(tags), spec, seed=seed))
    expected = [tag.strip() for tag in tags]
    assert shown[: len(expected[:keep])] == expected[:keep]
    assert Counter(shown) <= Counter(expected)


@given(TAGS, TAGS, TAGS, SEEDS)
def test_separators_keep_both_ends(first: list[str], free: list[str], last: list[str], seed: int) -> None:
    caption = "|||".join(",".join(part) for part in (first, free, last))
    shown = show(
        caption, {"shuffle": True, "tagDropout": 0.5, "keepTokensSeparator": "|||", "keepTokens": 99}, seed=seed
    )
    tags = split_tags(shown)
    assert tags[: len(first)] == [tag.strip() for tag in first]
    assert tags[-len(last) :] == [tag.strip() for tag in last]
    assert Counter(tags[len(first) : -len(last)]) <= Counter(tag.strip() for tag in free)


@given(st.text("ab{}|,", max_size=30), SEEDS)
def test_braces_never_break_anything(caption: str, seed: int) -> None:
    shown = show(caption, {"wildcards": True}, seed=seed)
    assert "\0" not in shown
    assert len(shown) <= len(caption)


@given(st.lists(st.text("ab, {}|", min_size=1), min_size=1, max_size=4), SEEDS, st.integers(1, 9))
def test_the_same_random_numbers_show_the_same(lines: list[str], seed: int, epoch: int) -> None:
    caption = "\n".join(lines)
    assert show(caption, LIVELY, seed=seed, epoch=epoch) == show(caption, LIVELY, seed=seed, epoch=epoch)


@pytest.mark.parametrize("option", ["dropout", "tagDropout"])
def test_dropping_takes_its_share(option: str) -> None:
    shown = [show("a", {option: 0.25}, seed=seed) for seed in range(2000)]
    assert 400 < shown.count("") < 600


def test_lines_that_are_never_shown_are_not_counted() -> None:
    assert lines_shown("a\nb", Captions()) == ["a"]
    assert lines_shown("a\nb", Captions(several="Random")) == ["a", "b"]
