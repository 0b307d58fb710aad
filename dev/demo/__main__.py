"""The command line: `python -m dev.demo up|down`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from rich.console import Console

from darkroom_cli.errors import UserError
from dev.cluster import existing, full
from dev.cluster.console import ClusterError, say
from dev.cluster.paths import Layout, existing_layout, full_layout
from dev.demo import data, installing, ownership, running
from dev.demo.site import NAMESPACE, Site


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.demo", description="Train a LoRA on a real cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="bring up what is needed, train, and show the samples")
    commands.add_parser("down", help="stop everything that the demo started")
    return parser


def _cluster() -> Site:
    if existing.is_chosen():
        return _existing_cluster(existing_layout())
    return Site.of(full.up(full_layout()), is_existing=False)


def _existing_cluster(layout: Layout) -> Site:
    had_demo = full.State.read(layout) is not None
    try:
        site = Site.of(existing.up(layout), is_existing=True)
        ownership.require_free(site)
    except BaseException:
        if not had_demo:  # else the store that runs here is an earlier demo's
            existing.down(layout)
        raise
    return site


def _up() -> None:
    begin = time.monotonic()
    console = Console(soft_wrap=True)
    _title(1, "cluster, image registry and S3 store")
    site = _cluster()
    _title(2, "images")
    images = installing.bring_images(site)
    for name, reference in images.items():
        say(f"  {name}: {reference}")
    _title(3, "operator")
    installing.prepare_namespaces(site)
    installing.install_operator(site, images)
    _title(4, "base model and pictures")
    site = data.bring(site, console)
    _title(5, "training")
    running.apply_training(site)
    start = time.monotonic()
    training = running.follow(site, console)
    trained = running.elapsed(start)
    _title(6, "results")
    running.show_results(site, training, console)
    say(f"\nDone in {running.elapsed(begin)}, of which the training took {trained}.")
    _say_what_next(site)


def _say_what_next(site: Site) -> None:
    name = running.name_of(site)
    for line in (
        'Look around:   eval "$(.venv/bin/python -m dev.cluster env)"',
        f"               kubectl -n {NAMESPACE} get lora {name} -o wide",
        "               kubectl explain lora.spec.training",
        f"               .venv/bin/kubectl-darkroom checkpoints lora/{name} -n {NAMESPACE} --verify",
        "Stop it all:   make demo-down",
    ):
        say(line)


def _title(number: int, text: str) -> None:
    say(f"[{number}/6] {text}")


def _down() -> None:
    if not existing.is_chosen():
        full.down(full_layout())
        return
    leave(existing_layout())


def leave(layout: Layout) -> None:
    """Remove the demo from an existing cluster, and stop what runs here for it even if that fails."""
    state = full.State.read(layout)
    if state is None:
        say("there is no demo on an existing cluster")
        return
    try:
        _remove_from(Site.of(state, is_existing=True))
    finally:
        existing.down(layout)


def _remove_from(site: Site) -> None:
    try:
        site.kubectl("get", "--raw", "/version", "--request-timeout=10s")  # else each call would wait for minutes
        ownership.remove(site)
    except ClusterError as error:
        raise ClusterError(
            f"the existing cluster does not answer, or refuses:\n{error}\nAn S3 store on "
            f"this machine is stopped all the same. What the demo left in the cluster goes with:\n{ownership.BY_HAND}"
        ) from error
    say("the CustomResourceDefinitions and the objects in the store stay; remove them if nobody else uses them:")
    say(f"  kubectl delete crd {' '.join(ownership.DEFINITIONS)}")


class _Ended(BaseException):
    """A signal asks this program to end: as an exception, so that a half-start is cleared away."""


def _ended(number: int, _frame: FrameType | None) -> NoReturn:
    raise _Ended(number)


def main() -> int:
    """Run one command; a failure is told in words, with what to look at; a signal unwinds like one."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, _ended)
    # Debian keeps debootstrap and iptables where only root's login shell looks.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    commands: dict[str, Callable[[], None]] = {"up": _up, "down": _down}
    command = commands[_parser().parse_args().command]
    try:
        command()
    except (ClusterError, UserError) as error:
        say(f"\nerror: {error}")
        return 1
    except (KeyboardInterrupt, _Ended) as ended:
        say("\ninterrupted; what runs goes on running: make demo again, or make demo-down")
        return 128 + (ended.args[0] if isinstance(ended, _Ended) else signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
