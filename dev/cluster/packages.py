"""The Debian packages a node needs, installed when one of their programs is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dev.cluster.console import ClusterError, stage, tail
from dev.cluster.paths import cache_directory

NODE = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables-restore",
    "conntrack": "/usr/sbin/conntrack",
    "ipset": "/usr/sbin/ipset",
    "nftables": "/usr/sbin/nft",
    "socat": "/usr/bin/socat",
    "iproute2": "/usr/sbin/ip",
}
IMAGES = {"buildah": "/usr/bin/buildah", "debootstrap": "/usr/sbin/debootstrap"}


def missing(programs: Mapping[str, str]) -> list[str]:
    """Return the packages whose program is not there."""
    return [package for package, program in programs.items() if not Path(program).exists()]


def ensure(programs: Mapping[str, str]) -> None:
    """Install what is missing; the package lists are fetched only when they are needed."""
    absent = missing(programs)
    if not absent:
        return
    if not shutil.which("apt-get"):
        raise ClusterError(
            f"these programs are missing: {', '.join(programs[name] for name in absent)}; they come from Debian's "
            "packages of the same name, and this machine has no apt-get. Use another cluster: CLUSTER=existing"
        )
    log = cache_directory() / "logs" / "apt.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    what = f"install {', '.join(absent)} with apt-get"
    with stage(what, usual="1 to 2 minutes, once"), log.open("a") as out:
        for command in (["update"], ["install", "-y", "--no-install-recommends", *absent]):
            result = subprocess.run(
                ["apt-get", "-q", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=False,
            )
            if result.returncode:
                raise ClusterError(f"apt-get {command[0]} failed. The last lines of {log}:\n{tail(log)}")
