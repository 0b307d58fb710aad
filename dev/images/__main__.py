"""The command line: `python -m dev.images build|push|load [operator|trainer]`; prints the names of the images."""

from __future__ import annotations

import argparse
import os
import sys

from dev.cluster import existing
from dev.cluster.console import ClusterError, say, unwind_when_terminated
from dev.cluster.full import State
from dev.cluster.paths import existing_layout, full_layout
from dev.images.context import IMAGES
from dev.images.pipeline import Pipeline, selected


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.images", description="The project's images.")
    parser.add_argument(
        "command",
        choices=("build", "push", "load", "names"),
        help="build; push: build, and push to the cluster's registry; load: push, and have the node pull; "
        "names: only print what they are called",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{' or '.join(IMAGES)} (default: all)")
    return parser


def main() -> int:
    """Run one command; one line `NAME REFERENCE` for each image on standard output; a SIGTERM cleans up too."""
    unwind_when_terminated()
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    parser = _parser()
    arguments = parser.parse_args()
    unknown = [name for name in arguments.images if name not in IMAGES]
    if unknown:
        parser.error(f"got {', '.join(unknown)}, allowed are {', '.join(IMAGES)}")
    try:
        elsewhere = existing.is_chosen()
        pipeline = Pipeline(State.read(existing_layout() if elsewhere else full_layout()), existing=elsewhere)
        actions = {
            "build": pipeline.build,
            "push": pipeline.push,
            "load": pipeline.load,
            "names": pipeline.reference,
        }
        for image in selected(arguments.images):
            print(image.name, actions[arguments.command](image), flush=True)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
