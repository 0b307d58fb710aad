"""What an operator is told from outside: flags, each with an environment variable of the same name."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HostAlias:
    """A line of the pods' /etc/hosts."""

    ip: str
    name: str


@dataclass(frozen=True)
class Config:
    """Everything the operator's behaviour depends on besides the cluster."""

    trainer_image: str
    trainer_image_pull_policy: str = "IfNotPresent"
    trainer_image_pull_secrets: tuple[str, ...] = ()
    host_aliases: tuple[HostAlias, ...] = ()
    namespaces: tuple[str, ...] = ()
    """Empty: all."""
    listen: tuple[str, int] = ("0.0.0.0", 8080)  # noqa: S104 - the kubelet's probes come from outside the pod
    progress_interval: float = 5.0
    """Least seconds between two status writes that only move the steps on."""
    poll_interval: float = 2.0
    poll_rate: float = 50.0
    resync: float = 600.0
    workers: int = 8
    log_format: str = "json"
    log_level: str = "INFO"


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Make the configuration from a command line and the environment; a flag beats its variable."""
    parser = _parser(environ)
    given = parser.parse_args(arguments)
    aliases: list[HostAlias] | None = given.host_alias
    if aliases is None:
        try:
            aliases = [_host_alias(text) for text in _listed(environ, "HOST_ALIASES")]
        except argparse.ArgumentTypeError as error:
            parser.error(f"environment variable DARKROOM_HOST_ALIASES: {error}")
    secrets: list[str] = given.trainer_image_pull_secret or _listed(environ, "TRAINER_IMAGE_PULL_SECRETS")
    return Config(
        trainer_image=given.trainer_image,
        trainer_image_pull_policy=given.trainer_image_pull_policy,
        trainer_image_pull_secrets=tuple(secrets),
        host_aliases=tuple(aliases),
        namespaces=tuple(given.namespace or _listed(environ, "NAMESPACES")),
        listen=given.listen,
        progress_interval=given.progress_interval,
        poll_interval=given.poll_interval,
        poll_rate=given.poll_rate,
        resync=given.resync,
        workers=given.workers,
        log_format=given.log_format,
        log_level=given.log_level,
    )


def _listed(environ: Mapping[str, str], name: str) -> list[str]:
    """Return a list from the environment. It is no default of argparse: a flag given would be added to it."""
    return [part.strip() for part in environ.get(f"DARKROOM_{name}", "").split(",") if part.strip()]


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom_operator",
        description="Reconciles Darkroom's resources. Every flag may be given as an environment variable: "
        "--poll-rate as DARKROOM_POLL_RATE; lists are separated by commas.",
    )

    def default(name: str, otherwise: str | None) -> str | None:
        return environ.get(f"DARKROOM_{name}") or otherwise

    image = default("TRAINER_IMAGE", None)
    parser.add_argument("--trainer-image", default=image, required=image is None, help="image of training pods")
    parser.add_argument(
        "--trainer-image-pull-policy",
        default=default("TRAINER_IMAGE_PULL_POLICY", "IfNotPresent"),
        choices=("Always", "IfNotPresent", "Never"),
    )
    parser.add_argument("--trainer-image-pull-secret", action="append", metavar="NAME")
    parser.add_argument(
        "--host-alias",
        action="append",
        type=_host_alias,
        metavar="IP=NAME",
        help="a line of the training pods' /etc/hosts",
    )
    parser.add_argument("--namespace", action="append", metavar="NAME", help="watch only this (repeat)")
    parser.add_argument("--listen", type=_address, default=default("LISTEN", "0.0.0.0:8080"), metavar="HOST:PORT")
    parser.add_argument("--progress-interval", type=_seconds, default=default("PROGRESS_INTERVAL", "5"))
    parser.add_argument("--poll-interval", type=_seconds, default=default("POLL_INTERVAL", "2"))
    parser.add_argument("--poll-rate", type=_seconds, default=default("POLL_RATE", "50"), help="polls per second")
    parser.add_argument("--resync", type=_seconds, default=default("RESYNC", "600"), help="seconds between relists")
    parser.add_argument("--workers", type=_count, default=default("WORKERS", "8"))
    parser.add_argument("--log-format", choices=("json", "text"), default=default("LOG_FORMAT", "json"))
    parser.add_argument(
        "--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default=default("LOG_LEVEL", "INFO")
    )
    return parser


def _host_alias(text: str) -> HostAlias:
    ip, separator, name = text.partition("=")
    if not (ip and separator and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give IP=NAME, such as 10.0.0.5=s3.example.com")
    try:
        ipaddress.ip_address(ip)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{ip!r} in {text!r} is no IP address; give IP=NAME") from None
    return HostAlias(ip, name)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give HOST:PORT, such as 0.0.0.0:8080")
    return host, int(port)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a whole number from 1")
    return value
