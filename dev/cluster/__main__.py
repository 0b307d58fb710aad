"""The command line: `python -m dev.cluster up|down|status|logs|env|build`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dev.cluster import binaries, existing, full, packages, status
from dev.cluster.console import ClusterError, say, unwind_when_terminated
from dev.cluster.paths import existing_layout, full_layout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.cluster", description="The local cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the cluster, or do nothing if it is healthy")
    up.add_argument("--fake-gpus", type=int, default=0, metavar="N", help="let the node claim N GPUs (default 0)")
    down = commands.add_parser("down", help="stop it and leave nothing running")
    down.add_argument("--purge", action="store_true", help="also remove pulled images and stored objects")
    commands.add_parser("status", help="what runs, since when and where; fails if it is not healthy")
    logs = commands.add_parser("logs", help="print the last lines of a component's log")
    logs.add_argument("component", choices=full.COMPONENTS)
    logs.add_argument("-f", "--follow", action="store_true", help="go on printing")
    logs.add_argument("-n", "--lines", type=int, default=200, metavar="N", help="how many lines (default 200)")
    commands.add_parser("env", help="print exports: KUBECONFIG, registry, S3 endpoint and keys, PATH")
    build = commands.add_parser("build", help="build and unpack every program, once")
    build.add_argument("--control-plane", action="store_true", help="only what tests without a node need")
    return parser


def _up(arguments: argparse.Namespace) -> int:
    if existing.is_chosen():
        existing.up(existing_layout())
    else:
        full.up(full_layout(), fake_gpus=arguments.fake_gpus)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    if existing.is_chosen():
        existing.down(existing_layout())
    else:
        full.down(full_layout(), purge=arguments.purge)
    return 0


def _status(_: argparse.Namespace) -> int:
    chosen = existing.is_chosen()
    text, healthy = existing.describe(existing_layout()) if chosen else status.describe(full_layout())
    print(text)
    return 0 if healthy else 1


def _logs(arguments: argparse.Namespace) -> int:
    layout = existing_layout() if existing.is_chosen() else full_layout()
    log = layout.logs / f"{arguments.component}.log"
    if not log.exists():
        raise ClusterError(f"{arguments.component} has written no log: {log} is not there")
    follow = ["-F"] if arguments.follow else []
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", str(arguments.lines), *follow, str(log)])


def _env(_: argparse.Namespace) -> int:
    layout = existing_layout() if existing.is_chosen() else full_layout()
    state = full.State.read(layout)
    if state is None:
        raise ClusterError("the cluster is not running (start it: python -m dev.cluster up)")
    print(status.exports(state))
    return 0


def _build(arguments: argparse.Namespace) -> int:
    if arguments.control_plane:
        binaries.ensure(binaries.KUBERNETES, binaries.ETCD)
        return 0
    packages.ensure({**packages.NODE, **packages.IMAGES})
    binaries.ensure(*binaries.MODULES)
    binaries.ensure_helm()
    return 0


COMMANDS = {"up": _up, "down": _down, "status": _status, "logs": _logs, "env": _env, "build": _build}


def main() -> int:
    """Run one command; a SIGTERM unwinds like an error, so that a half-start is cleared away."""
    unwind_when_terminated()
    # A shell without the administrator's directories would not find ip and iptables.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    arguments = _parser().parse_args()
    try:
        return COMMANDS[arguments.command](arguments)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
