"""Flags and environment variables."""

from __future__ import annotations

import pytest

from darkroom_operator.config import HostAlias, parse

IMAGE = {"DARKROOM_TRAINER_IMAGE": "image"}


def test_flags_beat_variables_and_variables_beat_defaults() -> None:
    environ = IMAGE | {"DARKROOM_WORKERS": "2", "DARKROOM_POLL_RATE": "7", "DARKROOM_NAMESPACES": "a, b"}
    config = parse(["--workers", "3"], environ)
    assert (config.trainer_image, config.workers, config.poll_rate) == ("image", 3, 7.0)
    assert config.namespaces == ("a", "b")
    assert config.listen == ("0.0.0.0", 8080)


def test_lists_may_be_repeated() -> None:
    config = parse(["--namespace", "a", "--namespace", "b", "--host-alias", "10.0.0.1=s3"], IMAGE)
    assert config.namespaces == ("a", "b")
    assert config.host_aliases == (HostAlias("10.0.0.1", "s3"),)


def test_flags_beat_variables_for_lists_too() -> None:
    environ = IMAGE | {
        "DARKROOM_NAMESPACES": "a,b",
        "DARKROOM_HOST_ALIASES": "10.0.0.1=s3",
        "DARKROOM_TRAINER_IMAGE_PULL_SECRETS": "old",
    }
    flags = ["--namespace", "c", "--host-alias", "fd00::1=store", "--trainer-image-pull-secret", "new"]
    config = parse(flags, environ)
    assert config.namespaces == ("c",)
    assert config.host_aliases == (HostAlias("fd00::1", "store"),)
    assert config.trainer_image_pull_secrets == ("new",)
    assert parse([], environ).host_aliases == (HostAlias("10.0.0.1", "s3"),)


def test_a_wrong_variable_is_told_like_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([], IMAGE | {"DARKROOM_HOST_ALIASES": "10.0.0=s3"})
    assert "DARKROOM_HOST_ALIASES: '10.0.0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--trainer-image"),
        (["--trainer-image", "i", "--listen", "8080"], "give HOST:PORT"),
        (["--trainer-image", "i", "--workers", "0"], "give a whole number from 1"),
        (["--trainer-image", "i", "--poll-rate", "-1"], "give a number above 0"),
        (["--trainer-image", "i", "--host-alias", "s3"], "give IP=NAME"),
        (["--trainer-image", "i", "--host-alias", "10.0.0.300=s3"], "no IP address"),
    ],
)
def test_wrong_flags_are_told(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(arguments, {})
    assert words in capsys.readouterr().err
